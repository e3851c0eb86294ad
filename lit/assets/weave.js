// What a reader of the woven book can switch. Everything works without it, except that answers then open one by one.
(function () {
  "use strict";
  const key = "book:answers-open";
  let open = false;
  try { open = localStorage.getItem(key) === "yes"; } catch { /* a browser that keeps nothing */ }

  const answers = () => document.querySelectorAll("details.answer");
  const boxes = () => document.querySelectorAll(".answers-switch input");

  function apply(wanted) {
    open = wanted;
    answers().forEach((answer) => { answer.open = wanted; });
    boxes().forEach((box) => { box.checked = wanted; });
    try { localStorage.setItem(key, wanted ? "yes" : "no"); } catch { /* then for this page only */ }
  }

  // A link to a fragment means its code. Details that hold it, or are held by it, open.
  function reveal() {
    const id = decodeURIComponent(location.hash.slice(1));
    const target = id && document.getElementById(id);
    if (!target) return;
    for (let at = target; at; at = at.parentElement) if (at.matches("details")) at.open = true;
    if (target.matches(".fragment")) {
      target.querySelectorAll(":scope > details.answer").forEach((answer) => { answer.open = true; });
    }
    target.scrollIntoView();
  }

  // What scrolls sideways must be reached by keyboard; what does not is no stop on the way.
  function letKeyboardScroll() {
    document.querySelectorAll(".formula, .md-typeset__scrollwrap").forEach((box) => {
      if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
      else box.removeAttribute("tabindex");
    });
  }

  function start() {
    letKeyboardScroll();
    window.addEventListener("load", () => setTimeout(letKeyboardScroll));
    window.addEventListener("resize", letKeyboardScroll);
    document.querySelectorAll(".answers-switch").forEach((place) => {
      const count = Number(place.dataset.functions);
      const label = document.createElement("label");
      const box = document.createElement("input");
      box.type = "checkbox";
      box.checked = open;
      box.addEventListener("change", () => apply(box.checked));
      const what = count === 1 ? "one function" : `${count} functions`;
      label.append(box, " Show the code of them all, in every chapter");
      place.append(`This chapter has ${what} that you can write yourself; the book's code is folded.`, label);
    });
    if (open) answers().forEach((answer) => { answer.open = true; });
    reveal();
    window.addEventListener("hashchange", reveal);
    window.addEventListener("beforeprint", () => answers().forEach((answer) => { answer.open = true; }));
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
