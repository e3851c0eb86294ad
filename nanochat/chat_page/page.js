"use strict";

const at = (id) => document.getElementById(id);
let messages = [];
let running = null; // the AbortController of the answer that is being written

function element(name, className, text) {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = text;
  return made;
}

function showTurn(role, title) {
  const turn = element("section", `turn ${role}`, "");
  turn.append(element("h2", "", title));
  at("hint").hidden = true;
  at("conversation").append(turn);
  return turn;
}

const WORDS = { call: "asks the tool: ", output: "the tool says: " };

function showPart(turn, part) {
  const last = turn.lastElementChild;
  if (part.kind === "text" && last.className === "text") last.textContent += part.text;
  else turn.append(element("p", part.kind, (WORDS[part.kind] || "") + part.text));
  const log = at("conversation");
  log.scrollTop = log.scrollHeight;
}

function keepPart(parts, part) {
  const last = parts[parts.length - 1];
  if (part.kind === "text" && last && last.kind === "text") last.text += part.text;
  else parts.push({ kind: part.kind, text: part.text });
}

function say(text) {
  at("error").textContent = text;
  at("error").hidden = !text;
}

function headers() {
  const token = at("token").value;
  const json = { "Content-Type": "application/json" };
  return token ? { ...json, Authorization: `Bearer ${token}` } : json;
}

async function refuseErrors(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  if (response.status === 401) at("settings").open = true;
  throw new Error(body && body.error ? body.error.message : `the server answers ${response.status}`);
}

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) throw new Error("the connection ended before the answer did");
    const lines = (held + value).split("\n\n");
    held = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      const event = JSON.parse(line.slice("data: ".length));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

async function answer(turn, parts) {
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal: running.signal,
    body: JSON.stringify({
      messages,
      stream: true,
      truncation: "auto",
      temperature: Number(at("temperature").value),
      top_k: Math.max(0, Math.round(Number(at("top-k").value) || 0)),
    }),
  });
  let finish = null;
  for await (const event of events(await refuseErrors(response))) {
    for (const choice of event.choices) {
      finish = choice.finish_reason || finish;
      for (const part of choice.delta.parts || []) {
        showPart(turn, part);
        keepPart(parts, part);
      }
    }
  }
  if (finish === "length") turn.append(element("p", "note", "(the answer was cut off: there is no more room)"));
}

function busy(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("conversation").setAttribute("aria-busy", String(is));
}

async function ask() {
  const question = at("question").value.trim();
  if (!question || running) return;
  say("");
  const parts = [];
  const conversation = messages; // a new one may begin while this answer comes
  const asked = showTurn("user", "You");
  showPart(asked, { kind: "text", text: question });
  conversation.push({ role: "user", content: question });
  at("question").value = "";
  const turn = showTurn("assistant", "Model");
  const own = new AbortController();
  running = own;
  busy(true);
  try {
    await answer(turn, parts);
  } catch (error) {
    if (conversation !== messages) return;
    if (own.signal.aborted) turn.append(element("p", "note", "(stopped)"));
    else {
      say(`No answer: ${error.message}`);
      asked.remove();
      turn.remove();
      conversation.pop();
      at("question").value = at("question").value || question;
      return;
    }
  } finally {
    if (running === own) {
      running = null;
      busy(false);
    }
  }
  conversation.push({ role: "assistant", content: null, parts });
}

function stop() {
  if (running) running.abort();
}

function begin() {
  stop();
  running = null;
  busy(false);
  messages = [];
  say("");
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  at("hint").hidden = false;
  at("question").focus();
}

at("form").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    ask();
  }
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") stop();
});
at("stop").addEventListener("click", stop);
at("new").addEventListener("click", begin);
at("temperature").addEventListener("input", () => {
  at("shown-temperature").textContent = at("temperature").value;
});
async function greet() {
  try {
    const response = await refuseErrors(await fetch("v1/models", { headers: headers() }));
    at("model").textContent = (await response.json()).data[0].id;
    say("");
  } catch (error) {
    say(error.message);
  }
}

at("token").value = sessionStorage.getItem("token") || "";
at("token").addEventListener("change", () => {
  sessionStorage.setItem("token", at("token").value);
  greet();
});
greet();
at("question").focus();
