"""What a chapter shows of a session with Python, or of what a program prints, is what happens."""

from __future__ import annotations

import doctest
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from nanochat.dataset import prepare_sotu
from tests.programs import run_main

LIT = Path(__file__).resolve().parents[1] / "lit"
PAGES = sorted(LIT.rglob("*.md"))
PRINTED = re.compile(r"^<!-- printed by: python -m (.+?) -->\n\n```text\n(.*?)^```$", re.M | re.S)
SESSION = re.compile(r"^```pycon\n(.*?)^```$", re.M | re.S)


def session(text: str) -> str:
    """A page with nothing left but what is typed into Python and what comes back, on the lines they have."""
    kept = [""] * (text.count("\n") + 1)
    for match in SESSION.finditer(text):
        first = text.count("\n", 0, match.start(1))
        for number, line in enumerate(match[1].splitlines()):
            kept[first + number] = line
    return "\n".join(kept)


def transcripts() -> Iterator[tuple[str, str, str]]:
    """Page, command behind `python -m`, and what it is said to print."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- printed by:") == len(PRINTED.findall(text)), page.name
        for command, printed in PRINTED.findall(text):
            yield page.name, command, printed


def with_gaps(printed: str) -> re.Pattern[str]:
    """The text as a pattern: a line of three dots stands for any lines."""
    lines = [r"(?:.*\n)*?" if line == "…" else re.escape(line) + r"\n" for line in printed.splitlines()]
    return re.compile("".join(lines))


@pytest.fixture(scope="module")
def speeches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The corpus of the book, and nothing else, in a base folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(tmp_path_factory.mktemp("shown")))
        prepare_sotu()
        threads = torch.get_num_threads()
        yield
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("page", "command", "printed"), [*transcripts()], ids=lambda text: text.split("\n")[0]
)
def test_a_program_prints_what_the_chapter_shows(
    page: str, command: str, printed: str, speeches: None, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = shlex.split(command)
    status = run_main(importlib.import_module(module).main, *arguments)
    out, err = capsys.readouterr()
    assert status == 0, err
    assert with_gaps(printed).fullmatch(out), f"{page} does not show what python -m {command} prints:\n{out}"


@pytest.mark.parametrize(
    "page", [page for page in PAGES if SESSION.search(page.read_text())], ids=lambda page: page.name
)
def test_a_session_goes_as_the_chapter_shows(
    page: Path, speeches: None, capsys: pytest.CaptureFixture[str]
) -> None:
    text = session(page.read_text(encoding="utf-8"))
    examples = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    failed, tried = doctest.DocTestRunner().run(examples)
    assert tried
    assert not failed, capsys.readouterr().out


def test_a_line_of_dots_stands_for_any_lines() -> None:
    assert with_gaps("a\n…\nd\n").fullmatch("a\nb\nc\nd\n")
    assert with_gaps("a\n…\nd\n").fullmatch("a\nd\n")
    assert not with_gaps("a\n…\nd\n").fullmatch("a\nb\nc\n")
    assert not with_gaps("a.\n").fullmatch("ab\n")


def test_a_session_keeps_its_lines() -> None:
    assert session("x\n```pycon\n>>> 1\n1\n```\ny") == "\n\n>>> 1\n1\n\n"


FOLDERS, CODE = ("nanochat", "scripts", "tasks"), (".py", ".c", ".js", ".html", ".css")
ASKED = re.compile(r"^\*\*Question \d+\.\*\*\s+(`+)(?P<code>.+?)\1", re.M | re.S)


def test_a_question_points_at_a_line_of_the_program() -> None:
    written = [path for folder in FOLDERS for path in (LIT.parent / folder).rglob("*") if path.suffix in CODE]
    program = "\n".join(path.read_text() for path in written)
    asked = [(page.name, match["code"]) for page in PAGES for match in ASKED.finditer(page.read_text())]
    assert len(asked) > 10
    gone = [f"{page}: {code}" for page, code in asked if " ".join(code.split()) not in program]
    assert not gone
