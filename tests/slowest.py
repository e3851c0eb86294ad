"""Name the slowest tests of several runs of pytest, at the end of all.

    TIMES=times.jsonl python -m pytest tests/book; TIMES=times.jsonl python -m pytest tests
    python tests/slowest.py times.jsonl

The last line needs no environment. Importing this imports nothing but the standard library.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

VARIABLE = "TIMES"
SHOWN = 10


class Times:
    """Add up the seconds of each test, its fixtures included, and append them to a file at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Setup, call and teardown of a test each make a report; those of workers arrive here too."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        """Append a line for each test."""
        played = os.environ.get("NANOCHAT_MACHINE", "")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            for name, seconds in self.seconds.items():
                file.write(json.dumps([seconds, f"{name} ({played})" if played else name]) + "\n")


def register(config: Any) -> None:
    """Take times if $TIMES names a file; in the process that hears of all tests, not in its workers."""
    if os.environ.get(VARIABLE) and not os.environ.get("PYTEST_XDIST_WORKER"):
        config.pluginmanager.register(Times(Path(os.environ[VARIABLE])))


def table(text: str) -> str:
    """The slowest of the recorded tests, and how many there are."""
    times = sorted((json.loads(line) for line in text.splitlines()), reverse=True)
    lines = [f"{seconds:7.1f} s  {name}" for seconds, name in times[:SHOWN]]
    return "\n".join([f"the slowest of {len(times):,} tests", *lines])


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8")))
