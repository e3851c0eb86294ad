"""The woven book, whatever it is shown with: what each fragment is called, where it lands, who uses it.

Nothing here knows of MkDocs, HTML or pandoc. The site and the EPUB are both made from `weave`:

    book = weave(root)
    for fragment in book.fragments:  # in reading order
        print(fragment.title, fragment.place)  # "Attend within the causal mask", "nanochat/…, in …, line 9"

Where a fragment lands is found by putting the fragments together once more and comparing every line with the
tangler's own line map. Reading it off the map alone would not do: for each line it names only the innermost
fragment, and a fragment whose first line is a reference begins where the other one begins.
"""

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol

from tools.book import read_book
from tools.chapters import Block, Book
from tools.lint import references_of
from tools.problems import Problem, Refused
from tools.tangle import Output, tangle

# Words of fragment names that are not written in lower case, and pairs that belong together.
_SPELLING = {
    word.lower(): word
    for word in (
        *("CI", "CORE", "CPU", "CUDA", "GPU", "HF", "JSON", "RAM", "SVG", "URL", "Python", "PyTorch"),
        *("AdamW", "BOS", "FineWeb", "FLOPs", "GPT", "KV", "MLP", "Muon", "Newton", "QK", "Schulz", "SDPA"),
    )
}
# A name holds neither dashes within a word nor apostrophes.
_PHRASES = {
    "Newton Schulz": "Newton–Schulz",
    "books names": "book's names",
    "benchmarks flags": "benchmark's flags",
    "comparisons flags": "comparison's flags",
    "cores questions": "CORE's questions",
    "devices clock": "device's clock",
    "learners function": "learner's function",
    "librarys": "library's",
    "machines peak": "machine's peak",
    "models shape": "model's shape",
    "queries keys and": "queries, keys and",
    "steps section": "step's section",
    "tokenizers folder": "tokenizer's folder",
    "torchs optimizers": "torch's optimizers",
    "with the books": "with the book's",
}


class Step(Protocol):
    """What the weaver needs of one of the learner's steps; nanochat.learning.steps has them."""

    @property
    def id(self) -> str: ...
    @property
    def phase(self) -> int: ...
    @property
    def title(self) -> str: ...
    @property
    def fragment(self) -> str: ...
    @property
    def why(self) -> str: ...
    @property
    def hints(self) -> tuple[str, str, str]: ...
    @property
    def questions(self) -> tuple[str, ...]: ...
    @property
    def folded(self) -> bool: ...


@dataclass(frozen=True)
class Landing:
    """One place where the tangler puts a fragment: lines `first` to `last` of a file, counted from 1."""

    path: str
    first: int
    last: int
    scope: str = ""  # the classes and functions around it: "CausalSelfAttention.forward()"

    def __str__(self) -> str:
        return ", ".join((self.path, *([f"in {self.scope}"] if self.scope else []), f"line {self.first}"))


@dataclass(frozen=True)
class Reference:
    """A line of a fragment that stands for another fragment. `row` counts the fragment's lines from 0."""

    row: int
    indent: str
    name: str


@dataclass(frozen=True)
class Fragment:
    """A block of a chapter that becomes code.

    `line` and `end` are the lines of its two fences in the chapter. A fragment that is written in several
    blocks is several of these: `number` counts them from 0, and only the first has the name's plain anchor.
    """

    name: str
    title: str
    chapter: str
    line: int
    end: int
    language: str
    code: tuple[str, ...]
    number: int = 0
    file: str | None = None
    todo: str | None = None
    references: tuple[Reference, ...] = ()
    lands: tuple[Landing, ...] = ()
    used_in: tuple[str, ...] = ()  # anchors of the fragments that refer to this one
    continues: str | None = None  # anchor of the block before, where the fragment has several
    continued_in: str | None = None
    step: Step | None = None  # what a learner writes here
    answer_to: str | None = None  # anchor of the fragment with a todo that this one is a part of

    @property
    def anchor(self) -> str:
        """The id of the fragment on its page, unique in the book."""
        return anchor_of(self.name, self.number)

    @property
    def place(self) -> str:
        """Where it lands, in words; the first place if there are several."""
        if self.file:
            return self.file
        more = f" and {len(self.lands) - 1} more" if len(self.lands) > 1 else ""
        return f"{self.lands[0]}{more}" if self.lands else ""


