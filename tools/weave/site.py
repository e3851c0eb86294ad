"""Carry the woven book into MkDocs: `hook` calls these functions, one for each event.

One rule is this module's own: `mkdocs build` refuses a book with a mistake in it; `mkdocs serve` never does,
and shows the mistake on the page where it is.
"""

import importlib
import json
import logging
import os
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import BuildError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page as SitePage
from mkdocs.structure.toc import AnchorLink
from mkdocs.utils import get_relative_url

from tools import numbers
from tools.answers import misfolded_in
from tools.pages import pages_of
from tools.problems import Problem, Refused
from tools.weave import formulas
from tools.weave.chapter import Page, Weaver
from tools.weave.indexes import generated_pages
from tools.weave.model import Woven, weave
from tools.weave.prose import formulas_of, heading_id

ROOT = Path(__file__).resolve().parents[2]
log = logging.getLogger("mkdocs.weave")

weaver = Weaver(ROOT, Woven())
made: dict[str, Callable[[Page], str]] = {}  # how to make the pages that nobody writes
current = Page(weaver, "index.md", lambda path: None)  # MkDocs reads and converts one page after the other
site_files = Files([])
FOUND_FIRST = ("how-to/", "02-")  # by who searches: what to do comes before how it works inside
FOUND_LAST = ("82-",)  # a list of mistakes has every word of the book
NOT_SEARCHED = ("files/", "records/")  # what is found there is found in a chapter, with its reasons


def read_book(config: MkDocsConfig, serving: bool, last_good: Woven | None) -> Woven:
    """Read the book and give it back. A mistake ends the build; while serving it is kept, to be shown."""
    global weaver
    site = Path(config.site_dir)
    if not serving and not os.access(site if site.is_dir() else site.parent, os.W_OK):
        raise BuildError(
            f"{site} cannot be written to. Build elsewhere: mkdocs build --site-dir /path/to/one"
        )
    problems: list[Problem] = []
    book = last_good or Woven()
    try:
        book = weave(ROOT)
    except Refused as refused:
        problems += refused.problems
    problems += number_problems(ROOT) + formula_problems(ROOT) + misfolded_in(ROOT)
    if problems and not serving:
        raise BuildError("\n".join(["the book cannot be woven:", *map(str, problems)]))
    for problem in problems:
        log.warning("%s", problem)
    weaver = Weaver(ROOT, book, problems)
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return book


def number_problems(root: Path) -> list[Problem]:
    """Every number that is not what its record says."""
    try:
        return numbers.check(root)
    except UnicodeDecodeError:
        return []  # weave has said so, with the line


def formula_problems(root: Path) -> list[Problem]:
    """Convert every formula of the book at once; what cannot be converted, with its place."""
    problems = []
    found = []
    for path in pages_of(root):
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [(path.relative_to(root).as_posix(), formula) for formula in formulas_of(text)]
    formulas.convert(formula for _, formula in found)
    for name, formula in found:
        try:
            formulas.mathml(formula)
        except formulas.Unreadable as error:
            problems.append(Problem(name, formula.line, str(error)))
    return problems


def slug(text: str, separator: str) -> str:
    """The id of a heading, which still holds marks."""
    return heading_id(current.aside.plain(text))


def add_pages(files: Files, config: MkDocsConfig) -> None:
    """Add the pages that nobody writes, and put into the navigation what is there."""
    global site_files
    site_files = files
    made.clear()
    made.update(generated_pages(ROOT, weaver.book))
    if (ROOT / "tools" / "reference.py").is_file():
        reference = importlib.import_module("tools.reference")
        made.update({path: _as_it_is(text) for path, text in reference.pages(ROOT).items()})
    for path in made:
        files.append(File.generated(config, path, content=""))
    known = [file.src_uri for file in files.documentation_pages()]
    config.nav = expand(config.nav or [], known, set())


def _as_it_is(text: str) -> Callable[[Page], str]:
    return lambda page: text


def expand(nav: list[Any], known: list[str], used: set[str]) -> list[Any]:
    """The navigation with each pattern replaced by the pages it fits, each page once, in order.

    So a new chapter finds its place by its number, and one that does not exist yet stops nobody.
    """
    out: list[Any] = []
    for entry in nav:
        if isinstance(entry, dict):
            for title, below in entry.items():
                if isinstance(below, list):
                    if children := expand(below, known, used):
                        out.append({title: children})
                elif below in known or ":" in below:
                    used.add(below)
                    out.append(entry)
        elif "*" in entry or entry in known:
            fitting = sorted(p for p in known if fnmatch(p, entry) and p.count("/") == entry.count("/"))
            out += [page for page in fitting if page not in used]
            used.update(fitting)
    return out


def markdown_of(page: SitePage) -> str:
    """The page's Markdown with marks in it."""
    global current
    path = page.file.src_uri

    def url_of(other: str) -> str | None:
        file = site_files.get_file_from_path(other)
        return get_relative_url(file.url, page.file.url) if file else None

    current = Page(weaver, path, url_of)
    if path in made:
        return current.read(made[path](current), generated=True)
    assert page.file.abs_src_path
    return current.read(Path(page.file.abs_src_path).read_text(encoding="utf-8-sig", errors="replace"))


def finish(html: str, page: SitePage) -> str:
    """Put back what the marks stand for, wherever MkDocs has taken them."""

    def mend(items: Iterable[AnchorLink]) -> None:
        for item in items:
            item.title = current.aside.restore(item.title)
            mend(item.children)

    mend(page.toc)
    if page.title:
        page.title = current.aside.plain(page.title)
    if page.present_anchor_ids is not None:
        page.present_anchor_ids |= current.anchors
    if page.file.src_uri.startswith(NOT_SEARCHED):
        page.meta["search"] = {"exclude": True}
    else:
        page.meta["search"] = {"boost": weight(page.file.src_uri)}
    return current.finish(html)


def weight(path: str) -> float:
    """How much a page counts in a search; an index, which holds every word, counts little."""
    if path.startswith(FOUND_FIRST):
        return 2.0
    return 0.3 if path in made or path.startswith(FOUND_LAST) else 1.0


def complete_search(config: MkDocsConfig) -> None:
    """Let the search find each fragment by its title, and lead to the fragment itself."""
    path = Path(config.site_dir) / "search" / "search_index.json"
    if not path.is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    for fragment in weaver.book.fragments:
        file = site_files.get_file_from_path(fragment.chapter.removeprefix("lit/"))
        if file and not fragment.number:
            place = {"location": f"{file.url}#{fragment.anchor}", "boost": weight(file.src_uri)}
            index["docs"].append({**place, "title": fragment.title, "text": fragment.place})
    path.write_text(json.dumps(index, sort_keys=True, separators=(",", ":")), encoding="utf-8")
