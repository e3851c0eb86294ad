"""What a rehearsal is made of and what it tells, and how to start one. Imports no PyTorch."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from nanochat import system
from nanochat.models import ROOT

STAGES = ("build", "forward", "backward", "step", "learn", "match", "generate")
TEXT = (
    "Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived "
    "in Liberty, and dedicated to the proposition that all men are created equal. Now we are engaged in a "
    "great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long "
    "endure. We are met on a great battle-field of that war. We have come to dedicate a portion of that "
    "field, as a final resting place for those who here gave their lives that that nation might live. It "
    "is altogether fitting and proper that we should do this. But, in a larger sense, we can not "
    "dedicate, we can not consecrate, we can not hallow this ground. The brave men, living and dead, who "
    "struggled here, have consecrated it, far above our poor power to add or detract. The world will "
    "little note, nor long remember what we say here, but it can never forget what they did here. It is "
    "for us the living, rather, to be dedicated here to the unfinished work which they who fought here "
    "have thus far so nobly advanced."
)
SHAPE = {"sequence_len": 32, "vocab_size": 256, "n_layer": 2, "n_head": 4, "n_kv_head": 2, "n_embd": 64}
BATCH, STEPS_TO_TAKE, SEED = 8, 30, 42
ENOUGH = 1.0  # nats by which the loss must fall to count as learning
PROMPT, ANSWER = "we can not ", 24  # what generate continues, and by how many bytes


@dataclass
class Report:
    """How far a rehearsal came, and what stopped it. All fields are JSON; it grows meanwhile."""

    reached: list[str] = field(default_factory=list)  # of "build", "forward", "backward", …, in this order
    losses: list[float] = field(default_factory=list)  # nats per byte, one for each training step
    book_losses: list[float] = field(default_factory=list)  # the book's model from the same seed
    notes: list[str] = field(default_factory=list)  # what ran, a line for each station of the second round
    text: str = ""  # what generate wrote
    agreement: str = ""  # how the losses compare with the book's; empty until that is known
    stopped: str = ""  # empty, or "gap", "raised", "wrong", "died", "unreadable"
    says: str = ""  # the message of whatever stopped it
    frames: list[tuple[str, int]] = field(default_factory=list)  # the learner's functions and lines in it
    seconds: float = 0.0
    finished: bool = False

    @property
    def place(self) -> tuple[str, int] | None:
        """The innermost function and line of the learner's file that took part."""
        return self.frames[-1] if self.frames else None


class Wrong(Exception):
    """Something ran and gave what cannot be right."""


@dataclass
class Rehearsal:
    """A rehearsal that is running in a child process."""

    path: Path
    folder: tempfile.TemporaryDirectory[str]
    process: subprocess.Popen[bytes]
    limit: float

    @classmethod
    def start(
        cls, path: Path, trace: bool = False, quiet: bool = False, limit: float = 60.0, second: bool = False
    ) -> Self:
        """Start one; its output goes where ours goes, or nowhere if `quiet`. limit: seconds for one stage.

        second: play the second round's.
        """
        folder = tempfile.TemporaryDirectory(prefix="rehearsal-")
        names = [str(Path(folder.name) / name) for name in ("report.json", "hang.txt")]
        process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "nanochat.learning.rehearsal", str(path), *names, str(limit)),
                *(["--trace"] if trace else []),
                *(["--second"] if second else []),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL if quiet else None,
            stderr=subprocess.DEVNULL if quiet else None,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
            start_new_session=True,
        )
        return cls(path, folder, process, limit)

    def finish(self) -> Report:
        """Wait for the end, however it comes."""
        try:
            code: int | None = self.process.wait(timeout=300 + len(STAGES) * self.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self.stop()
        folder = Path(self.folder.name)
        report = Report()
        with contextlib.suppress(OSError, ValueError, TypeError):
            report = Report(**json.loads((folder / "report.json").read_text(encoding="utf-8")))
        if not report.finished:
            hang = folder / "hang.txt"
            self.explain_death(report, code, hang.read_text(encoding="utf-8") if hang.exists() else "")
        self.folder.cleanup()
        return report

    def explain_death(self, report: Report, code: int | None, notes: str) -> None:
        """Say in the report why the process ended before the rehearsal did."""
        lines = re.findall(r'File "(.*)", line (\d+) in (\S+)', notes)
        report.frames = [(name, int(n)) for file, n, name in reversed(lines) if file == str(self.path)]
        report.stopped = "died"
        if "Timeout (" in notes or code is None:
            report.says = f"it was still running after {self.limit:g} s: a loop that never ends?"
        elif code < 0:
            report.says = f"the process was killed by {signal.Signals(-code).name}"
        else:
            report.says = f"the process ended itself with exit status {code}; a function must return"

    def stop(self) -> None:
        """End the child and all it has started."""
        system.end_with_children(self.process)