@dataclass(frozen=True)
class Run:
    """Neighbouring lines of a file, `first` to `last`, that come from one fragment's neighbouring lines."""

    first: int
    last: int
    anchor: str
    line: int  # of the chapter, where the first of them was written


@dataclass(frozen=True)
class File:
    """A file that the book writes, whole. `root` is the anchor of the fragment that claims it."""

    path: str
    text: str
    language: str
    root: str
    runs: tuple[Run, ...]


@dataclass(frozen=True)
class Woven:
    """All fragments in reading order, and all files by path."""

    fragments: tuple[Fragment, ...] = ()
    files: Mapping[str, File] = field(default_factory=dict)

    @cached_property
    def by_anchor(self) -> dict[str, Fragment]:
        return {fragment.anchor: fragment for fragment in self.fragments}

    def __getitem__(self, anchor: str) -> Fragment:
        return self.by_anchor[anchor]

    def named(self, name: str, number: int = 0) -> Fragment | None:
        """The block of this name, the first unless said otherwise; None if the book has none."""
        return self.by_anchor.get(anchor_of(name, number))

    def in_chapter(self, chapter: str) -> list[Fragment]:
        """The fragments of a chapter ("lit/10-….md"), in reading order."""
        return [fragment for fragment in self.fragments if fragment.chapter == chapter]


def weave(root: Path, steps: Sequence[Step] | None = None) -> Woven:
    """The book in folder `root`. Raises Refused with everything that is wrong with it."""
    return weave_book(read_book(root), steps=learners_steps() if steps is None else steps)


def learners_steps() -> Sequence[Step]:
    """The steps of the learner, in their order; none where the book does not have that part."""
    try:
        from nanochat.learning.steps import ALL_STEPS
    except ImportError:
        return ()
    return ALL_STEPS


def weave_book(book: Book, steps: Sequence[Step] = ()) -> Woven:
    """What readers are told about each block of a book that can be tangled."""
    outputs = tangle(book)
    lands: dict[tuple[str, int], list[Landing]] = {}
    for path, output in outputs.items():
        scopes = scopes_of(output)
        for block, first, last in landings(book, output):
            landing = Landing(path, first, last, scope_at(scopes, first))
            lands.setdefault((block.chapter, block.line), []).append(landing)

    known = [_fragment(book, block, lands.get((block.chapter, block.line), [])) for block in book.blocks]
    users: dict[str, list[str]] = {}
    for fragment in known:
        for name in dict.fromkeys(reference.name for reference in fragment.references):
            users.setdefault(name, []).append(fragment.anchor)
    anchors = {fragment.anchor for fragment in known}
    by_step = {step.fragment: step for step in steps}
    answers = [fragment for fragment in known if fragment.todo]
    fragments = []
    for fragment in known:
        before = anchor_of(fragment.name, fragment.number - 1) if fragment.number else None
        after = anchor_of(fragment.name, fragment.number + 1)
        fragments.append(
            replace(
                fragment,
                used_in=tuple(users.get(fragment.name, ())),
                continues=before,
                continued_in=after if after in anchors else None,
                step=by_step.get(fragment.name) if fragment.number == 0 else None,
                answer_to=next(
                    (a.anchor for a in answers if a is not fragment and is_inside(fragment, a)), None
                ),
            )
        )
    return Woven(tuple(fragments), {path: _file(book, output) for path, output in outputs.items()})


def is_inside(part: Fragment, whole: Fragment) -> bool:
    """Whether everything that a fragment becomes lies within what another becomes."""
    return bool(part.lands) and all(
        any(w.path == p.path and w.first <= p.first and p.last <= w.last for w in whole.lands)
        for p in part.lands
    )


def anchor_of(name: str, number: int = 0) -> str:
    """The id of a fragment on its page. With a prefix, because headings have ids too (## Norm)."""
    return "fragment-" + re.sub(r"[^A-Za-z0-9_.-]+", "-", name) + (f"-{number + 1}" if number else "")


