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
        origins = list(output.origins[b1:b2])
        first = first or (origins[0] if origins else output.origin(b1))
        where = f"belongs to {runs(origins)}" if origins else f"belongs after {output.origin(b1)}"
        shown.append(f"  {output.path}:{f1 + 1} {where}")
        shown += shorten([f"    book | {line}" for line in book[b1:b2]])
        shown += shorten([f"    file | {line}" for line in file[f1:f2]])
    if not shown:
        shown.append(f"  {output.path} differs only in the end of its last line, or in what may be executed")
    return first or output.origin(len(output.origins)), "\n".join(shown)


def runs(origins: list[Origin]) -> str:
    """Origins one after the other, neighbouring lines together: lit/a.md:3-5 (x), lit/b.md:9 (y)."""
    found: list[list[Origin]] = []
    for origin in origins:
        last = found[-1][-1] if found else None
        if last and (last.chapter, last.name, last.line + 1) == (origin.chapter, origin.name, origin.line):
            found[-1].append(origin)
        else:
            found.append([origin])
    return ", ".join(
        f"{run[0].chapter}:{run[0].line}{f'-{run[-1].line}' if len(run) > 1 else ''} ({run[0].name})"
        for run in found
    )


def shorten(lines: list[str]) -> list[str]:
    """Keep a long difference readable."""
    if len(lines) <= LONGEST:
        return lines
    return [*lines[:LONGEST], f"         | … {len(lines) - LONGEST} more lines"]
