"""Make both files of the book, or neither: `python -m tools book`."""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from tools.print.answers import move_to_the_back
from tools.print.code import Setter
from tools.print.epub import bind
from tools.print.pages import read_pages
from tools.print.pdf import cover, typeset
from tools.print.reader import read
from tools.print.title import title_of
from tools.weave.model import weave

FOLDER = "build"


def make_book(root: Path, say: Callable[[str], None] = print) -> int:
    """build/book.epub and build/book.pdf. Raises Refused with everything that is wrong with the book."""
    began = perf_counter()
    woven = weave(root)
    setter = Setter(woven)
    readings = move_to_the_back(read(root, read_pages(root), setter))
    title = title_of(root)
    scratch = root / FOLDER / "typst"
    scratch.mkdir(parents=True, exist_ok=True)
    epub = bind(root, title, readings, setter, cover(root, title, scratch))
    pdf = typeset(root, title, readings, setter, scratch)
    for name, data in (("book.epub", epub), ("book.pdf", pdf)):
        new = scratch / name
        new.write_bytes(data)
        os.replace(new, root / FOLDER / name)
        say(f"wrote {FOLDER}/{name}, {len(data) / 1e6:.1f} MB")
    say(f"{len(readings)} chapters, {len(woven.fragments)} fragments, in {perf_counter() - began:.0f} s")
    return 0
