"""From the folder to the outputs: everything that must hold before a file is touched."""

from pathlib import Path

from tools.chapters import load, read_sources
from tools.lint import lint, lint_indented_strings
from tools.problems import Refused
from tools.tangle import Output, tangle


def outputs_of(root: Path) -> dict[str, Output]:
    """All files of the book. Raises Refused with every problem found; reads only."""
    book = load(read_sources(root))
    if problems := lint(book, root):
        raise Refused(problems)
    outputs = tangle(book)
    if problems := [problem for output in outputs.values() for problem in lint_indented_strings(output)]:
        raise Refused(problems)
    return outputs
