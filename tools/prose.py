"""Prose that is wider than a terminal: everything that can be broken is broken at one width."""

import re
from pathlib import Path

from tools.pages import pages_of
from tools.problems import Problem

WIDTH = 120
_FENCE = re.compile(r"^\s*(```+|~~~+)")
_UNBREAKABLE = re.compile(r"`[^`]*`|\$[^$]+\$|!?\[[^\]]*\]\([^)]*\)|\S+")


def wide_lines(root: Path) -> list[Problem]:
    """Lines of prose in lit/ and README.md above WIDTH; tables, code, formulas and long links are exempt."""
    problems = []
    for path in [*pages_of(root), root / "README.md"]:
        if not path.is_file():
            continue
        for number, line in prose_of(path.read_text(encoding="utf-8-sig", errors="replace")):
            if len(line) > WIDTH and can_be_broken(line):
                text = f"a line of {len(line)} characters. Break it at {WIDTH} or before."
                problems.append(Problem(path.relative_to(root).as_posix(), number, text))
    return problems


def prose_of(text: str) -> list[tuple[int, str]]:
    """The lines, counted from 1, that stand in no block of code, formula, table or HTML comment."""
    found, end = [], ""  # what ends the present block; "" outside of blocks
    for number, line in enumerate(text.split("\n"), 1):
        bare = line.strip()
        if end:
            if end in ("$$", "-->"):
                end = "" if end in bare else end
            elif bare == end:
                end = ""
        elif fence := _FENCE.match(line):
            end = fence[1]
        elif bare.startswith("$$"):
            end = "" if bare.count("$$") > 1 else "$$"
        elif bare.startswith("<!--"):
            end = "" if "-->" in bare else "-->"
        elif not bare.startswith(("|", "#")):
            found.append((number, line))
    return found


def can_be_broken(line: str) -> bool:
    """Whether some place between two words leaves no part wider than WIDTH."""
    pieces = _UNBREAKABLE.findall(line.strip())
    return len(pieces) > 1 and max(map(len, pieces)) <= WIDTH
