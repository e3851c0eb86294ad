"""Make all files of the book, or none: `python -m tools book`."""

import os
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from tools.print.answers import move_to_the_back
from tools.print.code import Setter
from tools.print.epub import bind
from tools.print.pages import read_pages
from tools.print.parts import with_parts
from tools.print.pdf import cover, typeset
from tools.print.reader import read
from tools.print.title import title_of
from tools.weave.model import weave

FOLDER = "build"


def make_book(root: Path, say: Callable[[str], None] = print) -> int:
    """An EPUB and a PDF of each volume in build/. Raises Refused with everything that is wrong."""
    began = perf_counter()
    woven = weave(root)
    pages = read_pages(root)
    setter = Setter(woven, {page.path: page.volume for page in pages})
    readings = read(root, pages, setter)
    scratch = root / FOLDER / "typst"
    scratch.mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes] = {}
    for volume in dict.fromkeys(page.volume for page in pages):
        title, own = title_of(root, volume), setter.within(volume)
        within = with_parts(reading for reading in readings if reading.page.volume == volume)
        chapters = move_to_the_back([*within])
        files[f"{stem(volume)}.epub"] = bind(root, title, chapters, own, cover(root, title, scratch))
        files[f"{stem(volume)}.pdf"] = typeset(root, title, chapters, own, scratch)
    for name, data in files.items():
        new = scratch / name
        new.write_bytes(data)
        os.replace(new, root / FOLDER / name)
        say(f"wrote {FOLDER}/{name}, {len(data) / 1e6:.1f} MB")
    say(f"{len(readings)} chapters, {len(woven.fragments)} fragments, in {perf_counter() - began:.0f} s")
    return 0


def stem(volume: str) -> str:
    """What the files of a volume are called: volume-one for "Volume one: A name", book without volumes."""
    return volume.partition(":")[0].lower().replace(" ", "-") or "book"
