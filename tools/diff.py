"""Show how a tangled file differs from the book, and which lines of which chapter that concerns."""

import difflib
from pathlib import Path

from tools.tangle import Origin, Output

LONGEST = 40  # lines shown of one difference


def describe(root: Path, output: Output) -> tuple[Origin, str]:
    """The first place in the chapters where file and book differ, and all differences as text."""
    book = output.text.split("\n")[:-1]
    file = (root / output.path).read_bytes().decode("utf-8", errors="backslashreplace").split("\n")
    if file[-1] == "":
        file.pop()
    first: Origin | None = None
    shown: list[str] = []
    matcher = difflib.SequenceMatcher(None, book, file, autojunk=False)
    for kind, b1, b2, f1, f2 in matcher.get_opcodes():
        if kind == "equal":
            continue
        start, end = output.origin(b1 + 1 if b2 > b1 else max(b1, 1)), output.origin(max(b2, 1))
        first = first or start
        lines = f"{start.line}" if start == end or b2 <= b1 + 1 else f"{start.line}-{end.line}"
        if start.chapter != end.chapter:
            lines = f"{start.line} to {end.chapter}:{end.line}"
        where = "after " if b1 == b2 else ""
        shown.append(
            f"  {output.path}:{f1 + 1} belongs {'' if where else 'to '}{where}{start.chapter}:{lines} "
            f"({start.name})"
        )
        shown += shorten([f"    book | {line}" for line in book[b1:b2]])
        shown += shorten([f"    file | {line}" for line in file[f1:f2]])
    if not shown:
        shown.append(f"  {output.path} differs only in the end of its last line, or in what may be executed")
    return first or output.origin(len(output.origins)), "\n".join(shown)


def shorten(lines: list[str]) -> list[str]:
    """Keep a long difference readable."""
    if len(lines) <= LONGEST:
        return lines
    return [*lines[:LONGEST], f"         | … {len(lines) - LONGEST} more lines"]
