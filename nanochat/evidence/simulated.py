"""The table of what a recorded simulation found. Imports nothing heavy."""

from __future__ import annotations

from typing import Any


def tables(record: dict[str, Any]) -> str:
    """What a recorded simulation found, as a table."""
    lines = ["| what happens | how often, at the assumed spreads |", "|---|---|"]
    lines += [f"| {name} | {rate:.3f} |" for name, rate in record["rates"].items()]
    return "\n".join(lines)
