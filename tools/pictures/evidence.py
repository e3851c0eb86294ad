"""The experiments behind the twelve answers, drawn from their records. Nothing is drawn that was not run."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from statistics import mean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from nanochat.evidence.experiments import BOOK, BPB, EXPERIMENTS, Experiment
from nanochat.evidence.records import read_record, record_path
from nanochat.evidence.report import effect, values_of, whole
from nanochat.evidence.statistics import interval
from tools.pictures.style import SMALL, Palette, figure, thousands

ROW = 0.3  # inches for each variation
CURVE = 2.3


def hues(palette: Palette) -> list[str]:
    """Colours for variations after the book's."""
    return [palette.blue, palette.green, palette.pink, palette.muted]


def described(one: Experiment, record: dict[str, Any]) -> str:
    """An alternative text that is made of the record, so that it cannot say something else."""
    parts = [f"Measured for the question: {one.question}"]
    for finding in record["findings"]:
        size, between = effect(finding)
        parts.append(f"{finding['about']}: {size}, {between}; {finding['verdict']}.")
    return " ".join(parts).replace("[", "(").replace("]", ")")


def draw_effects(axes: Axes, palette: Palette, record: dict[str, Any], names: list[str]) -> None:
    """A row for each variation: the differences from the book's loss, seed by seed, and their interval."""
    trials = record["trials"]
    usual = whole(values_of(trials, BOOK, BPB))
    assert usual is not None
    axes.axvline(0, color=palette.orange, lw=1.5)
    for row, name in enumerate(names):
        values = whole(values_of(trials, name, BPB))
        if values is None:
            axes.text(0, row, " diverged", va="center", size=SMALL)
            continue
        differences = [a - b for a, b in zip(values, usual, strict=True)]
        found = interval(differences)
        axes.plot([found.low, found.high], [row, row], color=palette.blue, lw=5, alpha=0.3)
        axes.plot(differences, [row] * len(differences), "o", color=palette.blue, ms=4)
        axes.plot([found.mean], [row], "|", color=palette.ink, ms=13, mew=2)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_title("bits per byte above the book's model", loc="right")
    axes.grid(True, axis="x")


def draw_curves(
    axes: Axes, palette: Palette, record: dict[str, Any], quantity: str, names: list[str]
) -> None:
    """The mean over the seeds of a curve, for the book's model and the named variations."""
    colours = dict(zip(names, [palette.orange, *hues(palette)], strict=False))
    for name, colour in colours.items():
        runs = [trial["curves"].get(quantity, []) for trial in record["trials"][name].values()]
        shortest = min(len(run) for run in runs)
        points = [(runs[0][i][0], mean(run[i][1] for run in runs)) for i in range(shortest)]
        axes.plot(*zip(*points, strict=True), color=colour, label=name, ls="-" if name == BOOK else "--")
    axes.legend(loc="best")
    axes.grid(True)


def draw_scores(axes: Axes, palette: Palette, record: dict[str, Any]) -> None:
    """The largest attention score while training, with and without QK norm."""
    draw_curves(axes, palette, record, "largest score", list(record["trials"]))
    axes.set_yscale("log")
    axes.set_title("largest attention score")
    axes.set_xlabel("tokens")
    thousands(axes.xaxis)


def draw_errors(axes: Axes, palette: Palette, record: dict[str, Any]) -> None:
    """The error of logits by position, for tables rounded late and early."""
    draw_curves(axes, palette, record, "logit error", [BOOK, "tables from bf16 angles"])
    axes.set_yscale("log")
    axes.set_title("mean error of a logit")
    axes.set_xlabel("position")


def draw_losses(axes: Axes, palette: Palette, record: dict[str, Any], names: list[str]) -> None:
    """Training loss over tokens."""
    draw_curves(axes, palette, record, "loss", names)
    axes.set_title("training loss, nats per token")
    axes.set_xlabel("tokens")
    thousands(axes.xaxis)


