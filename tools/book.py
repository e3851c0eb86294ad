"""From the folder to the outputs: everything that must hold before a file is touched."""

from pathlib import Path

from tools.chapters import Book, load, read_sources
from tools.lint import lint, lint_indented_strings
from tools.problems import Refused
from tools.skeleton import skeletons
from tools.tangle import Output, tangle


def read_book(root: Path) -> Book:
    """The chapters, once nothing is wrong with their blocks. Raises Refused with every problem found."""
    book = load(read_sources(root))
    if problems := lint(book, root):
        raise Refused(problems)
    return book


def outputs_of(root: Path) -> dict[str, Output]:
    """All files that the book writes, and the skeletons derived from them. Raises Refused; reads only."""
    book = read_book(root)
    outputs = tangle(book)
    if problems := [problem for output in outputs.values() for problem in lint_indented_strings(output)]:
        raise Refused(problems)
    return outputs | skeletons(book, outputs)
