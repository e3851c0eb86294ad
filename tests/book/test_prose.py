"""Prose is broken at one width; what cannot be broken is left alone."""

from __future__ import annotations

import pytest

from tests.book.conftest import PROJECT, Project
from tools.prose import wide_lines

LONG = "word " * 30


def test_the_book_is_narrow_enough() -> None:
    assert [str(problem) for problem in wide_lines(PROJECT)] == []


@pytest.mark.parametrize("text", [LONG, f"- {LONG}", f"> {LONG}", f"Some [link]({'x' * 90}) {LONG[:60]}"])
def test_a_wide_line_is_named(project: Project, text: str) -> None:
    project.change("lit/10-first.md", "Some prose.", text)
    assert [(p.file, p.line) for p in wide_lines(project.root)] == [("lit/10-first.md", 10)]
    answer = project.run("check")
    assert answer.status == 1
    assert f"lit/10-first.md:10: a line of {len(text)} characters" in answer.err
    assert project.run("tangle").status == 0


@pytest.mark.parametrize(
    "text",
    [
        f"| {LONG} |",
        f"# {LONG}",
        f"$$ {LONG} $$",
        f"$$ a\n{LONG}\nb $$",
        f"```text\n{LONG}\n```",
        f"~~~markdown\n```text\n{LONG}\n~~~",
        f"<!-- {LONG} -->",
        f"[{'x' * 130}](y)",
        f"`{LONG}`",
    ],
)
def test_what_cannot_be_broken_is_exempt(project: Project, text: str) -> None:
    project.change("lit/10-first.md", "Some prose.", text)
    assert wide_lines(project.root) == []
