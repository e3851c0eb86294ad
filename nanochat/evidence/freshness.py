"""Which fragments of the book a computation runs, and whether they are what they were. No PyTorch."""

from __future__ import annotations

import functools
import hashlib
import io
import re
import sys
import threading
import tokenize
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from nanochat.provenance import ROOT, Book, places, read_book

REFERENCE = re.compile(r"\s*<<([\w.-]+)>>\s*")
# Not watched: what delivers the text, which is known by its tokens; what is compared as data; what handles
# numbers once they are measured.
OF_TEXT = ("common", "dataset", "tokenizer", "dataloader")
OF_DATA = ("flags", "provenance", "train_config", "settings", "experiments")
OF_PAPER = ("runs", "records", "report", "statistics", "freshness")
SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.ENCODING, tokenize.ENDMARKER)


def digests(book: Book, names: Iterable[str]) -> dict[str, str]:
    """A checksum of each of these fragments, the same after changes that cannot change what they do."""
    code = {
        name: statements(tuple(line for line, _ in book.fragments.get(name, []))) for name in sorted(names)
    }
    used = {word for lines in code.values() for line in lines if not is_import(line) for word in line}
    return {name: checksum(lines, used) for name, lines in code.items()}


def checksum(lines: list[list[str]], used: set[str]) -> str:
    """A checksum of statements. Of imports only those count that bring a name which is used."""
    words: list[str] = []
    for line in lines:
        if is_import(line):
            words += [source for name, source in sorted(imported(line).items()) if name in used]
        else:
            words += [*line, "\n"]
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:16]


def is_import(words: list[str]) -> bool:
    """Whether a statement is an import."""
    return words[0] in ("import", "from")


def imported(words: list[str]) -> dict[str, str]:
    """For each name that an import statement brings, where it comes from."""
    at = words.index("import")
    module, found = "".join(words[1:at]), {}
    for part in " ".join(word for word in words[at + 1 :] if word not in "()").split(","):
        name, _, alias = part.strip().replace(" . ", ".").partition(" as ")
        if name:
            found[alias or name.split(".")[0]] = f"{module}:{name}"
    return found


@functools.lru_cache(maxsize=4096)
def statements(lines: tuple[str, ...]) -> list[list[str]]:
    """The words of each statement of a fragment, without references, comments and docstrings."""
    code = [line for line in lines if not REFERENCE.fullmatch(line)]
    indent = min((len(line) - len(line.lstrip()) for line in code if line.strip()), default=0)
    text = "\n".join(line[indent:] for line in code)
    try:
        return meaningful(text)
    except (tokenize.TokenError, SyntaxError):
        return [["line", line.rstrip()] for line in text.split("\n") if line.strip()]


def meaningful(text: str) -> list[list[str]]:
    """The statements of a piece of Python, each as its words; a change of indentation is one too."""
    found: list[list[str]] = []
    words: list[str] = []
    docstring = False
    for kind, word in whole_strings(text):
        if kind in SILENT:
            continue
        if kind == tokenize.STRING and not words:
            docstring = True
        if kind == tokenize.NEWLINE:
            if not (docstring and len(words) == 1):
                found.append(words)
            words, docstring = [], False
        elif kind in (tokenize.INDENT, tokenize.DEDENT):
            found.append([tokenize.tok_name[kind]])
        else:
            words.append(word)
    return [line for line in found if line]


def whole_strings(text: str) -> Iterator[tuple[int, str]]:
    """Kind and text of each token, an f-string being one token in every version of Python."""
    lines, depth, start = text.split("\n"), 0, (0, 0)
    opening, closing = (getattr(tokenize, f"FSTRING_{end}", -1) for end in ("START", "END"))
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == opening:
            start = start if depth else token.start
            depth += 1
        elif token.type == closing:
            depth -= 1
            if not depth:
                row, column = token.end
                picked = [*lines[start[0] - 1 : row - 1], lines[row - 1][:column]]
                yield tokenize.STRING, "\n".join(picked)[start[1] :]
        elif not depth:
            yield token.type, token.string


def with_containers(book: Book, names: set[str]) -> set[str]:
    """These fragments and all that refer to them, directly or not."""
    users: dict[str, set[str]] = {}
    for name, lines in book.fragments.items():
        for line, _ in lines:
            if match := REFERENCE.fullmatch(line):
                users.setdefault(match[1], set()).add(name)
    found, waiting = set(names), list(names)
    while waiting:
        for user in users.get(waiting.pop(), set()) - found:
            found.add(user)
            waiting.append(user)
    return found


def fragments_run(work: Callable[[], Any], root: Path = ROOT) -> set[str]:
    """Call `work` and return the fragments that it ran, with those that contain them."""
    watched = {
        str(path): path
        for path in (root / "nanochat").rglob("*.py")
        if path.stem not in OF_TEXT + OF_DATA + OF_PAPER and "learning" not in path.parts
    }
    seen: set[tuple[str, int]] = set()

    def in_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return in_line

    def in_call(frame: FrameType, event: str, argument: Any) -> Any:
        return in_line if frame.f_code.co_filename in watched else None

    before = sys.gettrace()
    sys.settrace(in_call)
    threading.settrace(in_call)
    try:
        work()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    book = read_book(root)
    known = {name: places(book, watched[name], root) for name in {name for name, _ in seen}}
    names = {known[name][line].fragment for name, line in seen if line in known[name]}
    return with_containers(book, names)


def changed_since(code: dict[str, str], book: Book) -> list[str]:
    """The fragments, of those a record depends on, that are not what they were, each with its place."""
    now = digests(book, code)
    lines = []
    for name, then in code.items():
        if name not in book.fragments:
            lines.append(f"the fragment {name} is no longer there")
        elif now[name] != then:
            place = book.fragments[name][0][1] if book.fragments[name] else None
            lines.append(f"{name} has changed" + (f" ({place.chapter}:{place.line})" if place else ""))
    return lines
