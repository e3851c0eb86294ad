"""What a matrix does to a circle, drawn by the matrix of the chapter."""

from __future__ import annotations

import math

import torch
from matplotlib.axes import Axes
from torch import Tensor

from tools.pictures.style import SMALL, Palette, arrow, picture

A = torch.tensor([[3.0, 0.0], [4.0, 5.0]])


@picture(
    "circle-to-ellipse",
    alt="""Left, a circle of radius 1 with two perpendicular arrows, v1 to the upper right and v2 to the
    lower right. In the middle, what the matrix makes of it: an ellipse that leans a little to the right,
    with half axes of 6.7 along u1 and 2.2 along u2. Right, both singular values set to 1: a circle of radius
    1 again, with the arrows u1 and u2, which are v1 and v2 turned by 27 degrees.""",
    title="A matrix makes an ellipse of a circle",
    height=2.3,
    grid=(1, 3),
)
def circle_to_ellipse(axes: list[Axes], palette: Palette) -> None:
    U, S, Vt = torch.linalg.svd(A)
    sign = Vt[:, :1].sign()  # of a pair of singular vectors both may be turned around
    v, u = sign * Vt, sign * U.T
    around = torch.linspace(0, 2 * math.pi, 73)
    circle = torch.stack([around.cos(), around.sin()])
    for axis, matrix, ends, letter, title in (
        (axes[0], torch.eye(2), v, "v", "a circle"),
        (axes[1], A, S[:, None] * u, "σu", "A times it"),
        (axes[2], U @ Vt, u, "u", "both σ set to 1"),
    ):
        draw(axis, palette, matrix @ circle, ends, letter)
        axis.set_title(title, size=SMALL)


def draw(axis: Axes, palette: Palette, outline: Tensor, ends: Tensor, letter: str) -> None:
    """An outline (2, N) and an arrow to each of two ends (2, 2)."""
    axis.plot(*outline, color=palette.muted)
    tick, reach = (1, 1.6) if outline.abs().max() < 2 else (5, 8.5)
    axis.set_xticks([-tick, 0, tick])
    axis.set_yticks([-tick, 0, tick])
    for number, (end, colour) in enumerate(
        zip(ends.tolist(), (palette.blue, palette.orange), strict=True), 1
    ):
        arrow(axis, (0, 0), (end[0], end[1]), colour, lw=2)
        place = [x * (1 + 0.13 * reach / math.hypot(*end)) for x in end]
        name = "".join(f"{sign}$_{number}$" for sign in letter)
        axis.text(place[0], place[1], name, ha="left", va="center", color=colour, weight="bold")
    axis.set_xlim(-reach, reach)
    axis.set_ylim(-reach, reach)
    axis.set_aspect("equal")
    axis.grid(True)
