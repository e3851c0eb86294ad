"""Files as a learner might leave them: the book's model with functions replaced."""

import functools
import textwrap
from collections.abc import Callable
from pathlib import Path

from nanochat.learning.hybrid import BOOK_PATH, Source, home_of, read_source
from nanochat.learning.judge import Verdict, judge_here
from nanochat.learning.mistakes import Mistake, make
from nanochat.learning.progress import SKELETON, Workshop
from nanochat.learning.rehearsal import no_trace, rehearse_file
from nanochat.learning.report import Report
from nanochat.learning.steps import SECOND, SECOND_ROUND, STEPS, step_named
from scripts.learn import Session

BOOK = read_source(BOOK_PATH)
HOMES = {step.id: read_source(home_of(step)) for step in (*STEPS, *SECOND)}


def with_function(step_id: str, text: str, source: Source = BOOK, top: str = "") -> Source:
    """The file with one function written as in `text`, and `top` after the imports."""
    first, last = source.segment(step_id)
    lines = source.text.split("\n")
    indent = "    " if "." in step_id else ""
    lines[first - 1 : last] = textwrap.indent(textwrap.dedent(text).strip("\n"), indent).split("\n")
    if top:
        at = next(i for i, line in enumerate(lines) if line.startswith("SOFTCAP"))
        lines[at + 1 : at + 1] = textwrap.dedent(top).strip("\n").split("\n")
    return Source(source.path if source is not BOOK else "workshop/normans_gpt.py", "\n".join(lines))


@functools.cache
def wrong_lines(mistakes: tuple[Mistake, ...]) -> list[str]:
    """The lines of a function with these mistakes."""
    home = HOMES[mistakes[0].step]
    first, last = home.segment(mistakes[0].step)
    lines, after = make(mistakes, home).text.split("\n"), home.text.count("\n") + 1 - last
    return lines[first - 1 : len(lines) - after]


def with_mistakes(mistakes: list[Mistake], source: Source = BOOK) -> Source:
    """A file of right functions with mistakes in several of them."""
    by_step: dict[str, list[Mistake]] = {}
    for mistake in mistakes:
        by_step.setdefault(mistake.step, []).append(mistake)
    lines = source.text.split("\n")
    places = sorted(
        ((source.segment(step), wrong_lines(tuple(of))) for step, of in by_step.items()), reverse=True
    )
    for (first, last), wrong in places:
        lines[first - 1 : last] = (
            wrong  # from the end of the file on, so that the lines before keep their numbers
        )
    return Source("workshop/normans_gpt.py" if source is BOOK else source.path, "\n".join(lines))


def verdict_on(source: Source, step_id: str) -> Verdict:
    """Judged in this process."""
    return judge_here(HOMES[step_id], source, step_named(step_id))


def written(folder: Path, source: Source) -> Path:
    """The file on disk."""
    path = folder / "normans_gpt.py"
    path.write_text(source.text, encoding="utf-8")
    return path


def write_from_the_book(text: str, step_id: str) -> str:
    """A learner's file with one function as the book has it."""
    learner, home = Source("workshop/normans_gpt.py", text), HOMES[step_id]
    (first, last), (start, end) = learner.segment(step_id), home.segment(step_id)
    lines = text.split("\n")
    lines[first - 1 : last] = home.text.split("\n")[start - 1 : end]
    return "\n".join(lines)


def write_all(text: str) -> str:
    """The second round's skeleton with every function as the book has it."""
    for step in SECOND:
        text = write_from_the_book(text, step.id)
    return text


SECOND_BOOK = Source(
    "workshop/second_round.py", write_all(SKELETON.with_name(SECOND_ROUND.file).read_text(encoding="utf-8"))
)


class QuickSession(Session):
    """Rehearses in this process, which has PyTorch already."""

    def start_rehearsal(
        self, trace: bool = False, quiet: bool = True, shop: Workshop | None = None
    ) -> Callable[[], Report]:
        shop = shop or self.shop
        key = shop.rehearsal_key()
        report = rehearse_file(shop.file.resolve(), no_trace, second=shop is self.second)
        shop.record_rehearsal(report, key)
        return lambda: report
