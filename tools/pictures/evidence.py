"""Effects of the declared comparisons against their margins, drawn from results/evidence.json."""

from __future__ import annotations

import functools
from typing import Any

from nanochat.evidence.report import about_of, effect, verdict_of
from tools.pictures.results import record
from tools.pictures.style import SMALL, Palette, figure

ROW = 0.33  # inches for each comparison
WIDEST = 6.0  # margins; an interval that reaches further is cut


def labels_of(summary: dict[str, Any]) -> list[str]:
    """The number that each comparison has in the table, with its experiment at the first of them."""
    labels: list[str] = []
    for row in summary["experiments"]:
        for place in range(len(row["comparisons"])):
            labels.append(f"{'' if place else row['name']} {len(labels) + 1}".strip())
    return labels


def lines_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Every declared comparison, in the order of the questions."""
    return [line for row in summary["experiments"] for line in row["comparisons"]]


def described(summary: dict[str, Any]) -> str:
    """An alternative text that is made of the record, so that it cannot say something else."""
    lines = lines_of(summary)
    run = [line for line in lines if line["run"]]
    parts = [
        f"Effects of declared comparisons against their margins: {len(run)} of {len(lines)} have been run."
    ]
    parts += [f"{about_of(line)}: {effect(line)}; {verdict_of(line)}." for line in run]
    return " ".join(parts)


def draw(summary: dict[str, Any], axes: Any, palette: Palette) -> None:
    """A row for each comparison: its margin as a band, and what was measured in units of the margin."""
    lines = lines_of(summary)
    axes.axvspan(-1, 1, color=palette.soft(palette.green))
    axes.axvline(0, color=palette.orange, lw=1.5)
    for row, line in enumerate(lines):
        if line["mean"] is None:
            axes.text(0, row, line["why"], ha="center", va="center", size=SMALL)
            continue
        found = (line[name] / line["margin"] for name in ("low", "mean", "high"))
        low, mean, high = (max(-WIDEST, min(WIDEST, value)) for value in found)
        axes.plot([low, high], [row, row], color=palette.blue, lw=5, alpha=0.4)
        axes.plot([mean], [row], "|", color=palette.ink, ms=12, mew=2)
    axes.set_yticks(range(len(lines)), labels_of(summary), size=SMALL)
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.set_xlim(-WIDEST, WIDEST)
    axes.set_xlabel("margins")
    axes.grid(True, axis="x")


def enter() -> None:
    """Enter the picture of all comparisons."""
    summary = record("evidence")
    paint = functools.partial(draw, summary)
    functools.update_wrapper(paint, draw)
    height = ROW * len(lines_of(summary)) + 0.8
    figure("evidence", paint, described(summary), title="Effects against their margins", height=height)


enter()
