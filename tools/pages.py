"""Which files are pages of the book, and which an editor or a system has left beside them.

Needs nothing but the standard library: both environments ask here.
"""

import re
from pathlib import Path

FOLDER = "lit"

# Hidden files (.#x.md is Emacs's lock, ._x.md what macOS keeps beside a file on a foreign disk), #x.md# and
# x.md~ of Emacs, what patch, git mergetool, vim and JetBrains write while they work.
_LEFT_OVER = re.compile(r"^\.|^#.*#$|~$|\.(orig|rej|bak|tmp)$|___jb_(tmp|old)___$")


def is_left_over(name: str) -> bool:
    """Whether a file or folder of this name is no work of anybody's, so that the tools look past it."""
    return bool(_LEFT_OVER.search(name))


def files_in(folder: Path, pattern: str) -> list[Path]:
    """The files below a folder whose names fit, by path, but for what is left over."""
    return [
        path
        for path in sorted(folder.rglob(pattern))
        if path.is_file() and not any(map(is_left_over, path.relative_to(folder).parts))
    ]


def pages_of(root: Path) -> list[Path]:
    """Every page of the book, guides included."""
    return files_in(root / FOLDER, "*.md")
