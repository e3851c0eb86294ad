"""Say what a function that is not written yet means: what is missing, why now, where to read and to write."""

from __future__ import annotations

from pathlib import Path

from nanochat.learning.steps import ALL_PHASES, ALL_STEPS, round_of, section_of, step_named
from nanochat.models import ROOT, Frame, shown


def explain_gap(todo: str, gap: Frame, path: Path) -> str:
    """What is missing, why now, where to read and where to write: the lines a learner sees."""
    place = f"{shown(path)}:{gap.line}"
    try:
        step = step_named(gap.function)
    except KeyError:
        return f"NotImplementedError: {todo}\n\n  write      {place}, in your own {gap.function}"
    section = section_of(step, ROOT / "lit")
    where = f'{shown(section.path)}:{section.line}, "{section.heading}"' if section else step.chapter
    number, last = (ALL_STEPS.index(one) + 1 for one in (step, round_of(step).steps[-1]))
    return f"""NotImplementedError: {todo}

  missing    {step.id}, step {number} of {last}, phase {step.phase}: {ALL_PHASES[step.phase]}
  why now    {step.why}
  read       {where}
  write      {place}
  hint       python -m scripts.learn hint {step.id}"""
