"""Have a learner's file judged, in a process that may die of it. Imports no PyTorch."""

import contextlib
import json
import os
import queue
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
from nanochat.learning.hybrid import Source, Unjudgeable, home_of, read_source
from nanochat.learning.steps import STEPS, Step, step_named

START_LIMIT = 120.0  # seconds a worker may take to import torch
ANSWER_LIMIT = 120.0  # seconds after the learner's code has run in which the worker must have answered


@dataclass(frozen=True)
class Verdict:
    """What the judge says about one step. All fields are JSON."""

    step: str
    status: str  # "passed", "failed", "todo", "error", or "not judged" where the file lets nothing be judged
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


@dataclass(frozen=True)
class Arrival:
    """What happened when a file was imported as it is. All fields are JSON."""

    says: str = ""  # why nothing in the file can be judged; empty if all is well
    printed: str = ""  # what the file printed meanwhile
    seconds: float = 0.0


def not_judged(step: Step, text: str) -> Verdict:
    """The verdict on a step of a file in which nothing can be judged."""
    return Verdict(
        step=step.id,
        status="not judged",
        summary=f"{step.id} is not judged",
        next="No step is judged before that is repaired",
        difference=text,
    )


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
    ready: bool = False

    @classmethod
    def start(cls, guarded: bool) -> Self:
        """A worker that is importing torch, and will say so."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [
                *(sys.executable, "-c", "from nanochat.learning.judge import serve; serve()"),
                *(["--guarded"] if guarded else []),
            ],
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
    line = next(iter(system.lines_noted(last_words, Path(path))), None)
    place = f" at {path}:{line}" if line else ""
    if system.was_out_of_time(code, last_words):
        text = f"it was still running after {limit:g} s{place}: a loop that never ends?"
    elif code is not None and code < 0:
        text = f"the process was killed by signal {signal.Signals(-code).name}{place}"
    else:
        text = f"the process ended with exit status {code}{place}; the function must return, not exit"
    return cannot_be_judged(step, text, line)


class Judge:
    """Judges files in a worker process that is kept between calls. Use it in a `with`."""

    def __init__(self, time_limit: float = 5.0, guarded: bool = False) -> None:
        """time_limit: seconds on the processor that one step, or the import of the file, may take.

        guarded: let the file start no process, write no file and read no solution.
        """
        self.guarded = guarded
        self.time_limit = time_limit
        self.arrival = Arrival()  # what happened when the last file was imported
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
        """Yield a verdict for each step (default: the first round's). Raises KeyError for an unknown one."""
        chosen = [step_named(name) for name in steps] if steps is not None else list(STEPS)
        try:
            learner = read_source(Path(source_path))
            learner.parse()
            self.arrival = self._import(Path(source_path).absolute())
        except Unjudgeable as reason:
            self.arrival = Arrival(str(reason))
        if self.arrival.says:
            yield from (not_judged(step, self.arrival.says) for step in chosen)
            return
        for step in chosen:
            yield self._judge_step(read_source(home_of(step)), learner, step)

    def _import(self, path: Path) -> Arrival:
        """Have a file imported as it is. Raises Unjudgeable if nobody can tell what happened."""
        answer = self._ask({"arriving": str(path)})
        if answer is None:
            raise Unjudgeable(f"{path}: importing the file ended the judge's own process: {self._bury()[1]}")
        return Arrival(**answer)

    def _judge_step(self, book: Source, learner: Source, step: Step) -> Verdict:
        began = time.monotonic()
        sources = {"book": (book.path, book.text), "learner": (learner.path, learner.text)}
        answer = self._ask({**sources, "step": step.id})
        if answer is not None:
            return Verdict(**answer)
        verdict = _explain_death(step, learner.path, *self._bury(), self.time_limit)
        return replace(verdict, seconds=round(time.monotonic() - began, 3))

    def _ask(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """What the worker says, or None if it has died. Raises Unjudgeable if none can be started."""
        if self._worker is None:
            self._worker = _Worker.start(self.guarded)
        if not self._worker.ready:
            if self._worker.hear(START_LIMIT) is None:
                words = self._bury()[1].strip()[-500:]
                raise Unjudgeable(f"the judge's own process does not start: {words}")
            self._worker.ready = True
        self._worker.ask({**request, "time_limit": self.time_limit})
        return self._worker.hear(system.CLOCK * self.time_limit + ANSWER_LIMIT)

    def _bury(self) -> tuple[int | None, str]:
        """Forget a worker that is dead, or silent: its exit status, and its last words."""
        assert self._worker is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._worker.process.wait(timeout=1.0)
        code = self._worker.process.poll()
        words = self._worker.bury()
        self._worker = None
        return code, words


def judge(
    source_path: Path | str,
    steps: Sequence[str] | None = None,
    time_limit: float = 5.0,
) -> list[Verdict]:
    """Judge a model file against the book's: one verdict for each step, the first round's by default.

    Never raises for anything the file contains. Raises KeyError for a step that does not exist.
    """
    with Judge(time_limit) as court:
        return list(court.judge(source_path, steps))
