"""Programs run inside of a test's process: fast, and their exceptions keep their tracebacks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from unittest.mock import patch

from nanochat.common import run_program


def run_main(main: Callable[[], None], *arguments: str) -> int:
    """Call a script's main with these arguments, as its last lines do; returns the exit status."""
    with patch.object(sys, "argv", ["program", *arguments]):
        try:
            run_program(main)
        except SystemExit as end:
            return int(end.code or 0)
    return 0
