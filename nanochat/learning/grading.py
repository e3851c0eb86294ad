"""Judge many learners' files, each by itself, and write a table. Imports no PyTorch."""

from __future__ import annotations

import csv
import io
import shutil
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from nanochat.common import UserError, write_atomically
from nanochat.learning.court import Judge, Verdict
from nanochat.learning.hybrid import round_of_file
from nanochat.learning.steps import FIRST_ROUND, Round

FILE_LIMIT = 300.0  # seconds by the clock for one file
COLUMNS = ("file", "round", "passed", "failed", "todo", "not judged", "mistakes", "why not judged", "seconds")


@dataclass
class Grade:
    """What a file has come to."""

    name: str
    verdicts: list[Verdict] = field(default_factory=list)
    seconds: float = 0.0
    stopped: str = ""
    round: Round = FIRST_ROUND

    def row(self) -> dict[str, str]:
        """One line of the table, by column."""
        states = [verdict.status for verdict in self.verdicts]
        failed = states.count("failed") + states.count("error")
        done = states.count("passed"), failed, states.count("todo")
        named = [f"{v.step}: {v.mistake}" for v in self.verdicts if v.mistake]
        reasons = dict.fromkeys(v.difference or "" for v in self.verdicts if v.status == "not judged")
        left = len(self.round.steps) - sum(done)
        values = (self.name, self.round.number, *done, left, "; ".join(named))
        why = "; ".join(filter(None, [*reasons, self.stopped]))
        return dict(zip(COLUMNS, map(str, (*values, why, round(self.seconds, 1))), strict=True))


def find_files(folder: Path) -> list[Path]:
    """The Python files of a folder and of its folders. Raises UserError if there are none."""
    found = sorted([*folder.glob("*.py"), *folder.glob("*/*.py")])
    if not found:
        raise UserError(f"{folder} has no Python file, nor has a folder in it; grade wants learners' files")
    return found


def grade_file(path: Path, name: str, limit: float = FILE_LIMIT) -> Grade:
    """Judge one file alone, in a copy. Never raises for what it contains."""
    began, grade = time.monotonic(), Grade(name, round=round_of_file(path))
    with tempfile.TemporaryDirectory(prefix="grade-", ignore_cleanup_errors=True) as folder:
        copy = Path(folder) / grade.round.file
        try:
            shutil.copyfile(path, copy)
        except OSError as error:
            grade.stopped = f"it cannot be read: {error.strerror}"
            return grade
        with closing(Judge(guarded=True)) as court:
            for verdict in court.judge(copy, [step.id for step in grade.round.steps]):
                text = (verdict.difference or "").replace(str(copy), name)
                grade.verdicts.append(Verdict(**{**verdict.to_json(), "difference": text or None}))
                if time.monotonic() - began > limit:
                    grade.stopped = f"it took longer than {limit:g} s altogether"
                    break
    grade.seconds = time.monotonic() - began
    return grade


def grade_folder(folder: Path, at_once: int = 2) -> Iterator[Grade]:
    """Judge all files of a folder, in the order of their names, so many at a time."""
    files = find_files(folder)
    with ThreadPoolExecutor(at_once) as pool:
        yield from pool.map(lambda path: grade_file(path, str(path.relative_to(folder))), files)


def write_tables(grades: list[Grade], target: Path) -> tuple[Path, Path]:
    """Write target.csv and target.md."""
    rows = [grade.row() for grade in grades]
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _harmless(value) for name, value in row.items()} for row in rows)
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(tuple(row.values()) for row in rows)]
    table = "\n".join(f"| {' | '.join(cell.replace('|', ' ') for cell in line)} |" for line in lines)
    made = target.with_suffix(".csv"), target.with_suffix(".md")
    for path, content in zip(made, (text.getvalue(), table + "\n"), strict=True):
        write_atomically(path, content)
    return made


def _harmless(value: str) -> str:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{value}" if value.startswith(("=", "+", "-", "@")) else value