def draw_rates(axes: Axes, palette: Palette, record: dict[str, Any]) -> None:
    """Loss over the multiple of AdamW's rates, a line for each width, the formula's choice marked."""
    settings = record["configuration"]["settings"]
    widths = sorted({setting["n_embd"] for setting in settings.values()})
    for width, colour in zip(widths, [palette.orange, *hues(palette)], strict=False):
        points = []
        for name, setting in settings.items():
            values = whole(values_of(record["trials"], name, BPB))
            if setting["n_embd"] == width and values:
                points.append((setting["embedding_lr"] / 0.2, mean(values)))
        points.sort()
        x, y = zip(*points, strict=True)
        axes.plot(x, y, "o-", color=colour, ms=4, label=f"$C = {width}$")
        axes.axvline((768 / width) ** 0.5, color=colour, ls=":", lw=1.2)
    axes.set_xscale("log")
    axes.set_xticks(x, [f"{value:g}" for value in x])
    axes.minorticks_off()
    axes.set_xlabel("multiple of the rates for a width of 768; dotted: the formula's")
    axes.set_title("bits per byte")
    axes.legend(loc="best")
    axes.grid(True)


def draw_tables(axes: Axes, palette: Palette, record: dict[str, Any]) -> None:
    """How far an optimizer moved the table, and what a checkpoint needs, for each way of holding it."""
    names = list(record["trials"])
    for row, name in enumerate(names):
        moved = [value or 0.0 for value in values_of(record["trials"], name, "table moved by")]
        axes.barh(row, mean(moved), color=palette.blue, height=0.55)
        axes.text(mean(moved), row, f" {mean(moved):.2g}", va="center", size=SMALL)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.margins(x=0.15)
    axes.set_title("an optimizer moves the tables by", loc="right")


def draw_distances(axes: Axes, palette: Palette, record: dict[str, Any]) -> None:
    """How far the accumulated gradient is from that of one batch, by number format and number of passes."""
    names = list(record["trials"])
    quantities = ("float64", "float32", "bf16, one batch", "bf16, passes")
    colours = (palette.green, palette.blue, palette.muted, palette.orange)
    for quantity, colour in zip(quantities, colours, strict=True):
        y = [
            mean(value or math.nan for value in values_of(record["trials"], name, quantity)) for name in names
        ]
        dashed = quantity == "bf16, passes"  # it runs over the line of one batch, which has to show
        axes.plot(names, y, "o--" if dashed else "o-", color=colour, ms=4, label=quantity)
    axes.set_yscale("log")
    axes.set_ylim(1e-17, 1)
    axes.set_title("distance over the gradient's length")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 0.12), ncols=2)
    axes.grid(True, axis="y")


ALONE: dict[str, Callable[[Axes, Palette, dict[str, Any]], None]] = {
    "rates-and-widths": draw_rates,
    "tables-as-buffers": draw_tables,
    "accumulation": draw_distances,
    "bfloat16": draw_errors,
}
SECOND: dict[str, Callable[[Axes, Palette, dict[str, Any]], None]] = {
    "qk-norm": draw_scores,
    "optimizers": lambda axes, palette, record: draw_losses(
        axes, palette, record, [BOOK, *(found["of"] for found in record["findings"][:2])]
    ),
}


def draw(record: dict[str, Any], axes: Any, palette: Palette) -> None:
    """The picture of one experiment."""
    name = record["experiment"]
    if name in ALONE:
        ALONE[name](axes, palette, record)
        return
    rows = [name for name in record["trials"] if name != BOOK]
    if name in SECOND:
        draw_effects(axes[0], palette, record, rows)
        SECOND[name](axes[1], palette, record)
    else:
        draw_effects(axes, palette, record, rows)


def enter(one: Experiment) -> None:
    """Enter the picture of an experiment that has been run."""
    record = read_record(record_path(one.name, False))
    if record is None:
        return
    rows = len(record["trials"]) - 1
    first = ROW * rows + 0.75
    both = one.name in SECOND
    paint = functools.partial(draw, record)
    functools.update_wrapper(paint, draw)
    options: dict[str, Any] = {"height_ratios": (first, CURVE)} if both else {}
    figure(
        f"evidence-{one.name}",
        paint,
        described(one, record),
        title=one.question,
        height=3.0 if one.name in ALONE else first + CURVE * both,
        grid=(2, 1) if both else (1, 1),
        **options,
    )


for _one in EXPERIMENTS:
    enter(_one)