def title_of(name: str) -> str:
    """A fragment's name as the sentence that it is: rotate-queries becomes "Rotate queries"."""
    if "/" in name:
        return name  # a block that has only a file
    words = [_SPELLING.get(word.lower(), word) for word in re.split(r"[-_]", name) if word]
    title = " ".join(words)
    title = title[:1].upper() + title[1:]
    for apart, together in _PHRASES.items():
        title = title.replace(apart, together)
    return title


def function_name(block: Block) -> str | None:
    """The function that the block consists of, if it is one."""
    match = re.search(r"^(?:async )?def (\w+)", "\n".join(block.code), re.M)
    return match[1] if match else None


def _fragment(book: Book, block: Block, lands: list[Landing]) -> Fragment:
    number = book.named(block.name).index(block)
    title = title_of(block.name)
    if block.fence.todo and (function := function_name(block)):
        scope = lands[0].scope.removesuffix("()") if lands else ""
        title = f"{scope}.{function}" if scope else function
    return Fragment(
        name=block.name,
        title=title,
        chapter=block.chapter,
        line=block.line,
        end=block.fence.end,
        language=block.fence.language,
        code=block.code,
        number=number,
        file=block.fence.file,
        todo=block.fence.todo,
        references=tuple(
            Reference(line - block.line - 1, indent_of(block.code[line - block.line - 1]), name)
            for line, name in references_of(block)
        ),
        lands=tuple(lands),
    )


def indent_of(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def landings(book: Book, output: Output) -> Iterator[tuple[Block, int, int]]:
    """Every block that a file is made of, with its first and last line there; the outer before the inner.

    Raises Refused if the tangler's line map says otherwise: the two would then tell readers different things.
    """
    found: list[tuple[Block, int, int]] = []

    def expand(name: str, row: int) -> int:
        for block in book.named(name):
            references = dict(references_of(block))
            place = len(found)
            found.append((block, row + 1, row + 1))
            first = row + 1
            for line in range(block.line + 1, block.fence.end):
                if line in references:
                    row = expand(references[line], row)
                    continue
                origin = output.origins[row]
                if (origin.chapter, origin.line) != (block.chapter, line):
                    raise Refused(
                        [Problem(block.chapter, line, f"lost its place in {output.path}:{row + 1}.")]
                    )
                row += 1
            found[place] = block, first, max(first, row)
        return row

    expand(output.block.name, 0)
    return iter(found)


def scopes_of(output: Output) -> list[tuple[int, int, str]]:
    """First and last line and qualified name of each class and function of a Python file, outer first."""
    scopes: list[tuple[int, int, str]] = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                first = min([child.lineno, *(d.lineno for d in child.decorator_list)])
                call = "" if isinstance(child, ast.ClassDef) else "()"
                scopes.append((first, child.end_lineno or child.lineno, f"{prefix}{child.name}{call}"))
                visit(child, f"{prefix}{child.name}.")
            else:
                visit(child, prefix)

    if output.path.endswith(".py"):
        try:
            visit(ast.parse(output.text), "")
        except SyntaxError:
            return []  # ruff and Python will say so
    return scopes


def scope_at(scopes: list[tuple[int, int, str]], line: int) -> str:
    """The innermost scope that a line lies in, below the line that opens it."""
    return next((name for first, last, name in reversed(scopes) if first < line <= last), "")


def _file(book: Book, output: Output) -> File:
    """The file with its runs. The line map names blocks by place, so blocks of one name are told apart."""
    at = {(block.chapter, block.line): block for block in book.blocks}
    runs: list[Run] = []
    previous: tuple[str, int] | None = None
    opening = {
        (block.chapter, line): block
        for block in at.values()
        for line in range(block.line + 1, block.fence.end)
    }
    for row, origin in enumerate(output.origins, 1):
        block = opening[origin.chapter, origin.line]
        anchor = anchor_of(block.name, book.named(block.name).index(block))
        if runs and runs[-1].anchor == anchor and previous == (origin.chapter, origin.line - 1):
            runs[-1] = replace(runs[-1], last=row)
        else:
            runs.append(Run(row, row, anchor, origin.line))
        previous = origin.chapter, origin.line
    root = at[output.block.chapter, output.block.line]
    return File(output.path, output.text, root.fence.language, anchor_of(root.name), tuple(runs))
