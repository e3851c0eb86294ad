"""Answers that a reader opens when she has tried: folded on the site and on a forge, at the back in print.

    **Question 1.** Why is the first loss no accident?

    <details markdown="1"><summary>Answer</summary>

    Because all scores are 0.

    </details>

The form is HTML because forges fold it as they find it. `markdown="1"` tells the site's converter that there
is Markdown inside. An admonition that can be folded would be shorter to write, and no forge reads it.
"""

import re
from pathlib import Path

from tools.numbers import without_code
from tools.pages import pages_of
from tools.problems import Problem

OPENING = re.compile(r'<details markdown="1"><summary>(?P<word>[^<>]+)</summary>')
CLOSING = "</details>"
_TAG = re.compile(r"</?(?:details|summary)\b")


def misfolded(name: str, text: str) -> list[Problem]:
    """What a converter, a forge or print would read otherwise than its author meant, in one page."""
    lines = ["", *without_code(text).split("\n"), ""]
    problems = []
    opened, asked = 0, False
    for number, line in enumerate(lines):
        if line.startswith("#"):
            asked = False
        elif line.startswith("**") and not lines[number - 1].strip():
            asked = True
        if not _TAG.search(line):
            continue
        if wrong := _wrong(line, lines[number - 1] + lines[number + 1], opened, asked):
            problems.append(Problem(name, number, wrong))
        opened = 0 if line == CLOSING else number
    if opened:
        problems.append(Problem(name, opened, f"what is folded here is never closed. End it with {CLOSING}"))
    return problems


def _wrong(line: str, around: str, opened: int, asked: bool) -> str:
    """What is wrong with a line that opens or closes an answer, if anything."""
    if line != CLOSING and not OPENING.fullmatch(line):
        return (
            "this is not how an answer opens or closes. The one form, at the start of a line: "
            f'<details markdown="1"><summary>Answer</summary>, and {CLOSING}'
        )
    if around.strip():
        return "an empty line must stand above and below it, or what is inside is not read as Markdown."
    if line == CLOSING:
        return "" if opened else "nothing is open here. Take it away, or open the answer."
    if opened:
        return f"the answer of line {opened} is still open. Close it with {CLOSING}"
    if not asked:
        return (
            "no question stands between this answer and the heading above it. Begin one with its name in "
            "bold: **Question 1.**"
        )
    return ""


def misfolded_in(root: Path) -> list[Problem]:
    """The same for all pages below lit/."""
    return [
        problem
        for path in pages_of(root)
        for problem in misfolded(
            path.relative_to(root).as_posix(), path.read_text(encoding="utf-8-sig", errors="replace")
        )
    ]
