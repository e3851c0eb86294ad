"""Derive the learner's skeleton from the book.

Every function whose fragment has todo= keeps its signature and docstring, and its body is replaced by the
`raise` that says what to write.

The alternative, a skeleton written by hand, drifts from the book with the first change of a signature.
Replacing a fragment that is a body by its lines alone would need no parser, but then each method is cut in
two for the tool's sake. Python's own parser finds where a docstring ends.

A file of the book usually leaves a skeleton of its own. A block may instead claim file=skeleton/NAME.py and
gather fragments of several files there; these leave no other skeleton.
"""

import ast
import textwrap
from pathlib import PurePosixPath

from tools.chapters import Book
from tools.problems import Problem, Refused
from tools.tangle import Origin, Output

FOLDER = "skeleton"
WIDTH = 110  # ruff's line-length in pyproject.toml


def skeletons(book: Book, outputs: dict[str, Output]) -> dict[str, Output]:
    """A skeleton for each Python file that has something to write, by its path in skeleton/.

    Raises Refused where a fragment with todo= is not one whole function, or two files want one skeleton.
    """
    todos = {block.name: block for block in book.blocks if block.fence.todo is not None}
    derived: dict[str, Output] = {}
    landed: set[str] = set()
    problems: list[Problem] = []
    gathered = {o.name for output in outputs.values() if is_gathered(output) for o in output.origins}
    for output in outputs.values():
        names = {origin.name for origin in output.origins} & todos.keys()
        if not is_gathered(output):
            names -= gathered
        if not names:
            continue
        wanted = {name: todos[name].fence.todo or "" for name in names}
        skeleton, found = derive(output, wanted)
        landed |= found
        if skeleton.path in derived:
            problems.append(
                Problem(
                    output.block.chapter,
                    output.block.line,
                    f"{output.path} and another file would both leave {skeleton.path}. Rename one of them.",
                )
            )
        derived[skeleton.path] = skeleton
    for name in todos.keys() - landed:
        block = todos[name]
        text = (
            f"#{name} has todo=, so it must hold exactly one whole Python function, from its def (or "
            "decorator) to its last line. Take todo= away, or cut the fragment so."
        )
        problems.append(Problem(block.chapter, block.line, text))
    if problems:
        raise Refused(sorted(problems))
    return derived


def is_gathered(output: Output) -> bool:
    """Whether a block has claimed a file in the skeletons' folder itself."""
    return PurePosixPath(output.path).parts[0] == FOLDER


def derive(output: Output, todos: dict[str, str]) -> tuple[Output, set[str]]:
    """The output with the functions of these fragments emptied, and the fragments that are such functions."""
    lines = output.text.split("\n")[:-1]
    bodies: dict[int, tuple[int, list[str], Origin]] = {}  # first line to replace: last line, text, origin
    found: set[str] = set()
    try:
        tree = ast.parse(output.text)
    except SyntaxError:
        return Output(skeleton_path(output.path), output.text, output.origins, output.block), set(todos)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef):
            continue
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        origin, last = output.origin(first), node.end_lineno or node.lineno
        if origin.name not in todos or not is_whole(output, origin.name, first, last):
            continue
        found.add(origin.name)
        if ast.get_docstring(node, clean=False) is not None:
            start = (node.body[0].end_lineno or 0) + 1
        else:
            start = node.body[0].lineno
            while lines[start - 2].lstrip().startswith("#"):  # a comment on top belongs to the body
                start -= 1
        text = raise_todo(todos[origin.name], node.body[0].col_offset)
        bodies[start] = last, text, output.origin(first)
    kept: list[str] = []
    origins: list[Origin] = []
    number = 1
    while number <= len(lines):
        if number in bodies:
            last, text, origin = bodies[number]
            kept += text
            origins += [origin] * len(text)
            number = last + 1
        else:
            kept.append(lines[number - 1])
            origins.append(output.origin(number))
            number += 1
    text_of_all = "".join(line + "\n" for line in kept)
    return Output(skeleton_path(output.path), text_of_all, tuple(origins), output.block), found


def is_whole(output: Output, name: str, first: int, last: int) -> bool:
    """Whether the lines first to last are the fragment, all of it (fragments inside it included)."""
    rows = [n for n, origin in enumerate(output.origins, 1) if origin.name == name]
    return rows[0] == first and rows[-1] <= last


def skeleton_path(path: str) -> str:
    """nanochat/normans_gpt.py leaves skeleton/normans_gpt.py."""
    return str(PurePosixPath(FOLDER) / PurePosixPath(path).name)


def raise_todo(todo: str, indent: int) -> list[str]:
    """The statement that stands for a body, as ruff would format it."""
    margin = " " * indent
    line = f'{margin}raise NotImplementedError("TODO: {todo}")'
    if len(line) <= WIDTH:
        return [line]
    room = WIDTH - indent - 4 - 2  # deeper by four, two quotes
    parts = textwrap.wrap(f"TODO: {todo}", room - 1, break_long_words=False, break_on_hyphens=False)
    strings = [f'{margin}    "{part}{" " if part is not parts[-1] else ""}"' for part in parts]
    return [f"{margin}raise NotImplementedError(", *strings, f"{margin})"]
