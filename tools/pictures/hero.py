"""The picture on the first page: the idea and the result at one glance."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

from matplotlib.axes import Axes

from nanochat.looks import PROMPTS
from nanochat.normans_gpt import apply_rotary_emb
from tools.pictures.results import record
from tools.pictures.style import SMALL, Palette, arrow, box, canvas, picture


@picture(
    "hero",
    alt="""Four cards, one leading to the next. A chapter explains why pairs of channels are turned and
    contains the two lines of code that do it. The same two lines stand in nanochat/normans_gpt.py. The
    file trains: the loss of the recorded run falls from 9.0 to 3.8 within five minutes on two processor
    cores. The trained model writes: The people of the United States, and it is an imperative duty to say
    that we have no doubt …""",
    title="A book that is a program that trains",
    height=4.75,
)
def hero(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 334)
    wide, high, gap = 184, 152, 21
    right, below = wide + gap, high + 30
    code = the_lines()
    mono: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": SMALL}
    # a chapter
    box(axes, palette, 0, 0, wide, high, rounding=7)
    axes.text(11, 17, "A chapter says why", weight="bold", va="center")
    axes.text(11, 37, "lit/30-the-forward-pass.md", va="center", color=palette.muted, size=SMALL)
    for row, part in enumerate((0.94, 1, 0.97, 0.5)):
        axes.plot([12, 12 + 158 * part], [53 + 10 * row] * 2, color=palette.faint, lw=3.2)
    box(axes, palette, 6, 95, wide - 12, 51, colour=palette.orange, rounding=4)
    for row, line in enumerate(["python #apply-rotary-emb", *code]):
        axes.text(
            11, 106 + 14.5 * row, line, va="center", color=palette.ink if row else palette.muted, **mono
        )
    # the program
    box(axes, palette, right, 0, wide, high, rounding=7)
    axes.text(right + 11, 17, "and is the program", weight="bold", va="center")
    axes.text(right + 11, 37, "nanochat/normans_gpt.py", va="center", color=palette.muted, size=SMALL)
    for row, (indent, part) in enumerate(((0, 0.9), (12, 0.8), (12, 0.62))):
        ends = [right + 12 + indent, right + 12 + 158 * part]
        axes.plot(ends, [53 + 10 * row] * 2, color=palette.faint, lw=3.2)
    box(axes, palette, right + 6, 82, wide - 12, 37, colour=palette.orange, rounding=4)
    for row, line in enumerate(code):
        axes.text(right + 11, 93.5 + 14.5 * row, line, va="center", **mono)
    for row, (indent, part) in enumerate(((12, 0.7), (0, 0.9))):
        ends = [right + 12 + indent, right + 12 + 158 * part]
        axes.plot(ends, [130 + 10 * row] * 2, color=palette.faint, lw=3.2)
    arrow(axes, (wide + 1, 105), (right - 1, 105), palette.orange, lw=2.2, mutation_scale=14)
    run = record("train-cpu")
    draw_training(axes, palette, run, (0, below, wide, high))
    draw_writing(axes, palette, run, (right, below, wide, high))
    arrow(axes, (wide + 1, below + 76), (right - 1, below + 76), palette.blue, lw=2.2, mutation_scale=14)
    # from the program to the training
    turn: dict[str, Any] = {"color": palette.orange, "lw": 2.2, "solid_capstyle": "butt"}
    middle = high + 15
    axes.plot(
        [right + wide / 2, right + wide / 2, wide / 2, wide / 2], [high, middle, middle, below - 6], **turn
    )
    arrow(axes, (wide / 2, middle), (wide / 2, below - 1), palette.orange, lw=2.2, mutation_scale=14)


def draw_training(
    axes: Axes, palette: Palette, run: dict[str, Any], place: tuple[int, int, int, int]
) -> None:
    """The corner that shows the training: its loss over its steps."""
    _, below, wide, high = place
    loss, steps = run["metrics"]["smooth_loss"], run["metrics"]["step"]
    box(axes, palette, 0, below, wide, high, rounding=7)
    minutes = run["numbers"]["minutes"]
    axes.text(11, below + 17, f"that trains in {minutes:.0f} minutes", weight="bold", va="center")
    left, bottom, across, up = 14, below + high - 26, 156, 86
    points = range(0, len(steps), 12)
    xs = [left + across * steps[k] / steps[-1] for k in points]
    ys = [bottom - up * (loss[k] - 3) / 6 for k in points]
    axes.plot([left, left + across], [bottom, bottom], color=palette.faint, lw=1)
    axes.plot(xs, ys, color=palette.blue, lw=2.4)
    axes.text(left + 12, ys[0] + 3, f"loss {loss[0]:.1f}", color=palette.blue, size=SMALL, va="center")
    end = f"{loss[-1]:.1f}"
    axes.text(left + across, ys[-1] - 10, end, color=palette.blue, size=SMALL, ha="right", va="center")
    about = f"{run['numbers']['steps']:,} steps on {run['machine']['cores']} CPU cores"
    axes.text(left, bottom + 13, about, color=palette.muted, size=SMALL, va="center")


def draw_writing(axes: Axes, palette: Palette, run: dict[str, Any], place: tuple[int, int, int, int]) -> None:
    """The corner that shows what the trained model writes."""
    right, below, wide, high = place
    box(axes, palette, right, below, wide, high, colour=palette.green, rounding=7)
    axes.text(right + 11, below + 17, "and writes", weight="bold", va="center")
    prompt = PROMPTS[1]
    sample = next(text for text in run["samples"] if text.startswith(prompt))
    lines = textwrap.wrap(sample, 27)[:6]
    for row, line in enumerate(lines):
        text = line if line is not lines[-1] else f"{line} …"
        axes.text(right + 11, below + 40 + 17 * row, text, va="center", size=SMALL)


def the_lines() -> list[str]:
    """The two lines of apply_rotary_emb that turn."""
    lines = textwrap.dedent(inspect.getsource(apply_rotary_emb)).splitlines()
    return [line.strip() for line in lines if line.strip().startswith(("y1 =", "y2 ="))]
