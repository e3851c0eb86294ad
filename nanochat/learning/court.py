"""Have a model file judged, in a process that may die of it. Imports no PyTorch."""

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Self

from nanochat import system
from nanochat.learning.hybrid import BOOK_PATH, Source, Unjudgeable, read_source
from nanochat.learning.steps import STEPS, Step, step_named

START_LIMIT = 120.0  # seconds a worker may take to import torch
ANSWER_LIMIT = 120.0  # seconds after the learner's code has run in which the worker must have answered


@dataclass(frozen=True)
class Verdict:
    """What the judge says about one step. All fields are JSON."""

    step: str
    status: str  # "passed", "failed", "todo" or "error"
    summary: str  # one sentence
    next: str  # what to do now
    difference: str | None = None  # the first thing that differs, with the value seen and wanted
    magnitude: float | None = None  # by how much, where that is a number
    mistake: str | None = None  # the name of the mistake it looks like; two are joined by " + "
    explanation: str | None = None  # what that mistake does
    remark: str | None = None  # why another way of writing it is the same
    line: int | None = None  # where the function, or the error, stands in the learner's file
    printed: str | None = None  # what the learner's function printed
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """A dictionary for json.dumps; Verdict(**it) is the verdict again."""
        return asdict(self)


def cannot_be_judged(step: Step, text: str, line: int | None = None) -> Verdict:
    """The verdict on a step that nothing else can be said about."""
    return Verdict(
        step=step.id,
        status="error",
        summary=f"{step.id} cannot be judged",
        next="Repair that first, then check again",
        difference=text,
        line=line,
    )


@dataclass
class _Worker:
    """A process that judges, and what it has said."""

    process: subprocess.Popen[str]
    errors: IO[bytes]
    answers: "queue.Queue[str | None]" = field(default_factory=queue.Queue)

    @classmethod
    def start(cls) -> Self:
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-c", "from nanochat.learning.judge import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            encoding="utf-8",
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p)},
            start_new_session=True,
        )
        worker = cls(process, errors)
        threading.Thread(target=worker._listen, daemon=True).start()
        return worker

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError, OSError):
            for line in self.process.stdout:
                self.answers.put(line)
        self.answers.put(None)

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next answer, or None if the worker died or stays silent."""
        try:
            line = self.answers.get(timeout=seconds)
        except queue.Empty:
            return None
        return None if line is None else json.loads(line)

    def ask(self, request: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(OSError):  # a dead worker is noticed when it does not answer
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()

    def bury(self) -> str:
        """Stop the process and all it has started; returns what it wrote to its standard error."""
        system.end_with_children(self.process)
        self.errors.seek(0)
        text = self.errors.read().decode("utf-8", errors="replace")
        self.errors.close()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError, ValueError):
                if pipe is not None:
                    pipe.close()
        return text


def _explain_death(step: Step, path: str, code: int | None, last_words: str, limit: float) -> Verdict:
    frames = re.findall(r'File "(.*)", line (\d+) in (\S+)', last_words)
    line = next((int(number) for file, number, _ in frames if file == path), None)
    place = f" at {path}:{line}" if line else ""
    if "Timeout (" in last_words or code is None:
        text = f"it was still running after {limit:g} s{place}: a loop that never ends?"
    elif code < 0:
        text = f"the process was killed by signal {signal.Signals(-code).name}{place}"
    else:
        text = f"the process ended with exit status {code}{place}; the function must return, not exit"
    return cannot_be_judged(step, text, line)


class Judge:
    """Judges files in a worker process that is kept between calls. Use it in a `with`."""

    def __init__(self, book_path: Path = BOOK_PATH, time_limit: float = 10.0) -> None:
        """time_limit: seconds that one step of the learner's code may run."""
        self.book_path = book_path
        self.time_limit = time_limit
        self._worker: _Worker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.bury()
            self._worker = None

    def judge(self, source_path: Path | str, steps: Sequence[str] | None = None) -> Iterator[Verdict]:
        """Yield a verdict for each step (default: all), as they come. Raises KeyError for an unknown one."""
        chosen = [step_named(name) for name in steps] if steps is not None else list(STEPS)
        try:
            learner = read_source(Path(source_path))
            learner.parse()
            book = read_source(self.book_path)
        except Unjudgeable as reason:
            yield from (cannot_be_judged(step, str(reason)) for step in chosen)
            return
        for step in chosen:
            yield self._judge_step(book, learner, step)

    def _judge_step(self, book: Source, learner: Source, step: Step) -> Verdict:
        began = time.monotonic()
        if self._worker is None:
            self._worker = _Worker.start()
            if self._worker.hear(START_LIMIT) is None:
                words = self._worker.bury()
                self._worker = None
                text = f"the judge's own process does not start: {words.strip()[-500:]}"
                return cannot_be_judged(step, text)
        sources = {"book": (book.path, book.text), "learner": (learner.path, learner.text)}
        self._worker.ask({**sources, "step": step.id, "time_limit": self.time_limit})
        answer = self._worker.hear(self.time_limit + ANSWER_LIMIT)
        if answer is not None:
            return Verdict(**answer)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.process.wait(timeout=1.0)
        code = self._worker.process.poll()
        verdict = _explain_death(step, learner.path, code, self._worker.bury(), self.time_limit)
        self._worker = None
        return replace(verdict, seconds=round(time.monotonic() - began, 3))


def judge(
    source_path: Path | str,
    steps: Sequence[str] | None = None,
    time_limit: float = 10.0,
    book_path: Path = BOOK_PATH,
) -> list[Verdict]:
    """Judge a model file against the book's: one verdict for each step, all eighteen by default.

    Never raises for anything the file contains. Raises KeyError for a step that does not exist.
    """
    with Judge(book_path, time_limit) as court:
        return list(court.judge(source_path, steps))
