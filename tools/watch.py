"""Tangle whenever a chapter is saved, and survive whatever is wrong with it."""

import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from watchfiles import Change, watch

from tools.chapters import SETTINGS
from tools.pages import FOLDER, is_left_over
from tools.problems import Refused, said_by_system


def is_of_the_book(root: Path, path: str) -> bool:
    """Whether a change of this file can change what is tangled."""
    place = Path(path)
    if place in (root / SETTINGS, root / FOLDER):
        return True
    return place.parent == root / FOLDER and place.suffix == ".md" and not is_left_over(place.name)


def folders_of(root: Path) -> dict[Path, int]:
    """The folders to be watched that are there, and which folder each is: another one can take its name."""
    return {folder: folder.stat().st_ino for folder in (root, root / FOLDER) if folder.is_dir()}


def saves(root: Path) -> Iterator[None]:
    """Return once for each batch of changes to the book, for ever. The folder lit/ may go and come back.

    Nobody hears of a folder that comes or goes while a watch is being set up. So the folders are looked at
    twice a second as well, and compared with those that the watch began with.
    """

    def wanted(_: Change, path: str) -> bool:
        return is_of_the_book(root, path)

    while True:
        watched = folders_of(root)
        for changes in watch(
            *watched,
            watch_filter=wanted,
            recursive=False,
            raise_interrupt=True,
            debounce=200,
            rust_timeout=500,
            yield_on_timeout=True,
        ):
            moved = folders_of(root) != watched
            if changes or moved:
                yield
            if moved:
                break  # watch the new lit/, or no longer the old one


def follow(root: Path, tangle: Callable[[Path], int], batches: Iterator[None] | None = None) -> int:
    """Tangle now and after each save, until Ctrl-C."""
    print("watching lit/; Ctrl-C ends it", flush=True)
    try:
        attempt(root, tangle)
        for _ in saves(root) if batches is None else batches:
            attempt(root, tangle)
    except KeyboardInterrupt:
        print("\nno longer watching")
    return 0


def attempt(root: Path, tangle: Callable[[Path], int]) -> None:
    """Tangle once. Whatever goes wrong is printed, and the next save gets its chance."""
    try:
        tangle(root)
    except Refused as refused:
        print(refused, file=sys.stderr)
        print("nothing was written; waiting for the next save", file=sys.stderr)
    except OSError as error:
        print(said_by_system(error), "Waiting for the next save", file=sys.stderr)
    except Exception:  # a mistake in the tools is no reason to stop watching
        traceback.print_exc()
        print("nothing more was written; waiting for the next save", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
