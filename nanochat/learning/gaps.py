"""Say what a function that is not written yet means: what is missing, why now, where to read and to write."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanochat.common import UserError
from nanochat.learning.steps import PHASES, STEPS, section_of, step_named
from nanochat.models import ROOT, choose_gpt, shown


@dataclass(frozen=True)
class Frame:
    """A line of the learner's file that took part in an exception."""

    function: str
    line: int


def frames_in(error: BaseException, path: Path) -> list[Frame]:
    """The frames of a traceback that lie in a file, from the outermost to the innermost."""
    found = []
    for frame, line in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename) == path:
            found.append(Frame(frame.f_code.co_qualname, line))
    return found


def gap_of(error: BaseException, path: Path) -> Frame | None:
    """Where a NotImplementedError was raised, if it was raised in this file itself."""
    if not isinstance(error, NotImplementedError):
        return None
    innermost = list(traceback.walk_tb(error.__traceback__))[-1:]
    frames = frames_in(error, path)
    return frames[-1] if innermost and frames and innermost[0][1] == frames[-1].line else None


def explain_gap(todo: str, gap: Frame, path: Path) -> str:
    """What is missing, why now, where to read and where to write: the lines a learner sees."""
    place = f"{shown(path)}:{gap.line}"
    try:
        step = step_named(gap.function)
    except KeyError:
        return f"NotImplementedError: {todo}\n\n  write      {place}, in your own {gap.function}"
    section = section_of(step, ROOT / "lit")
    where = f'{shown(section.path)}:{section.line}, "{section.heading}"' if section else step.chapter
    return f"""NotImplementedError: {todo}

  missing    {step.id}, step {STEPS.index(step) + 1} of {len(STEPS)}, phase {step.phase}: {PHASES[step.phase]}
  why now    {step.why}
  read       {where}
  write      {place}
  hint       python -m scripts.learn hint {step.id}"""


class Gap(UserError):
    """A function of somebody's model is not written; unlike other UserErrors, the text has several lines."""


@contextlib.contextmanager
def gaps_explained(name: str) -> Iterator[None]:
    """While active, a NotImplementedError out of the model that --gpt names becomes a Gap."""
    try:
        yield
    except NotImplementedError as error:
        path = choose_gpt(name).path
        gap = gap_of(error, path)
        if gap is None:
            raise
        raise Gap(explain_gap(str(error), gap, path)) from error
