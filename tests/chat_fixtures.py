"""Servers to talk to: one with a small random model, one that says what a script says."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import uvicorn

from nanochat.chat_server import Settings, build_app
from nanochat.chat_worker import Full, Worker
from nanochat.conversation import Part, render_answer
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.rows import Row
from nanochat.tokenizer import Tokenizer

CONTEXT = 96
TOKENIZER = Tokenizer([bytes([b]) for b in range(256)])
SETTINGS = Settings("tiny", CONTEXT, hosts=("127.0.0.1",))


def random_model() -> GPT:
    """A model that writes ASCII letters, marks of calls and ends, at random."""
    torch.manual_seed(1)
    shape = GPTConfig(CONTEXT, TOKENIZER.vocab_size, n_layer=1, n_head=2, n_kv_head=1, n_embd=16)
    model = GPT(shape)
    model.init_weights()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=weight.size(-1) ** -0.5)
    return model


class ScriptedWorker:
    """Says what `script` makes of the last question, a token each `pause` seconds; a Worker to the server."""

    def __init__(self, script: Callable[[str], list[Part]], pause: float = 0.0, most: int = 100) -> None:
        self.script, self.pause, self.most = script, pause, most
        self.rows: set[Row] = set()
        self.batch = SimpleNamespace(together=True)

    def submit(self, row: Row, listener: Callable[[list[int], str], None]) -> None:
        if len(self.rows) >= self.most:
            raise Full
        self.rows.add(row)
        threading.Thread(target=self._say, args=(row, listener), daemon=True).start()

    def _say(self, row: Row, listener: Callable[[list[int], str], None]) -> None:
        question = TOKENIZER.decode(row.prompt).rpartition("<|user_start|>")[2].partition("<|user_end|>")[0]
        tokens = list(render_answer(self.script(question), TOKENIZER).ids)[:-1]
        for token in tokens[: row.max_tokens]:
            time.sleep(self.pause)
            if row not in self.rows:
                return
            row.sequence.append(token)
            listener([token], "")
        self.rows.discard(row)
        listener([], "length" if len(tokens) > row.max_tokens else "stop")

    def cancel(self, row: Row) -> None:
        self.rows.discard(row)

    def load(self) -> tuple[int, int]:
        return len(self.rows), 0

    def close(self) -> None:
        self.rows.clear()


@contextmanager
def served(worker: Any, **changes: Any) -> Iterator[str]:
    """The address of a server in a thread of this process."""
    listening = socket.create_server(("127.0.0.1", 0), backlog=256)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)  # so that little fits into a socket
    app = build_app(worker, TOKENIZER, replace(SETTINGS, **changes))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(timeout=20)
        worker.close()


def real_worker(capacity: int = 8, queue: int = 100) -> Worker:
    """A worker with the random model."""
    return Worker(random_model(), capacity, queue, CONTEXT)


def say(question: str) -> list[Part]:
    """What the page is tested with: a call of the tool, hostile text, a long answer, an echo."""
    if question == "17 * 23?":
        return [Part("call", "17*23"), Part("output", "391"), Part("text", "It is 391.")]
    if question == "attack":
        return [
            Part("call", "<b>1</b>"),
            Part("text", "<img src=x onerror=alert(1)><script>alert(2)</script>"),
        ]
    if question == "long":
        return [Part("text", "word " * 10)]
    return [Part("text", f"You said: {question}")]


if __name__ == "__main__":
    with served(ScriptedWorker(say, pause=float(sys.argv[1])), context=4096, token=sys.argv[2]) as url:
        print(url, flush=True)
        sys.stdin.read()  # until whoever started this closes its end
