"""What the comparison with the reference recorded, drawn from the record alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from tools.pictures.style import SMALL, Palette, picture

RECORD = Path(__file__).resolve().parents[2] / "results" / "compare-cpu-bfloat16.json"


def losses(record: dict[str, Any], key: str) -> list[list[float]]:
    """The losses of each training of a side."""
    side = next(side for side in record["sides"] if side["key"] == key)
    return [run["loss"] for run in side["runs"]]


@picture(
    "compare-losses",
    alt="""Two plots over the training step. Left, the loss of three trainings of the reference as lines and
    of the book's model as points on them: for the same seed no eye can tell them apart. Right, on a
    logarithmic axis, how far they are apart: the book in float32 and the book as it trains, both growing from
    rounding, stay well below the distance between two seeds of the reference.""",
    title="The same training twice",
    height=2.9,
    grid=(1, 2),
)
def compare_losses(axes: list[Axes], palette: Palette) -> None:
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    reference, book = losses(record, "reference"), losses(record, "book")
    left, right = axes
    for number, (theirs, mine) in enumerate(zip(reference, book, strict=True)):
        steps = range(1, len(theirs) + 1)
        left.plot(steps, theirs, palette.blue, lw=1.2, label="" if number else "reference")
        left.plot(steps, mine, palette.orange, ls="", marker=".", ms=3, label="" if number else "book")
    left.set_ylabel("loss, nats")
    pairs = (
        ("another seed", reference[:1] * 2, reference[1:], palette.green, ":"),
        ("book, as it trains", reference, book, palette.orange, "-"),
        ("book, float32", reference, losses(record, "book-float32"), palette.blue, "--"),
    )
    for name, ones, others, colour, line in pairs:
        gaps = [
            max(abs(a - b) for a, b in zip(step, other, strict=True))
            for step, other in zip(zip(*ones, strict=True), zip(*others, strict=True), strict=True)
        ]
        shown = [gap if gap > 0 else float("nan") for gap in gaps]
        right.plot(range(1, len(gaps) + 1), shown, colour, ls=line, label=name)
    right.set_yscale("log")
    right.set_ylabel("largest distance to the reference")
    for axis in axes:
        axis.set_xlabel("step")
        axis.legend(fontsize=SMALL)
