"""From Markdown to one tree: headings and fragments get their ids, links lead into the book or out of it.

A Lua filter inside pandoc could do the same walk. It would have to be given the fragments, the ids of all
pages and the files of the project from outside, and could not say in which line of which chapter a link is
broken.
"""

import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from posixpath import dirname, join, normpath
from urllib.parse import unquote

from markdown.extensions.toc import unique

from tools.answers import misfolded
from tools.markup import scan
from tools.pages import FOLDER
from tools.print.code import Setter
from tools.print.pages import LEFT_OUT, Page
from tools.print.pandoc import Element, Failed, parse, plain, string, walk
from tools.problems import Problem, Refused
from tools.weave.indexes import generated_pages
from tools.weave.prose import heading_id

_MARK = "fragment-"  # + number: what stands behind a fence while pandoc reads the page
_FENCED = re.compile(r"^(?P<fence>`{3,}|~{3,}).*?^(?P=fence)[`~]*\s*?$", re.M | re.S)
_ABROAD = re.compile(r"^[a-z][a-z0-9+.-]*:|^//", re.I)


@dataclass
class Reading:
    """A page as a tree, and the names that links may use for its places: {anchor: id}."""

    page: Page
    blocks: list[Element]
    anchors: dict[str, str] = field(default_factory=dict)

    def problem(self, needle: str, text: str) -> Problem:
        """A complaint about the first line outside of code in which something stands."""
        bare = _FENCED.sub(lambda match: "\n" * match[0].count("\n"), self.page.text)
        position = bare.find(needle)
        return Problem(self.page.path, bare.count("\n", 0, position) + 1 if position >= 0 else 0, text)


INDEX = "index-of-fragments"


def read(root: Path, pages: list[Page], setter: Setter) -> list[Reading]:
    """All pages as trees whose links all lead somewhere. Raises Refused with everything that does not."""
    made = {f"lit/{name}" for name in generated_pages(root, setter.woven)}
    readings = [read_page(page, setter) for page in pages]
    problems: list[Problem] = []
    known = {reading.page.path: reading for reading in readings}
    for reading in readings:
        reading.blocks = walk(reading.blocks, partial(_link, root, known, made, reading, problems))
    if problems:
        raise Refused(problems)
    return readings


def read_page(page: Page, setter: Setter) -> Reading:
    """One page: blocks of code replaced by what `setter` makes of them, headings named."""
    fences, problems = scan(page.path, page.text)
    problems += misfolded(page.path, page.text)
    if problems:
        raise Refused(problems)
    fragments = {fragment.line: fragment for fragment in setter.woven.in_chapter(page.path)}
    lines = page.text.split("\n")
    for fence in fences:
        lines[fence.line - 1] = f"```{_MARK}{fence.line}"
    reading = Reading(page, [])
    try:
        tree = parse("\n".join(lines))
    except Failed as failed:
        raise Refused([Problem(page.path, 0, f"pandoc cannot read this page: {failed}")]) from failed

    taken: set[str] = set()

    def change(element: Element) -> list[Element] | None:
        kind = element["t"]
        if kind == "Header":
            level, _, inlines = element["c"]
            slug = unique(heading_id(plain(inlines)), taken)
            top = level == 1 and page.id not in reading.anchors.values()
            name = page.id if top else f"{page.id}--{slug}"
            reading.anchors[slug] = name
            return [{"t": "Header", "c": [level, [name, [], []], inlines]}]
        if kind == "CodeBlock":
            (_, classes, _), text = element["c"]
            word = classes[0] if classes else ""
            if word.startswith(_MARK):
                fragment = fragments[int(word.removeprefix(_MARK))]
                reading.anchors[fragment.anchor] = fragment.anchor
                return setter.fragment(fragment)
            return setter.shown(text, word)
        if kind == "Math":  # a comma between digits is no punctuation; pandoc knows it as text alone
            return [{"t": "Math", "c": [element["c"][0], element["c"][1].replace("{,}", r"\text{,}")]}]
        if kind == "Table":  # columns as wide as what they hold, not as the dashes of their source
            element["c"][2] = [[align, {"t": "ColWidthDefault"}] for align, _ in element["c"][2]]
        if kind in ("RawBlock", "RawInline") and element["c"][1].startswith("<!--"):
            return []
        return None

    reading.blocks = walk(tree, change)
    return reading


def _link(
    root: Path,
    known: dict[str, Reading],
    made: set[str],
    reading: Reading,
    problems: list[Problem],
    element: Element,
) -> list[Element] | None:
    """Where a link or a picture leads within the book."""
    if element["t"] == "Image":
        attributes, inlines, (source, title) = element["c"]
        path = normpath(join(dirname(reading.page.path), unquote(source)))
        if _ABROAD.match(source) or not (root / path).is_file():
            problems.append(
                reading.problem(f"]({source}", f"there is no picture {path}. Draw it, or correct the path.")
            )
        elif not plain(inlines).strip():
            problems.append(
                reading.problem(
                    f"]({source}", "this picture says nothing to who cannot see it. Write ![text](…)."
                )
            )
        return [{"t": "Image", "c": [attributes, inlines, [path, title]]}]
    if element["t"] != "Link":
        return None
    attributes, inlines, (target, title) = element["c"]
    if _ABROAD.match(target):
        return None
    path, _, anchor = unquote(target).partition("#")
    path = normpath(join(dirname(reading.page.path), path)) if path else reading.page.path
    if path in known:
        place = known[path].anchors.get(anchor) if anchor else known[path].page.id
        if place and known[path].page.volume != reading.page.volume:
            number = known[path].page.volume.partition(":")[0].lower()
            return [*inlines, {"t": "Space"}, string(f"({number})")]
        if place:
            return [{"t": "Link", "c": [attributes, inlines, ["#" + place, title]]}]
        problems.append(
            reading.problem(f"]({target})", f"{path} has no heading or fragment #{anchor}. Correct the link.")
        )
    elif path == "lit/fragments.md":
        return [{"t": "Link", "c": [attributes, inlines, [f"#{INDEX}", title]]}]
    elif path in made or path.startswith(f"{FOLDER}/{LEFT_OUT}"):
        pass  # an index of the site, which print does not have
    elif path.startswith("..") or not (root / path).exists():
        problems.append(reading.problem(f"]({target})", f"there is no {path}. Correct the link."))
    # A file of the project, or a number out of a record: in print its text is all there is to it.
    unlinked: list[Element] = inlines
    return unlinked
