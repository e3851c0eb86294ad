"""Which pages the book has, and in which order: that of the site's navigation."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

FOLDER = "lit"
SETTINGS = "mkdocs.yml"


@dataclass(frozen=True)
class Page:
    """A page as its author wrote it. `path` is relative to the project; `part` the navigation's heading."""

    path: str
    text: str
    part: str = ""

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

    What the site makes while it is built has no file and is not part of the book.
    """
    folder = root / FOLDER
    listed = navigation(settings_of(root).get("nav") or [])
    order = [name for name in listed if (folder / name).is_file()]
    found = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.md"))
    first = [name for name in ("index.md",) if name in found and not order]
    rest = [name for name in found if name not in listed and name not in first]
    return [
        Page(f"{FOLDER}/{name}", (folder / name).read_text(encoding="utf-8-sig"), listed.get(name, ""))
        for name in [*first, *order, *rest]
    ]


def navigation(entries: list[Any], part: str = "") -> dict[str, str]:
    """The files that the navigation lists, each with the heading of the section it stands in."""
    pages: dict[str, str] = {}
    for entry in entries:
        if isinstance(entry, str):
            pages[entry] = part
            continue
        for title, below in entry.items():
            pages |= {below: part} if isinstance(below, str) else navigation(below, title)
    return pages
