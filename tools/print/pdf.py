"""The PDF of a volume: pandoc writes the prose as Typst, book.typ gives the look, the typst package sets it.

No LaTeX is needed, and no font of the machine is used: typst brings Libertinus Serif, New Computer Modern for
formulas and DejaVu Sans Mono, so the PDF is the same everywhere.
"""

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import typst

from tools.print.code import Setter, typst_string
from tools.print.pandoc import Element, document, pandoc, plain, raw, walk
from tools.print.parts import CLASS
from tools.print.reader import Reading
from tools.print.title import Title
from tools.problems import Problem, Refused

# What pandoc writes and typst takes otherwise: symbols that have new names, \! and \; rounded to whole ems,
# and tables in the middle of the page. A number with commas is one text, or typst sets them apart.
RENAMED = {
    "dot.circle": "dot.o",
    "times.circle": "times.o",
    "plus.circle": "plus.o",
    "#h(-1em)": "#h(-0.167em)",
    "#h(0em)": "#h(0.278em)",
    "align(center)[#table(": "align(left)[#table(",
}
SHORT = 14  # rows of a table that stays on one page
NOTHING: Element = {"t": "RawInline", "c": ["typst", "#[]"]}
_COMMA = ' upright(",") '
_THOUSANDS = re.compile(rf"\d+(?:{re.escape(_COMMA)}\d{{3}})+")
_ITEM = re.compile(r"\d+\.|[-+/]|=+")  # what begins an item of a list, or a heading, in typst


def typeset(root: Path, title: Title, readings: list[Reading], setter: Setter, scratch: Path) -> bytes:
    """The PDF. What typst reads is left in `scratch`, a folder below root."""
    blocks = [block for reading in readings for block in walk(reading.blocks, for_typst)]
    body = pandoc(document(blocks), "--from", "json", "--to", "typst", "--wrap", "none").decode()
    body = "\n".join(
        line if line.startswith(("#fragment(", "#shown(")) else renamed(line) for line in body.split("\n")
    )
    source = "\n".join(
        [
            setter.titles_typst(),
            look(),
            f"#set document(title: {typst_string(title.name)}, date: none)",
            f"#title-page({', '.join(map(typst_string, (title.name, title.subtitle, title.colophon)))})",
            "#contents()",
            '#set page(numbering: "1", header: running-head, footer: number("1"))',
            "#counter(page).update(1)",
            body,
            "#index-of-fragments()",
        ]
    )
    try:
        return compiled(root, scratch / "book.typ", source, timestamp=title.epoch)
    except typst.TypstError as error:
        raise Refused([complaint(error, source, readings)]) from error


def cover(root: Path, title: Title, scratch: Path) -> bytes:
    """A picture of the title for a shelf of EPUBs, as PNG."""
    source = (
        f"#let titles = (:)\n{look()}\n#cover({typst_string(title.name)}, {typst_string(title.subtitle)})"
    )
    return compiled(root, scratch / "cover.typ", source, format="png", ppi=180.0)


def look() -> str:
    """book.typ."""
    return (files(__package__) / "book.typ").read_text(encoding="utf-8")


def compiled(root: Path, path: Path, source: str, **options: Any) -> bytes:
    """What typst makes of a source that is kept at `path`. Raises typst.TypstError."""
    path.write_text(source, encoding="utf-8")
    return bytes(typst.compile(path, root=root, ignore_system_fonts=True, **options))


def renamed(line: str) -> str:
    """A line of prose as this typst understands it."""
    for old, new in RENAMED.items():
        line = line.replace(old, new)
    return _THOUSANDS.sub(lambda match: f'"{match[0].replace(_COMMA, ",")}"', line)


def complaint(error: typst.TypstError, source: str, readings: list[Reading]) -> Problem:
    """What typst says, and of which chapter: the last one that begins above the line it names."""
    place = re.search(r"book\.typ:(\d+)", error.diagnostic or "")
    above = source.split("\n")[: int(place[1])] if place else []
    pages = {f"<{reading.page.id}>": reading.page.path for reading in readings}
    chapter = next((pages[line] for line in reversed(above) if line in pages), "build/book.typ")
    return Problem(chapter, 0, f"typst cannot set this page: {error.diagnostic or error.message}")


def for_typst(element: Element) -> list[Element] | None:
    """What pandoc would write otherwise than book.typ wants it."""
    if element["t"] == "Para" and [e["t"] for e in element["c"]] == ["Image"]:
        _, inlines, (path, _) = element["c"][0]["c"]
        return [raw("typst", f"#picture({typst_string('/' + path)}, {typst_string(plain(inlines))})")]
    if element["t"] == "Header" and CLASS in element["c"][1][1]:
        return [raw("typst", f"#part({typst_string(plain(element['c'][2]))})")]
    if element["t"] == "Table" and sum(len(body[3]) for body in element["c"][4]) <= SHORT:
        return [raw("typst", "#block(breakable: false)["), element, raw("typst", "]")]
    if element["t"] in ("RawBlock", "RawInline") and element["c"][0] == "html":
        return []
    if element["t"] == "Link" and _ITEM.fullmatch(plain(element["c"][1][:1])):  # pandoc does not guard it
        attributes, inlines, target = element["c"]
        return [{"t": "Link", "c": [attributes, [NOTHING, *inlines], target]}]
    return None
