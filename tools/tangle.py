"""Put the fragments together, and know for every line of code the line of the chapter that it came from."""

import re
from dataclasses import dataclass

from entangled.config import AnnotationMethod
from entangled.model import ReferenceName, tangle_ref

from tools.chapters import Block, Book
from tools.problems import Problem, Refused

# What Entangled's standard annotation writes around each block, in the comment of whatever language.
_BEGIN = re.compile(
    r"^(?P<indent>\s*)\S+ ~/~ begin <<(?P<chapter>[^>]+)#(?P<name>[^>#]+)>>\[(?P<nth>init|\d+)\]"
)
_END = re.compile(r"^\s*\S+ ~/~ end\b")


@dataclass(frozen=True)
class Origin:
    """Where a line of code was written. `indent` is what references have put before it."""

    chapter: str
    line: int
    name: str
    indent: str = ""

    def __str__(self) -> str:
        return f"{self.chapter}:{self.line} ({self.name})"


@dataclass(frozen=True)
class Output:
    """A file that the book writes: its text, one origin for each line, and the fence that claims it."""

    path: str
    text: str
    origins: tuple[Origin, ...]
    block: Origin

    def origin(self, line: int) -> Origin:
        """The origin of a line counted from 1; past the end, that of the last line."""
        if not self.origins:
            return self.block
        return self.origins[max(0, min(line, len(self.origins)) - 1)]


def tangle(book: Book) -> dict[str, Output]:
    """All files of the book, by path."""
    return {path: tangle_file(book, block) for path, block in book.targets().items()}


def tangle_file(book: Book, root: Block) -> Output:
    """Tangle one file with Entangled's markers, then take them out again and keep what they tell."""
    blocks = {(b.chapter, b.name, n): b for b, n in _numbered(book)}
    annotated, _ = tangle_ref(book.references, ReferenceName((), root.name), AnnotationMethod.STANDARD)
    lines: list[str] = []
    origins: list[Origin] = []
    stack: list[_Reading] = []
    for line in annotated.split("\n")[:-1]:
        if begin := _BEGIN.match(line):
            first = begin["nth"] == "init"
            if first and stack:
                stack[-1].position += 1  # the line of the reference itself
            block = blocks[begin["chapter"], begin["name"], 0 if first else int(begin["nth"])]
            stack.append(_Reading(block, begin["indent"]))
        elif _END.match(line):
            stack.pop()
        else:
            reading = stack[-1]
            line = line if line.strip() else ""  # Entangled indents empty lines too
            origin = Origin(
                reading.block.chapter,
                reading.block.line + 1 + reading.position,
                reading.block.name,
                reading.indent,
            )
            if line.strip() != reading.block.code[reading.position].strip():
                raise Refused(
                    [Problem(origin.chapter, origin.line, f"lost count of the lines of {root.fence.file}.")]
                )
            reading.position += 1
            lines.append(line)
            origins.append(origin)
    assert root.fence.file
    text = "".join(line + "\n" for line in lines)
    return Output(root.fence.file, text, tuple(origins), Origin(root.chapter, root.line, root.name))


@dataclass
class _Reading:
    block: Block
    indent: str
    position: int = 0


def _numbered(book: Book) -> list[tuple[Block, int]]:
    """Each block with its count among those of its name in its chapter, as Entangled numbers them."""
    counts: dict[tuple[str, str], int] = {}
    numbered = []
    for block in book.blocks:
        key = block.chapter, block.name
        counts[key] = counts.get(key, -1) + 1
        numbered.append((block, counts[key]))
    return numbered
