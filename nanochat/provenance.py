"""Name, for a line of the program, the chapter and the line where it was written.

Needs nothing but the standard library and the folder lit/. Where that is missing, it says nothing.
"""

import difflib
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from traceback import walk_tb
from types import TracebackType

ROOT = Path(__file__).resolve().parents[1]
USAGE = "Write: make where AT=nanochat/normans_gpt.py:123"


@dataclass(frozen=True)
class Place:
    """A line of a chapter, counted from 1, and the fragment it belongs to."""

    chapter: str
    line: int
    fragment: str

    def __str__(self) -> str:
        return f"{self.chapter}:{self.line} ({self.fragment})"


@dataclass(frozen=True)
class Book:
    """The lines of each fragment with their places, and for each file the fragment that it consists of."""

    fragments: dict[str, list[tuple[str, Place]]]
    files: dict[str, str]


def read_book(root: Path = ROOT) -> Book:
    """Read all chapters. A folder without lit/ gives an empty book."""
    book = Book({}, {})
    for path in sorted((root / "lit").glob("[!.]*.md")):
        chapter = path.relative_to(root).as_posix()
        end, fragment = "", None  # the line that ends the present block; "" outside of blocks
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for number, line in enumerate(text.split("\n"), 1):
            if end:
                if line.rstrip() == end:
                    end, fragment = "", None
                elif fragment is not None:
                    book.fragments[fragment].append((line, Place(chapter, number, fragment)))
            elif line.rstrip() == "~~~markdown":
                end = "~~~"
            elif re.match(r"```\w+ +(#|file=)", line):
                header = re.sub('"[^"]*"', '""', line)
                name, file = re.search(r" #(\S+)", header), re.search(r" file=(\S+)", header)
                fragment = name[1] if name else file[1] if file else ""
                book.fragments.setdefault(fragment, [])
                if file:
                    book.files[file[1]] = fragment
                end = "```"
    return book


def tangled(book: Book, name: str, indent: str = "", *above: str) -> Iterator[tuple[str, Place]]:
    """The lines of a fragment with all that it refers to, each with the place where it was written."""
    for line, place in book.fragments.get(name, []):
        reference = re.fullmatch(r"(\s*)<<([\w.-]+)>>\s*", line)
        if not reference:
            yield (indent + line if line.strip() else "", place)
        elif reference[2] not in above:
            yield from tangled(book, reference[2], indent + reference[1], *above, name)


def places(book: Book, path: Path, root: Path) -> dict[int, Place]:
    """For each line of a tangled file, counted from 1, that the book has: the place where it was written."""
    if not path.is_relative_to(root) or not path.is_file():
        return {}
    fragment = book.files.get(path.relative_to(root).as_posix())
    if fragment is None:
        return {}
    written = list(tangled(book, fragment))
    theirs = path.read_text(encoding="utf-8", errors="replace").split("\n")
    matcher = difflib.SequenceMatcher(None, [text for text, _ in written], theirs, autojunk=False)
    found: dict[int, Place] = {}
    for ours, start, size in matcher.get_matching_blocks():
        found |= {start + i + 1: written[ours + i][1] for i in range(size)}
    return found


def locate(path: str | Path, line: int, root: Path = ROOT) -> Place | None:
    """Where a line of a tangled file, counted from 1, was written. None if the book does not have it."""
    return places(read_book(root), Path(path).resolve(), root).get(line)


def explain(error: BaseException, root: Path = ROOT) -> list[str]:
    """Where in the book the frames of an exception lie, and of those that led to it, a line for each.

    The last line is where it was raised. A syntax error has only the line that Python cannot read.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.insert(0, cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    at: list[tuple[str, int]] = []
    for one in chain:
        if isinstance(one, SyntaxError) and one.filename and one.lineno:
            at = [(one.filename, one.lineno)]
        else:
            at += [(frame.f_code.co_filename, line) for frame, line in walk_tb(one.__traceback__)]
    book, known, lines = read_book(root), dict[Path, dict[int, Place]](), dict[str, None]()
    for name, line in at:
        path = Path(name).resolve()
        if path not in known:
            known[path] = places(book, path, root)
        if place := known[path].get(line):
            lines[f"{path.relative_to(root).as_posix()}:{line} was written in {place}"] = None
    return list(lines)


def install() -> None:
    """From now on, let an uncaught exception name the chapters too. Calling it again changes nothing."""
    before = sys.excepthook
    if getattr(before, "names_chapters", False):
        return

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        before(kind, error, trace)
        with suppress(Exception):
            if lines := explain(error):
                more = " (raised in the last of these lines)" if len(lines) > 1 else ""
                print(f"\nIn the book{more}:", *lines, sep="\n  ", file=sys.stderr)

    hook.names_chapters = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def main(arguments: list[str]) -> int:
    """Print where FILE:LINE was written. Exit status 1 if the book does not have it, 2 for a wrong call."""
    if arguments in (["-h"], ["--help"]):
        print(f"{USAGE}\nPrint the chapter and the line in which a line of tangled code was written.")
        return 0
    match = re.fullmatch(r"(.+?):(\d+)(?::.*)?", arguments[0]) if len(arguments) == 1 else None
    if not match:
        print(f"error: which line? {USAGE}", file=sys.stderr)
        return 2
    path, line = Path(match[1]), int(match[2])
    if not path.is_file():
        path = ROOT / path
    if not path.is_file():
        print(f"error: there is no file {match[1]}", file=sys.stderr)
        return 2
    place = locate(path, line)
    if place is None:
        print(f"error: {why_nowhere(path.resolve(), line)}", file=sys.stderr)
        return 1
    print(place)
    return 0


def why_nowhere(path: Path, line: int) -> str:
    """Why the book does not have a line of a file that exists."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else str(path)
    if name.startswith("skeleton/"):
        return f"{name} is derived from the chapters: see the same function in nanochat/{path.name}"
    if name not in read_book(ROOT).files:
        return f"{name} is not tangled: no chapter writes it"
    count = len(path.read_text(encoding="utf-8", errors="replace").splitlines())
    if not 1 <= line <= count:
        return f"{name} has {count} lines, and no line {line}"
    return f"no chapter has line {line} of {name}; `make check` shows what differs"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
