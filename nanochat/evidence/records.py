"""Records of experiments and their trials: read, write, and say whether they are fresh. No PyTorch."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from nanochat import records
from nanochat.common import UserError, base_dir, write_atomically
from nanochat.evidence.experiments import EXPERIMENTS, Experiment
from nanochat.evidence.freshness import changed_since
from nanochat.provenance import ROOT, Book, read_book

NOT_RUN = "not run"
NEEDED = ("experiment", "configuration", "code", "seeds", "trials", "findings", "numbers")


def record_path(name: str, large: bool, root: Path = ROOT) -> Path:
    """Where an experiment's record is kept."""
    return root / "results" / f"evidence-{name}{'-cuda' if large else ''}.json"


def read_record(path: Path) -> dict[str, Any] | None:
    """A record, or None if there is none. Raises UserError, in one line, for a damaged one."""
    if not path.exists():
        return None
    name = path.stem.removeprefix("evidence-").removesuffix("-cuda")
    advice = f"bring it back with git, or delete it and run python -m scripts.experiment {name}"
    return records.read_record(path, NEEDED, advice)


def why_stale(one: Experiment, large: bool, book: Book, root: Path = ROOT) -> list[str]:
    """The reasons for which a record does not speak of the code as it is; none if it does."""
    record = read_record(record_path(one.name, large, root))
    if record is None:
        return [NOT_RUN]
    reasons = changed_since(record["code"], book)
    if record["configuration"] != one.configuration(large):
        reasons.append("its settings have changed")
    return reasons


def state_of(reasons: list[str]) -> str:
    """A record's state in words, from what `why_stale` found."""
    return reasons[0] if reasons == [NOT_RUN] else f"stale: {'; '.join(reasons)}" if reasons else "fresh"


def stale_answers(root: Path = ROOT) -> list[str]:
    """A line for each answer whose evidence is missing, damaged or stale. What `make check` prints."""
    book, lines = read_book(root), []
    for one in EXPERIMENTS:
        for large in (False, True):
            if large and not record_path(one.name, large, root).exists():
                continue
            try:
                reasons = why_stale(one, large, book, root)
            except UserError as error:
                reasons = [str(error)]
            if reasons:
                where = "the evidence" + (" on CUDA" if large else "")
                lines.append(
                    f"lit/{one.answer}: {where} is {state_of(reasons)}. "
                    f"Run: python -m scripts.experiment {one.name}"
                )
    return lines


def trial_path(identity: dict[str, Any]) -> Path:
    """Where a finished trial is kept; `identity` is all that decides its outcome."""
    text = json.dumps(identity, sort_keys=True)
    return base_dir() / "evidence" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"


def stored_trial(identity: dict[str, Any]) -> dict[str, Any] | None:
    """The outcome of a finished trial, or None. A file that cannot be read counts as none."""
    try:
        kept = json.loads(trial_path(identity).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept["outcome"] if isinstance(kept, dict) and kept.get("identity") == identity else None


def store_trial(identity: dict[str, Any], outcome: dict[str, Any]) -> None:
    """Keep the outcome of a finished trial."""
    write_atomically(trial_path(identity), json.dumps({"identity": identity, "outcome": outcome}) + "\n")
