"""Records of declared experiments: read, and say whether they speak of the code as it is. No PyTorch."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nanochat import records
from nanochat.common import UserError
from nanochat.evidence.declared import DEVICES, Experiment, read_declaration, record_name
from nanochat.evidence.freshness import differences, reach
from nanochat.provenance import ROOT

NEEDED = ("experiment", "declaration", "declared", "started", "torch", "text", "code", "sizes")
KINDS = ("train", "time_decoding")


def read_record(one: Experiment, device: str = "cpu", root: Path = ROOT) -> dict[str, Any] | None:
    """An experiment's record, or None if there is none. Raises UserError, in one line, for a damaged one."""
    path = root / record_name(one, device)
    if not path.exists():
        return None
    advice = f"bring it back with git, or delete it and run python -m scripts.experiment --only={one.name}"
    return records.read_record(path, NEEDED, advice)


def why_stale(one: Experiment, record: dict[str, Any], root: Path = ROOT, text: str = "") -> list[str]:
    """The reasons for which a record does not speak of what is here; none if it does.

    text: the fingerprint of the corpus as it is here, "" where nobody has read it.
    """
    reasons = [] if record["declaration"] == one.checksum else ["its declaration has changed"]
    now: dict[str, str] = {}
    for kind in KINDS:
        if any(name.endswith(f".trials.{kind}") for name in record["code"]):
            now |= reach(("nanochat.evidence.trials", kind), root)
    if changed := differences(record["code"], now):
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        reasons.append(f"{', '.join(changed[:3])}{more} changed")
    try:
        here = version("torch")
    except PackageNotFoundError:
        here = ""  # the environment of the book's tools has none
    if here and record["torch"].split("+")[0] != here.split("+")[0]:
        reasons.append(f"it was run with torch {record['torch']}, here is {here}")
    if text and text not in record["text"]:
        reasons.append("the corpus is another")
    return reasons


def stale_answers(root: Path = ROOT) -> list[str]:
    """A line for each record that is stale. What `make check` prints; what was never run is on the page."""
    lines = []
    for one in read_declaration(root).experiments:
        for device in DEVICES:
            try:
                record = read_record(one, device, root)
                reasons = why_stale(one, record, root) if record else []
            except UserError as error:
                reasons = [str(error)]
            if reasons:
                lines.append(
                    f"{record_name(one, device)} is stale: {'; '.join(reasons)}. "
                    f"Run: python -m scripts.experiment --only={one.name}"
                )
    return lines
