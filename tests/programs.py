"""Programs run inside of a test's process: fast, and their exceptions keep their tracebacks."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
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


def answer(main: Callable[[], None], *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a process of its own would have answered: status, and what was printed."""
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        status = run_main(main, *arguments)
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())
