"""What a learner has done: verdicts, milestones and the log, computed and remembered. Imports no PyTorch."""

from __future__ import annotations

import ast
import contextlib
import functools
import hashlib
import importlib.metadata
import itertools
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from nanochat.common import base_dir, write_atomically
from nanochat.learning.hybrid import Source, Unjudgeable, find, is_unwritten, read_source
from nanochat.learning.report import Report
from nanochat.learning.steps import ALL_STEPS, FIRST_ROUND, SECOND_ROUND, STEPS, Round, Step, step_named
from nanochat.models import ROOT, shown

SKELETON = ROOT / "skeleton" / "normans_gpt.py"
STATIONS = {  # milestone: stage of a rehearsal
    "Model Initializes": "build",
    "Forward Pass Works": "forward",
    "Backward Pass Works": "backward",
    "Training Step Completes": "step",
    "Loss Decreases": "learn",
    "Generation Works": "generate",
    "Matches Reference": "match",
}
MILESTONES = (
    "Setup Complete",
    "Model Initializes",
    "Forward Pass Works",
    "Backward Pass Works",
    "Training Step Completes",
    "Loss Decreases",
    "Full Pipeline",
    "Generation Works",
    "Matches Reference",
)
SECOND_STATIONS = {
    "Same Ids": "tokenizer",
    "Trains Like the Book": "match",
    "Same Tokens": "cache",
    "Goes On After a Stop": "resume",
}
LOG_BEGINS = """# Learning log

When a step passes for the first time, an entry is added at the end, with the questions that belong to it.
Nothing that stands here is ever changed: write your answers below the questions, and whatever else you want.
"""


def checksum(*parts: str | bytes) -> str:
    """SHA-256 of the parts, each with its length, so that no two lists of parts give the same text."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(b"%d:" % len(raw) + raw)
    return total.hexdigest()


@functools.cache
def fingerprint_of_the_judge() -> str:
    """A checksum of everything but the learner's file that a verdict or a rehearsal depends on."""
    package = ROOT / "nanochat"
    files = [*sorted((package / "learning").glob("*.py")), *sorted((ROOT / "lit/mistakes").glob("*.toml"))]
    homes = {f"{step.home}.py" for step in ALL_STEPS if "/" not in step.home}
    files += [package / name for name in sorted(homes | {"loss.py", "models.py"})]
    return checksum(importlib.metadata.version("torch"), *(path.read_bytes() for path in files))


def keys_of(learner: Source, steps: Sequence[Step] = STEPS) -> dict[str, str]:
    """For each step a checksum of what its verdict depends on. Raises Unjudgeable for a file with errors."""
    tree = learner.parse()
    functions: dict[str, str] = {}
    for step in steps:
        node = find(tree, step.id)
        functions[step.id] = ast.dump(node) if node is not None else "missing"
        if node is not None:
            home = find(tree, step.id.rpartition(".")[0]) if "." in step.id else tree
            assert home is not None
            home.body.remove(node)
    rest = ast.dump(tree)
    return {
        step.id: checksum(
            fingerprint_of_the_judge(),
            rest,
            *(functions[name] for name in (step.id, *step.companions) if name in functions),
        )
        for step in steps
    }


Verdict = dict[str, Any]  # what nanochat.learning.court.Verdict.to_json gives
Ledger = dict[str, dict[str, Any]]
SECTIONS = ("steps", "passed", "hints", "rehearsal", "milestones")
FORMAT = 1


