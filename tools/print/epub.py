"""The EPUB of a volume: pandoc splits the tree into pages and packs it; what it leaves undone is done here.

Pandoc does not look into the code that code.py has set, so links there do not know in which file of the
EPUB their target has come to stand. And it packs files in no fixed order.
"""

import io
import re
import tempfile
import zipfile
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from tools.print.code import Setter
from tools.print.pandoc import Element, Failed, document, pandoc, raw, walk
from tools.print.reader import INDEX, Reading
from tools.print.title import Title
from tools.problems import Problem, Refused

_ID = re.compile(r'\sid="([^"]+)"')
_HREF = re.compile(r'(<a\b[^>]*?\shref=")#([^"]+)(")')


def bind(root: Path, title: Title, readings: list[Reading], setter: Setter, cover: bytes) -> bytes:
    """The EPUB. `cover` is a PNG."""
    blocks = [block for reading in readings for block in walk(reading.blocks, for_epub)]
    blocks += index_of_fragments(setter)
    date = datetime.fromtimestamp(title.epoch, UTC).strftime("%Y-%m-%d")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / "book.css").write_bytes((files(__package__) / "book.css").read_bytes())
        (scratch / "cover.png").write_bytes(cover)
        arguments = [
            "--from",
            "json",
            "--to",
            "epub3",
            "--mathml",
            "--wrap",
            "none",
            "--toc",
            "--toc-depth",
            "2",
        ]
        arguments += [
            "--split-level",
            "1",
            "--output",
            str(scratch / "book.epub"),
            "--resource-path",
            str(root),
        ]
        arguments += ["--css", str(scratch / "book.css"), "--epub-cover-image", str(scratch / "cover.png")]
        for key, value in {
            "title": title.name,
            "subtitle": title.subtitle,
            "lang": "en",
            "date": date,
            "identifier": title.identifier,
            "rights": title.colophon,
        }.items():
            arguments += ["--metadata", f"{key}={value}"]
        try:
            pandoc(document(blocks), *arguments, epoch=title.epoch)
        except Failed as failed:
            raise Refused(complaints(str(failed), readings)) from failed
        return repacked((scratch / "book.epub").read_bytes(), title.epoch)


def for_epub(element: Element) -> list[Element] | None:
    """What pandoc would write otherwise than book.css wants it."""
    if element["t"] == "Para" and [e["t"] for e in element["c"]] == ["Image"]:
        attributes, inlines, target = element["c"][0]["c"]
        image = {"t": "Image", "c": [attributes, inlines, target]}
        return [raw("html", "<figure>"), {"t": "Plain", "c": [image]}, raw("html", "</figure>")]
    if element["t"] in ("RawBlock", "RawInline") and element["c"][0] == "typst":
        return []
    return None


def complaints(message: str, readings: list[Reading]) -> list[Problem]:
    """Pandoc's warnings, each with the line of the formula that it is about."""
    problems = []
    for formula, reason in re.findall(
        r"Could not convert TeX math (.+?), rendering as TeX:(.*?)(?=\[|$)", message, re.S
    ):
        reading = next((r for r in readings if formula in r.page.text), readings[0])
        why = " ".join(reason.split("\n")[-2:] if "\n" in reason else [reason])
        problems.append(reading.problem(formula, f"pandoc cannot convert this formula: {formula}{why}"))
    return problems or [Problem("the EPUB", 0, f"pandoc cannot make it: {message}")]


def index_of_fragments(setter: Setter) -> list[Element]:
    """A last chapter: all fragments by title."""
    heading = {
        "t": "Header",
        "c": [1, [INDEX, [], []], [{"t": "Str", "c": "Index of fragments"}]],
    }
    ordered = sorted(setter.fragments, key=lambda f: (f.title.lower(), f.number))
    items = "\n".join(
        f'<li><a href="#{f.anchor}">{escape(f.title)}</a> <span class="place">{escape(f.place)}</span></li>'
        for f in ordered
    )
    return [heading, raw("html", f'<ul class="index">\n{items}\n</ul>')]


def repacked(epub: bytes, epoch: int) -> bytes:
    """The EPUB with links between its files, files in a fixed order, and one time on all of them.

    Raises Refused for a link to nothing.
    """
    with zipfile.ZipFile(io.BytesIO(epub)) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    pages = {name: data.decode() for name, data in members.items() if name.endswith(".xhtml")}
    home = {found: name.rpartition("/")[2] for name, text in pages.items() for found in _ID.findall(text)}
    problems = []
    for name, text in pages.items():
        here = name.rpartition("/")[2]

        def lead(match: re.Match[str], here: str = here) -> str:
            there = home.get(match[2])
            if there is None:
                problems.append(Problem("the EPUB", 0, f"{here} links to #{match[2]}, which is nowhere."))
                return match[0]
            return f"{match[1]}{there if there != here else ''}#{match[2]}{match[3]}"

        members[name] = _HREF.sub(lead, text).encode()
    if problems:
        raise Refused(problems)
    for name in members:
        if name.endswith(".svg"):  # the glyph of a blank, for which SVG wants an empty outline
            members[name] = re.sub(rb"<path (?![^>]*\bd=)", b'<path d="" ', members[name])

    stamp = datetime.fromtimestamp(max(epoch, 315532800), UTC).timetuple()[:6]  # a zip's time begins in 1980
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(members, key=lambda name: (name != "mimetype", name)):
            info = zipfile.ZipInfo(name, stamp)
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_STORED if name == "mimetype" else zipfile.ZIP_DEFLATED
            archive.writestr(info, members[name])
    return packed.getvalue()
