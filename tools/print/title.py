"""What the book is called, and what it says of itself on its first page."""

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tools.git import Git
from tools.print.pages import settings_of

SUBTITLE = "A small language model, explained by its own source"


@dataclass(frozen=True)
class Title:
    """`epoch` is the time that the files carry, in seconds since 1970."""

    name: str
    subtitle: str
    colophon: str
    epoch: int

    @property
    def identifier(self) -> str:
        """The same book has the same identifier, whenever and wherever it is made."""
        return f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'{self.name}/{self.epoch}')}"


def title_of(root: Path, volume: str = "") -> Title:
    """The site's name, or the volume's, and the time and id of the last commit."""
    name = settings_of(root).get("site_name") or root.name
    subtitle = SUBTITLE
    if volume:
        number, _, own = volume.partition(": ")
        name, subtitle = own, f"{name}, {number[:1].lower()}{number[1:]}"
    epoch, commit = last_commit(root)
    date = datetime.fromtimestamp(epoch, UTC).strftime("%-d %B %Y")
    state = f" from revision {commit}" if commit else ""
    colophon = f"Made{state} of {date}. MIT licence. This text contains the program that it explains."
    return Title(name, subtitle, colophon, epoch)


def last_commit(root: Path) -> tuple[int, str]:
    """Time and short id of the last commit. SOURCE_DATE_EPOCH goes before; without git it is 1980."""
    answer = Git(root).ask("log", "-1", "--format=%ct %h", "--abbrev=10")
    time, _, commit = (answer or "315532800 ").partition(" ")
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time), commit
