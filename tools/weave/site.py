"""The hook that MkDocs calls: `hooks: [tools/weave/site.py]` in mkdocs.yml.

It only carries things from the weaver to MkDocs and back. One rule is its own: `mkdocs build` refuses a book
with a mistake in it; `mkdocs serve` never does, and shows the mistake on the page where it is.
"""

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from markdown.extensions.toc import slugify
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import Abort
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page as SitePage
from mkdocs.structure.toc import AnchorLink
from mkdocs.utils import get_relative_url

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

log = logging.getLogger("mkdocs.weave")

# What outlives a build under `mkdocs serve`, which runs this file again for each: what it is called for, when
# the tools were read, and the last book that could be tangled.
memory: Any = sys.modules.setdefault("weave_memory", ModuleType("weave_memory"))


def forget_changed_tools() -> None:
    """Let the next build find the tools, and the programs that make tables, as they are now."""
    folders = ("tools", "scripts", "nanochat")
    stamp = max(
        (path.stat().st_mtime for folder in folders for path in (ROOT / folder).rglob("*.py")), default=0.0
    )
    if getattr(memory, "stamp", stamp) != stamp:
        for name in [name for name in sys.modules if name.split(".")[0] in folders]:
            del sys.modules[name]
    memory.stamp = stamp


forget_changed_tools()

from tools import numbers  # noqa: E402
from tools.problems import Problem, Refused  # noqa: E402
from tools.weave import formulas  # noqa: E402
from tools.weave.chapter import Page, Weaver  # noqa: E402
from tools.weave.indexes import generated_pages  # noqa: E402
from tools.weave.model import Woven, weave  # noqa: E402
from tools.weave.prose import formulas_of  # noqa: E402

weaver = Weaver(ROOT, Woven())
made: dict[str, Callable[[Page], str]] = {}  # how to make the pages that nobody writes
current = Page(weaver, "index.md", lambda path: None)  # MkDocs reads and converts one page after the other
site_files = Files([])
NOT_SEARCHED = ("files/", "records/")  # what is found there is found in a chapter, with its reasons


def on_startup(command: Literal["build", "gh-deploy", "serve"], dirty: bool) -> None:
    """Remember whether somebody is writing."""
    memory.serving = command == "serve"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Read the book. A mistake ends the build, or is kept to be shown."""
    global weaver
    problems: list[Problem] = []
    book = getattr(memory, "last_good", Woven())
    try:
        book = memory.last_good = weave(ROOT)
    except Refused as refused:
        problems += refused.problems
    problems += number_problems(ROOT) + formula_problems(ROOT)
    if problems and not getattr(memory, "serving", False):
        raise Abort("\n".join(["error: the book cannot be woven:", *map(str, problems)]))
    for problem in problems:
        log.warning("%s", problem)
    weaver = Weaver(ROOT, book, problems)
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


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
    for path in sorted((root / "lit").rglob("*.md")):
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
    """The id of a heading. A formula counts as its TeX, as on a forge."""
    return str(slugify(current.aside.plain(text), separator))


def on_files(files: Files, config: MkDocsConfig) -> Files:
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
    return files


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


def on_page_read_source(page: SitePage, config: MkDocsConfig) -> str:
    """Give MkDocs the page's Markdown with marks in it."""
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


def on_page_content(html: str, page: SitePage, config: MkDocsConfig, files: Files) -> str:
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
    return current.finish(html)


@event_priority(-100)  # after the search has written its index
def on_post_build(config: MkDocsConfig) -> None:
    """Let the search find each fragment by its title, and lead to the fragment itself."""
    path = Path(config.site_dir) / "search" / "search_index.json"
    if not path.is_file():
        return
    index = json.loads(path.read_text(encoding="utf-8"))
    for fragment in weaver.book.fragments:
        file = site_files.get_file_from_path(fragment.chapter.removeprefix("lit/"))
        if file and not fragment.number:
            index["docs"].append(
                {"location": f"{file.url}#{fragment.anchor}", "title": fragment.title, "text": fragment.place}
            )
    path.write_text(json.dumps(index, sort_keys=True, separators=(",", ":")), encoding="utf-8")