@dataclass
class Workshop:
    """The learner's folder for one round: the file, the log, and what is remembered about them."""

    folder: Path
    round: Round = FIRST_ROUND
    notes: list[str] = field(default_factory=list)  # what a person should be told

    @property
    def file(self) -> Path:
        """The learner's model, or the second round's file."""
        return self.folder / self.round.file

    @property
    def skeleton(self) -> Path:
        """What the file begins as."""
        return SKELETON.with_name(self.round.file)

    @property
    def log(self) -> Path:
        """The learner's log."""
        return self.folder / "log.md"

    @property
    def ledger(self) -> Path:
        """What is remembered."""
        return self.folder / "progress.json"

    def create(self) -> bool:
        """Put the skeleton there if there is no file yet; whether that was so. Never overwrites."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with self.file.open("xb") as file:
                file.write(self.skeleton.read_bytes())
        except FileExistsError:
            return False
        return True

    def keep_a_copy(self) -> Path:
        """A dated copy of the learner's file in kept/, under a name that is not taken."""
        kept = self.folder / "kept"
        kept.mkdir(parents=True, exist_ok=True)
        stamp = datetime.now().strftime("%Y-%m-%d-%H%M%S")
        for number in itertools.count(1):
            path = kept / f"{self.file.stem}-{stamp}{f'-{number}' if number > 1 else ''}.py"
            with contextlib.suppress(FileExistsError), path.open("xb") as file:
                file.write(self.file.read_bytes())
                return path
        raise AssertionError

    def recall(self) -> Ledger:
        """What is remembered; nothing, if the file is missing or damaged. A damaged one is set aside."""
        empty: Ledger = {name: {} for name in SECTIONS}
        try:
            data = json.loads(self.ledger.read_text(encoding="utf-8"))
            if data["format"] != FORMAT or not all(isinstance(data[name], dict) for name in SECTIONS):
                raise ValueError("it has another format")
            if not all({"key", "line", "verdict"} <= set(entry) for entry in data["steps"].values()):
                raise ValueError("an entry is incomplete")
        except FileNotFoundError:
            return empty
        except (OSError, ValueError, TypeError, KeyError) as error:
            aside = next(
                path
                for number in itertools.count(1)
                if not (path := self.folder / f"progress.json.damaged-{number}").exists()
            )
            os.replace(self.ledger, aside)
            reason = f"{type(error).__name__}: {error}" if isinstance(error, KeyError) else str(error)
            self.notes.append(
                f"{shown(self.ledger)} could not be read ({reason}); it is kept as {aside.name}, and "
                "progress is computed again"
            )
            return empty
        return {name: data[name] for name in SECTIONS}

    def remember(self, change: Callable[[Ledger], None]) -> None:
        """Read, change and write what is remembered."""
        ledger = self.recall()
        change(ledger)
        write_atomically(self.ledger, json.dumps({"format": FORMAT, **ledger}, indent=1) + "\n")

    def standing(self) -> dict[str, Verdict | None]:
        """The verdict on each step as the file is now; None where one is outdated or was never given.

        Raises Unjudgeable if the file cannot be read.
        """
        learner = read_source(self.file)
        keys, ledger = keys_of(learner, self.round.steps), self.recall()
        found: dict[str, Verdict | None] = {}
        for step in self.round.steps:
            node, entry = learner.find(step.id), ledger["steps"].get(step.id)
            if node is not None and is_unwritten(node):
                found[step.id] = unwritten(step, node.lineno)
                continue
            found[step.id] = None
            if entry is not None and entry["key"] == keys[step.id]:
                moved = entry["line"] != (node.lineno if node is not None else None)
                if entry["verdict"].get("status") == "passed" or not moved:
                    found[step.id] = entry["verdict"]
        return found

    def record(self, verdicts: Iterable[Verdict]) -> list[Step]:
        """Remember verdicts on the file as it is now; log and return what passes for the first time.

        That nothing could be judged is not remembered: a missing module may be installed meanwhile.
        """
        given = [verdict for verdict in verdicts if verdict["status"] != "not judged"]
        try:
            learner = read_source(self.file)
            keys = keys_of(learner, self.round.steps)
        except Unjudgeable:
            return []  # they are all about that error, and nothing to keep
        logged, today, new = self.logged_dates(), date.today().isoformat(), []

        def change(ledger: Ledger) -> None:
            for step_id, day in logged.items():
                ledger["passed"].setdefault(step_id, day)
            for verdict in given:
                step_id = verdict["step"]
                node = learner.find(step_id)
                line = node.lineno if node is not None else None
                ledger["steps"][step_id] = {"key": keys[step_id], "line": line, "verdict": verdict}
                if verdict["status"] == "passed" and step_id not in ledger["passed"]:
                    ledger["passed"][step_id] = today
                    new.append((step_named(step_id), verdict.get("remark")))

        self.remember(change)
        self.write_log(new, today)
        return [step for step, _ in new]

    def logged_dates(self) -> dict[str, str]:
        """Steps that have an entry in the log, with its date."""
        with contextlib.suppress(OSError):
            text = self.log.read_text(encoding="utf-8", errors="replace")
            entries = re.findall(r"^## (\S+): .*\n+Passed on (\d{4}-\d\d-\d\d)", text, flags=re.MULTILINE)
            return dict(entries)
        return {}

    def write_log(self, passed: list[tuple[Step, str | None]], today: str) -> None:
        """Append one entry for each step."""
        if not passed:
            return
        fresh = not self.log.exists() or not self.log.stat().st_size
        with self.log.open("a", encoding="utf-8") as log:
            if fresh:
                log.write(LOG_BEGINS)
            for step, remark in passed:
                log.write(f"\n## {step.id}: {step.title}\n\nPassed on {today}, phase {step.phase}.")
                log.write(f" {remark.rstrip('.')}.\n" if remark else "\n")
                for question in step.questions:
                    log.write(f"\n**{question}**\n\n…\n")

    def rehearsal(self) -> Report | None:
        """The report on the file as it is now, if one was made."""
        entry = self.recall()["rehearsal"]
        if self.round is SECOND_ROUND:
            entry = entry.get("second", {})
        if entry.get("key") != self.rehearsal_key():
            return None
        with contextlib.suppress(TypeError, KeyError):
            return Report(**entry["report"])
        return None

    def rehearsal_key(self) -> str:
        """A checksum of the file and of everything else that a rehearsal depends on."""
        with contextlib.suppress(OSError):
            return checksum(fingerprint_of_the_judge(), self.file.read_bytes())
        return ""

    def record_rehearsal(self, report: Report, key: str) -> None:
        """Remember a report on the file that had this key when the rehearsal began."""

        def change(ledger: Ledger) -> None:
            entry = {"key": key, "report": asdict(report)}
            ledger["rehearsal"].update({"second": entry} if self.round is SECOND_ROUND else entry)

        self.remember(change)

    def full_runs(self) -> list[tuple[str, str]]:
        """Recorded runs of --gpt=mine that evaluated and saved: tag, and checksum of the file."""
        found = []
        for path in sorted((base_dir() / "base_checkpoints").glob("*/meta_*.json")):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                meta = json.loads(path.read_text(encoding="utf-8"))["meta"]
                if meta["gpt"]["name"] == "mine" and meta["progress"]["val_bpb"] is not None:
                    found.append((path.parent.name, meta["gpt"]["sha256"]))
        return found

    def milestones(self) -> list[Milestone]:
        """All of the round, computed from verdicts, rehearsal and runs on record; new dates are kept."""
        if self.round is SECOND_ROUND:
            report = self.rehearsal() or Report(says="no rehearsal of this file yet: make learn ROUND=2")
            why = stopped_by(report)
            stations = SECOND_STATIONS.items()
            return self.dated({name: "" if at in report.reached else why for name, at in stations})
        try:
            standing = self.standing()
            missing = [step.id for step in STEPS if read_source(self.file).find(step.id) is None]
            unready = f"the file has no {missing[0]}" if missing else "GPTConfig does not pass its check"
        except Unjudgeable as reason:
            standing, missing, unready = {}, ["all"], str(reason)
        passed = [name for name, verdict in standing.items() if verdict and verdict["status"] == "passed"]
        report = self.rehearsal() or Report(says="no rehearsal of this file yet: make learn")
        runs = self.full_runs()
        now = hashlib.sha256(self.file.read_bytes()).hexdigest() if self.file.is_file() else None
        earlier = f"run {runs[-1][0]} is of an earlier version of the file: " if runs else ""
        reasons = {
            "Setup Complete": "" if not missing and "GPTConfig" in passed else unready,
            **{name: "" if at in report.reached else stopped_by(report) for name, at in STATIONS.items()},
            "Full Pipeline": "" if now in {of for _, of in runs} else f"{earlier}make train GPT=mine",
        }
        if len(passed) < len(STEPS):
            reasons["Matches Reference"] = f"{len(passed)} of {len(STEPS)} steps pass"
        return self.dated({name: reasons[name] for name in MILESTONES})

    def dated(self, reasons: dict[str, str]) -> list[Milestone]:
        """Milestones with their dates, from why each is not reached; an empty reason means that it is."""
        ledger, today = self.recall(), date.today().isoformat()
        reached = [name for name, reason in reasons.items() if not reason]
        dates = {name: ledger["milestones"].get(name, today) for name in reached}
        if not dates.items() <= ledger["milestones"].items():
            self.remember(lambda ledger: ledger["milestones"].update(dates))
        kept = {**ledger["milestones"], **dates}
        return [Milestone(name, not reason, kept.get(name), reason) for name, reason in reasons.items()]


@dataclass(frozen=True)
class Milestone:
    """One of the nine: whether the file as it is now reaches it, since when it was first reached, why not."""

    name: str
    reached: bool
    since: str | None
    reason: str


def stopped_by(report: Report) -> str:
    """Why a rehearsal went no further, in one line."""
    if report.stopped == "gap" and report.place:
        return f"{report.place[0]} is not written"
    return report.says or "the rehearsal's losses do not agree with the book's"


def unwritten(step: Step, line: int) -> Verdict:
    """The verdict on a function that nobody has begun."""
    return {
        "step": step.id,
        "status": "todo",
        "summary": f"{step.id} is not written yet",
        "next": f"Read {step.chapter}, or ask `python -m scripts.learn hint {step.id}`",
        "explanation": step.why,
        "line": line,
    }
