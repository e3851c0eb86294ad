"""Keep the pictures beside the chapters true: draw, write, compare.

A committed picture is compared as a drawing, not as bytes: the same elements in the same order with the same
letters and colours, every coordinate within TOLERANCE of a point. The last digits of a matrix product differ
between processors, and a picture that differs by less than an eye can see has not drifted. The numbers
themselves are held by the tests of the code.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path

import tools.pictures
from tools.pages import pages_of
from tools.pictures.style import DARK, LIGHT, PICTURES, Picture, render

ROOT = Path(__file__).resolve().parents[2]
FOLDER = "lit/pictures"
TOLERANCE = 0.5  # points: two thirds of a pixel
WIDEST_LINE = 118
LARGEST = 60_000  # bytes of one file

NUMBER = re.compile(r"<!--.*?-->|(?<![\w#.-])-?\d+(?:\.\d+)?(?=[\s\",)p])")  # a comment is what a label says
COLOUR = re.compile(r"#[0-9a-f]{6}\b")
PATH = re.compile(r'(?<= d=")[^"]*')
HASH = re.compile(r'(?<=["#])[a-z][0-9a-f]{10}(?=[")])')
SHOWN = re.compile(r"(?<!`)!\[(?P<alt>[^\]]*)\]\((?P<folder>(?:\.\./)*|lit/)pictures/(?P<name>[\w-]+)\.svg\)")


def pictures(names: Sequence[str] = ()) -> list[Picture]:
    """All pictures, or these, by name. Raises KeyError for a name that is none."""
    for module in pkgutil.iter_modules(tools.pictures.__path__):
        if module.name != "__main__":
            importlib.import_module(f"tools.pictures.{module.name}")
    return [PICTURES[name] for name in names or sorted(PICTURES)]


def light_file(entry: Picture) -> str:
    """Where a picture is kept."""
    return f"{FOLDER}/{entry.name}.svg"


def dark_file(entry: Picture) -> str:
    """Where its dark twin is kept."""
    return f"{FOLDER}/{entry.name}.dark.svg"


def skeleton(svg: str) -> tuple[str, list[float]]:
    """A drawing without its coordinates, and the coordinates. Names that are hashes are numbered."""
    order: dict[str, str] = {}
    spaced = PATH.sub(lambda path: re.sub(r"([A-Za-z])", r" \1 ", path[0]), svg)
    plain = HASH.sub(lambda match: order.setdefault(match[0], f"n{len(order)}"), spaced)
    numbers: list[float] = []

    def take(match: re.Match[str]) -> str:
        if match[0].startswith("<"):
            return match[0]
        numbers.append(float(match[0]))
        return "0"

    return NUMBER.sub(take, plain), numbers


def same_drawing(one: str, other: str) -> bool:
    """Whether nobody could see a difference."""
    shape, numbers = skeleton(one)
    other_shape, other_numbers = skeleton(other)
    close = all(abs(a - b) <= TOLERANCE for a, b in zip(numbers, other_numbers, strict=False))
    return shape == other_shape and len(numbers) == len(other_numbers) and close


def same_in_other_colours(light: str, dark: str) -> bool:
    """Whether the dark picture is the light one, every colour replaced by one of the dark palette's."""
    pairs = set(zip(COLOUR.findall(light), COLOUR.findall(dark), strict=False))
    strangers = set(vars(LIGHT).values()) - set(vars(DARK).values())
    replaced = len(pairs) == len({colour for colour, _ in pairs}) and not strangers & {to for _, to in pairs}
    return replaced and same_drawing(COLOUR.sub("#", light), COLOUR.sub("#", dark))


def chapters(root: Path) -> list[Path]:
    """Every page of the book, and the one that a forge shows first."""
    return [*pages_of(root), *root.glob("README.md")]


def with_alternatives(text: str) -> str:
    """A chapter in which every picture has the alternative text that its function states."""

    def fill(match: re.Match[str]) -> str:
        entry = PICTURES.get(match["name"])
        if entry is None:
            return match[0]
        image = f"![{entry.alt}]({match['folder']}pictures/{entry.name}.svg)"
        return textwrap.fill(image, WIDEST_LINE, break_long_words=False, break_on_hyphens=False)

    return SHOWN.sub(fill, text)


def draw(names: Sequence[str] = (), root: Path = ROOT) -> list[str]:
    """Write the pictures that are missing or differ, and the alternative texts; returns what was written."""
    written = []
    for entry in pictures(names):
        for palette, place in ((LIGHT, light_file(entry)), (DARK, dark_file(entry))):
            path, svg = root / place, render(entry, palette)
            if path.exists() and same_drawing(path.read_text(encoding="utf-8"), svg):
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(svg, encoding="utf-8")
            written.append(f"drew {place}, {len(svg):,} bytes")
    for page in chapters(root):
        text = page.read_text(encoding="utf-8")
        if (filled := with_alternatives(text)) != text:
            page.write_text(filled, encoding="utf-8")
            written.append(f"wrote alternative texts into {page.relative_to(root)}")
    return written or ["all pictures are up to date"]


def check(names: Sequence[str] = (), root: Path = ROOT) -> list[str]:
    """What differs between the committed pictures and what the model draws now; empty if nothing does.

    Only the light picture is drawn; the dark one is compared with it, colours aside.
    """
    problems = []
    for entry in pictures(names):
        svg = render(entry, LIGHT)
        files = ((light_file(entry), same_drawing), (dark_file(entry), same_in_other_colours))
        for place, alike in files:
            path = root / place
            if not path.exists():
                problems.append(f"{place} is missing. Draw it: make pictures")
            elif not alike(svg, path.read_text(encoding="utf-8")):
                problems.append(f"{place} is not what the code draws now. Look at it again: make pictures")
        if len(svg) > LARGEST:
            problems.append(f"{entry.name} has {len(svg):,} bytes, more than {LARGEST:,}: draw fewer points")
    return problems + check_chapters(root)


def check_chapters(root: Path) -> list[str]:
    """Pictures that no page shows, pages that show what does not exist, and alternative texts that differ."""
    problems = []
    shown = set()
    for page in chapters(root):
        text = page.read_text(encoding="utf-8")
        place = page.relative_to(root)
        for match in SHOWN.finditer(text):
            shown.add(match["name"])
            if match["name"] not in PICTURES:
                problems.append(f"{place}: no function draws {match['name']}; write one in tools/pictures/")
        if with_alternatives(text) != text:
            problems.append(f"{place}: an alternative text is not that of its picture: make pictures")
    for name in sorted(PICTURES.keys() - shown):
        problems.append(f"no page shows {FOLDER}/{name}.svg: put ![](pictures/{name}.svg) where it helps")
    for path in sorted((root / FOLDER).glob("*.svg")):
        if path.name.split(".")[0] not in PICTURES:
            problems.append(f"{path.relative_to(root)} is drawn by no function: remove it, or write one")
    return problems
