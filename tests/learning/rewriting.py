"""Files as a learner might leave them: the book's model with functions replaced."""

import functools
import textwrap
from collections.abc import Callable
from pathlib import Path

from nanochat.learning.hybrid import BOOK_PATH, Source, read_source
from nanochat.learning.judge import Verdict, judge_here
from nanochat.learning.mistakes import Mistake, make
from nanochat.learning.rehearsal import no_trace, rehearse_file
from nanochat.learning.report import Report
from nanochat.learning.steps import step_named
from scripts.learn import Session

BOOK = read_source(BOOK_PATH)


def with_function(step_id: str, text: str, source: Source = BOOK, top: str = "") -> Source:
    """The file with one function written as in `text`, and `top` after the imports."""
    first, last = source.segment(step_id)
    lines = source.text.split("\n")
    indent = "    " if "." in step_id else ""
    lines[first - 1 : last] = textwrap.indent(textwrap.dedent(text).strip("\n"), indent).split("\n")
    if top:
        at = next(i for i, line in enumerate(lines) if line.startswith("SOFTCAP"))
        lines[at + 1 : at + 1] = textwrap.dedent(top).strip("\n").split("\n")
    return Source("workshop/normans_gpt.py", "\n".join(lines))


@functools.cache
def wrong_lines(mistakes: tuple[Mistake, ...]) -> tuple[int, int, list[str]]:
    """First and last line of the function with these mistakes in the book, and what stands there instead."""
    first, last = BOOK.segment(mistakes[0].step)
    lines, after = make(mistakes, BOOK).text.split("\n"), BOOK.text.count("\n") + 1 - last
    return first, last, lines[first - 1 : len(lines) - after]


def with_mistakes(mistakes: list[Mistake]) -> Source:
    """The book's file with mistakes in several functions."""
    by_step: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        by_step.setdefault(mistake.step, []).append(mistake)
    lines = BOOK.text.split("\n")
    for first, last, wrong in sorted((wrong_lines(tuple(of)) for of in by_step.values()), reverse=True):
        lines[first - 1 : last] = (
            wrong  # from the end of the file on, so that the lines before keep their numbers
        )
    return Source("workshop/normans_gpt.py", "\n".join(lines))


def verdict_on(source: Source, step_id: str) -> Verdict:
    """Judged in this process."""
    return judge_here(BOOK, source, step_named(step_id))


def written(folder: Path, source: Source) -> Path:
    """The file on disk."""
    path = folder / "normans_gpt.py"
    path.write_text(source.text, encoding="utf-8")
    return path


def write_from_the_book(text: str, step_id: str) -> str:
    """A learner's file with one function as the book has it."""
    learner = Source("workshop/normans_gpt.py", text)
    (first, last), (start, end) = learner.segment(step_id), BOOK.segment(step_id)
    lines = text.split("\n")
    lines[first - 1 : last] = BOOK.text.split("\n")[start - 1 : end]
    return "\n".join(lines)


class QuickSession(Session):
    """Rehearses in this process, which has PyTorch already."""

    def start_rehearsal(self, trace: bool = False, quiet: bool = True) -> Callable[[], Report]:
        key = self.shop.rehearsal_key()
        report = rehearse_file(self.shop.file.resolve(), no_trace)
        self.shop.record_rehearsal(report, key)
        return lambda: report
