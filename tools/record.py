"""What the tangler remembers: which files it wrote, by checksum, and what it has replaced.

A tangled file may be written over if its content is the tangler's own. How can that be known? Looking at the
chapters does not tell: once one has been edited, its old text is gone, and with it what the file was made of.
Git tells, where it is; but an archive has none, and git keeps silent in a folder of another owner. Three
designs were weighed:

- A mark in each file, a last line with the checksum of those above. It travels with the file, and it stands
  in every file that a reader opens; and two branches that change one file, each in its own corner, meet in
  that line at every merge.
- A record beside git's, on each machine. An archive comes without it, and so refuses the first tangle after
  an edit of a chapter, which is the one that counts.
- A record that is committed, `tangled.sha256`: a line for each file. It is in every archive and every clone.
  Its cost is a line in each commit that changes code. Two branches meet in it too, but lines of a record can
  stand beside each other: .gitattributes tells git to keep both sides.

The third is what is done. The record only ever permits what it recognises, so whatever happens to it costs a
refusal and no work: lines that are no checksums (a damaged file, the marks of a merge) are passed over, lines
too many do not matter, and the next tangle writes it anew. It says what is true on any machine. For the case
that it is deleted, or put back by git when the files are not, a second one in .tangle/, which git ignores,
remembers everything that was written on this machine.
"""

import hashlib
import os
import re
from pathlib import Path

MANIFEST = "tangled.sha256"
PRIVATE = ".tangle"  # the tangler's own folder
HISTORY = f"{PRIVATE}/history"
HISTORY_LENGTH = 5000  # lines; the oldest are forgotten
REPLACED = f"{PRIVATE}/replaced"

HEAD = """\
# What `make tangle` wrote last: by these checksums it tells its own files from those that a hand has edited.
# It writes this file anew each time, so a conflict here needs no resolving.
"""
_LINE = re.compile(r"^[0-9a-f]{64}  \S+(?=\s*$)", re.MULTILINE)


def line_of(path: str, data: bytes) -> str:
    """A line of the record, in the form that `sha256sum --check` reads."""
    return f"{hashlib.sha256(data).hexdigest()}  {path}"


def manifest_of(lines: list[str]) -> str:
    """The committed record, sorted by path."""
    return HEAD + "".join(f"{line}\n" for line in sorted(lines, key=lambda line: line.split("  ")[::-1]))


class Record:
    """Both records as they are on the disk. Lines that are none are passed over."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest, self.history = (self._read(name) for name in (MANIFEST, HISTORY))
        self.lines = dict.fromkeys(_LINE.findall(self.history) + _LINE.findall(self.manifest))

    def _read(self, name: str) -> str:
        place = self.root / name
        return place.read_bytes().decode("utf-8", errors="replace") if place.is_file() else ""

    def has(self, path: str, data: bytes) -> bool:
        """Whether a tangle has written exactly this under this path."""
        return line_of(path, data) in self.lines

    def knows(self, path: str) -> bool:
        """Whether a tangle has ever written a file of this name."""
        return any(line.endswith(f"  {path}") for line in self.lines)

    def announce(self, lines: list[str], drafts: Path) -> None:
        """Remember what is about to be written beside all that is there already, in both records."""
        self.lines = dict.fromkeys([line for line in self.lines if line not in lines] + lines)
        history = "".join(f"{line}\n" for line in list(self.lines)[-HISTORY_LENGTH:])
        write_whole(self.root / HISTORY, history.encode(), drafts)
        manifest = dict.fromkeys([*_LINE.findall(self.manifest), *lines])
        write_whole(self.root / MANIFEST, manifest_of(list(manifest)).encode(), drafts)


def keep(root: Path, path: str, data: bytes, own: bool, drafts: Path) -> str:
    """Keep a copy of what will be replaced; where it is. Of the tangler's own, only the last version."""
    kept = f"{REPLACED}/{path}" if own else f"{REPLACED}/{path}.{hashlib.sha256(data).hexdigest()[:8]}"
    write_whole(root / kept, data, drafts)
    return kept


def write_whole(place: Path, data: bytes, drafts: Path) -> None:
    """Write a file so that it is never seen half written. `drafts` lies on the same file system."""
    place.parent.mkdir(parents=True, exist_ok=True)
    draft = drafts / "draft"
    draft.write_bytes(data)
    os.replace(draft, place)
