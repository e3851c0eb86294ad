"""Links lead somewhere, on a forge too; and the twelve questions are asked in the same words everywhere."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.learning.steps import STEPS
from tests.book.conftest import PROJECT
from tools.prose import prose_of

CHAPTERS = sorted((PROJECT / "lit").rglob("*.md"))
CODE = re.compile(r"(?ms)^(```+|~~~+)[^\n]*\n.*?^\1\s*$")


def headings(path: Path) -> list[str]:
    """The titles of a chapter, as written."""
    return re.findall(r"(?m)^#+ (.*)$", CODE.sub("", path.read_text(encoding="utf-8")))


def anchor(title: str) -> str:
    """What GitHub makes of a heading: lower case, only letters, digits, `-` and `_`, dashes for blanks."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
    return "".join(c for c in text if c.isalpha() or c.isdecimal() or c in " -_").replace(" ", "-")


def links(path: Path) -> Iterator[tuple[int, str]]:
    """Every relative link of a chapter's prose and tables, with its line."""
    text = CODE.sub(lambda match: "\n" * match[0].count("\n"), path.read_text(encoding="utf-8"))
    for number, line in enumerate(text.split("\n"), 1):
        for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", line)):
            if not re.match(r"\w+:", target):
                yield number, target


@pytest.mark.parametrize("path", [*CHAPTERS, PROJECT / "README.md"], ids=lambda path: path.name)
def test_every_link_has_a_target(path: Path) -> None:
    wrong = []
    for number, target in links(path):
        file, _, fragment = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists():
            wrong.append(f"{path.name}:{number}: {target}: no such file")
        elif fragment and there.suffix == ".md" and fragment not in map(anchor, headings(there)):
            wrong.append(f"{path.name}:{number}: {target}: no such heading")
    assert wrong == []


def test_anchors_are_made_as_on_a_forge() -> None:
    assert anchor("What's the advantage of `lm_head`?") == "whats-the-advantage-of-lm_head"
    assert anchor("Why relu^2, or relu²?") == "why-relu2-or-relu"
    assert anchor("Try an edit: scripts/a_b.sh") == "try-an-edit-scriptsa_bsh"


def test_the_twelve_questions_are_asked_in_the_same_words() -> None:
    """On the home page, above the answers, in the learner's log and where they are declared."""
    home = (PROJECT / "lit" / "index.md").read_text(encoding="utf-8").split("## Twelve questions")[1]
    rows = re.findall(r"(?m)^\| ([^|]*\?) \| (.*) \|$", home)
    assert len(rows) == 12
    for question, answers in rows:
        for chapter, fragment in re.findall(r"\((\S+\.md)#(\S+)\)", answers):
            titles = {anchor(title): title for title in headings(PROJECT / "lit" / chapter)}
            assert titles[fragment].startswith(question)
    asked = {question for question, _ in rows}
    assert {question for step in STEPS for question in step.questions} == asked
    chapters = "\n".join(path.read_text(encoding="utf-8") for path in CHAPTERS)
    assert set(re.findall(r'(?m)^question = "(.*)"$', chapters)) == asked
    for chapter, fragment in re.findall(r'(?m)^answer = "(\S+\.md)#(\S+)"$', chapters):
        assert fragment in map(anchor, headings(PROJECT / "lit" / chapter))


def test_no_formula_that_a_forge_refuses() -> None:
    r"""GitHub knows no \operatorname, and drops a backslash before punctuation inside a formula."""
    refused = re.compile(r"\\operatorname|\\[,;:!\\_|{}%#&]")
    for path in CHAPTERS:
        text = CODE.sub("", path.read_text(encoding="utf-8"))
        assert [match[0] for match in refused.finditer(re.sub(r"`[^`]*`", "", text))] == [], path.name
        assert prose_of(text)
