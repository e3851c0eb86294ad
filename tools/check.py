"""Compare, lint and type, and change nothing. Complaints about tangled code name the chapter as well."""

import importlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tools.diff import describe
from tools.disk import make_plan
from tools.record import MANIFEST
from tools.tangle import Output

# Two environments, so two runs of mypy: product and its tests as the training side sees them, tools as the
# book's.
_TYPES = ["-m", "mypy", "--no-error-summary"]
_AS_BOOK = ["--python-version=3.13", f"--python-executable={sys.executable}", "--exclude=^tools/pictures/"]
COMMANDS = (
    ("ruff check", ["-m", "ruff", "check", "--quiet", "--output-format=concise", "."]),
    ("ruff format", ["-m", "ruff", "format", "--quiet", "--diff", "."]),
    ("mypy", _TYPES),
    ("mypy of the tools", [*_TYPES, *_AS_BOOK, "tools", "tests/book"]),
)

_PLACE = re.compile(r"^(?P<path>[^\s:]+):(?P<line>\d+):")
_DIFF_FILE = re.compile(r"^--- (?P<path>\S+)")
_DIFF_PLACE = re.compile(r"^@@ -(?P<line>\d+)(?:,(?P<count>\d+))? ")


def compare(root: Path, outputs: dict[str, Output]) -> list[str]:
    """Every difference between the book and the disk, as messages. Empty if there is none."""
    plan = make_plan(root, outputs)
    messages = [str(problem) for problem in plan.problems]
    told = set(plan.forbidden)
    for output in plan.write:
        if output.path in told:
            continue
        if not (root / output.path).exists():
            messages.append(
                f"{output.block.chapter}:{output.block.line}: {output.path} is missing. Write it: make tangle"
            )
            continue
        place, difference = describe(root, output)
        messages.append(
            f"{place.chapter}:{place.line}: {output.path} is not what the book says. make tangle writes "
            "what the book says (the file as it is can be had back). To keep what the file says, move it "
            f"into the chapter first.\n{difference}"
        )
    for path in plan.remove:
        if path not in told:
            messages.append(
                f"{path}: no block of the book writes this file. make tangle removes it, and keeps a copy."
            )
    if not plan.recorded and not messages:
        messages.append(f"{MANIFEST}: it is not what make tangle writes. Write it anew: make tangle")
    return messages


def stale_evidence(root: Path) -> list[str]:
    """Each answer whose experiment has to be run again. Named, not refused: running all takes hours."""
    if not (root / "nanochat" / "evidence").is_dir():
        return []
    # Not at the top, and by name: it belongs to what is checked, and has types of the other environment.
    stale: list[str] = importlib.import_module("nanochat.evidence.records").stale_answers(root)
    return stale


def refused_evidence(root: Path) -> list[str]:
    """Each record of a declared experiment that is damaged, or older than what declares it."""
    if not (root / "nanochat" / "evidence" / "declared.toml").is_file():
        return []
    refused: list[str] = importlib.import_module("nanochat.evidence.declared").refused_records(root)
    return refused


def quality(root: Path, outputs: dict[str, Output]) -> list[str]:
    """The names of the tools that complain, having passed on what they say."""
    python = root / ".venv" / "bin" / "python"
    failed = []
    with environment_of_tools(root) as environment, ThreadPoolExecutor() as pool:

        def ask(arguments: list[str]) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [str(python), *arguments],
                cwd=root,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                check=False,
            )

        answers = pool.map(
            ask, [arguments for _, arguments in COMMANDS]
        )  # all at once; the two mypy take long
        for (name, _), done in zip(COMMANDS, answers, strict=True):
            if done.returncode:
                failed.append(name)
                sys.stdout.write(annotate(done.stdout, outputs))
    return failed


@contextmanager
def environment_of_tools(root: Path) -> Iterator[dict[str, str]]:
    """Variables for ruff and mypy. Both end with an internal error where they may not write their caches."""
    if os.access(root, os.W_OK):
        yield dict(os.environ)
        return
    with tempfile.TemporaryDirectory() as caches:
        yield {**os.environ, "RUFF_CACHE_DIR": f"{caches}/ruff", "MYPY_CACHE_DIR": f"{caches}/mypy"}


def annotate(text: str, outputs: dict[str, Output]) -> str:
    """Add the chapter and line to each place in tangled code that a tool names, as complaint or in a diff."""
    annotated = []
    current: Output | None = None
    for line in text.splitlines():
        if match := _PLACE.match(line):
            output = outputs.get(match["path"].removeprefix("./"))
            line += f"  [{output.origin(int(match['line']))}]" if output else ""
        elif match := _DIFF_FILE.match(line):
            current = outputs.get(match["path"].removeprefix("./"))
        elif current and (match := _DIFF_PLACE.match(line)):
            last = int(match["line"]) + int(match["count"] or 1) - 1
            line += f"  [{current.origin(int(match['line']))} to {current.origin(last)}]"
        annotated.append(line + "\n")
    return "".join(annotated)
