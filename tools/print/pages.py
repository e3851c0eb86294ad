"""Which pages the book has, in which volume and in which order: that of the site's navigation."""

import importlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from tools.pages import FOLDER, pages_of

SETTINGS = "mkdocs.yml"
LEFT_OUT = "reference/modules"
VOLUME = "Volume "  # how the heading of one begins; then its number, a colon, its name


@dataclass(frozen=True)
class Page:
    """A page as its author wrote it. `path` is relative to the project; `part`, `volume` are navigation's."""

    path: str
    text: str
    part: str = ""
    volume: str = ""

    @property
    def id(self) -> str:
        """What the page is called in links within the book. XML wants a letter in front."""
        return "at-" + self.path.removeprefix(FOLDER + "/").removesuffix(".md").replace("/", "-")


class _Settings(yaml.SafeLoader):  # type: ignore[misc]
    """mkdocs.yml names Python functions by tags that a safe loader refuses; nothing here needs them."""


_Settings.add_multi_constructor("", lambda loader, suffix, node: None)


def settings_of(root: Path) -> dict[str, Any]:
    """The site's settings; empty if the project has none."""
    path = root / SETTINGS
    return (yaml.load(path.read_text(encoding="utf-8"), _Settings) or {}) if path.is_file() else {}


def read_pages(root: Path) -> list[Page]:
    """All pages below lit/, those of the navigation first and in its order, then the others by path.

    Indexes of the site are not among them: print has its own. The reference made from the code is.
    """
    folder = root / FOLDER
    texts = {
        path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8-sig") for path in pages_of(root)
    } | made_pages(root)
    nav = settings_of(root).get("nav") or ["index.md"]
    parts, of = navigation(nav, list(texts)), volumes(nav, list(texts))
    last = list(of.values())[-1] if of else ""
    order = [*parts, *(name for name in texts if name not in parts)]
    return [Page(f"{FOLDER}/{name}", texts[name], parts.get(name, ""), of.get(name, last)) for name in order]


def volumes(entries: list[Any], known: list[str]) -> dict[str, str]:
    """The volume of each page in the navigation: its top heading, where that is called Volume.

    What stands before the first volume belongs to it. Without volumes it is "" for all.
    """
    pages: dict[str, str] = {}
    for entry in entries:
        title = next(iter(entry)) if isinstance(entry, dict) else ""
        for page in navigation([entry], known):
            pages.setdefault(page, title if title.startswith(VOLUME) else "")
    first = next(filter(None, pages.values()), "")
    return {page: volume or first for page, volume in pages.items()}


def made_pages(root: Path) -> dict[str, str]:
    """The pages that the project makes from its code, if it does; but not what it says of each module.

    That would add a hundred pages, and all of it stands in the fragments.
    """
    if not (root / "tools" / "reference.py").is_file():
        return {}
    made: dict[str, str] = importlib.import_module("tools.reference").pages(root)
    return {name: text for name, text in made.items() if not name.startswith(LEFT_OUT)}


def navigation(entries: list[Any], known: list[str], part: str = "") -> dict[str, str]:
    """The pages that the navigation lists, each with the heading of the section it stands in.

    A pattern stands for all pages that fit it and have no earlier place.
    """
    pages: dict[str, str] = {}
    for entry in entries:
        for title, below in entry.items() if isinstance(entry, dict) else [(part, entry)]:
            if isinstance(below, list):
                found = navigation(below, known, title)
            else:
                depth = below.count("/")
                fitting = sorted(page for page in known if fnmatch(page, below) and page.count("/") == depth)
                found = dict.fromkeys(fitting, part)
            pages |= {page: title for page, title in found.items() if page not in pages}
    return pages
