"""Where a heading names a function, the function is near: no apparatus stands between the two."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

LIT = Path(__file__).resolve().parents[1] / "lit"
FARTHEST = 60  # lines from a heading to the `def` that it names
NAMED = re.compile(r"^#+ .*`(?:\w+\.)*(?P<name>\w+)`$")


def distances(text: str) -> Iterator[tuple[str, int | None]]:
    """For each heading that ends with a function's or class's name: lines to its code, None without any."""
    lines = text.split("\n")
    headings, inside = [], False
    for number, line in enumerate(lines):
        inside ^= line.startswith("```")
        if not inside and (match := NAMED.match(line)):
            headings.append((number, match["name"]))
    for number, name in headings:
        code = re.compile(rf"\s*(?:(?:async )?def|class) {name}\b")
        after = (n for n, line in enumerate(lines) if n > number and code.match(line))
        found = next(after, None)
        yield lines[number], None if found is None else found - number


EVERY = [
    (page.name, heading, distance)
    for page in sorted(LIT.glob("*.md"))
    for heading, distance in distances(page.read_text(encoding="utf-8"))
]


def test_there_are_such_headings() -> None:
    assert len({heading for page, heading, _ in EVERY if page[:2] in ("10", "20", "30", "40", "50")}) >= 17


@pytest.mark.parametrize(("page", "heading", "distance"), EVERY, ids=lambda part: str(part).strip("# "))
def test_code_is_near_the_heading_that_names_it(page: str, heading: str, distance: int | None) -> None:
    assert distance is not None, f"{page}: below {heading} stands no such function"
    assert distance <= FARTHEST, f"{page}: {distance} lines lie between {heading} and its code"


def test_a_distance_is_counted() -> None:
    text = "# A\n\n## Run: `X.f`\n\nprose\n\n```python #f\ndef g(): ...\ndef f(): ...\n```\n## Gone: `h`\n"
    assert [*distances(text)] == [("## Run: `X.f`", 6), ("## Gone: `h`", None)]
