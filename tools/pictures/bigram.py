"""The table of what follows what: how fast it learns at several rates, and what it knows in the end."""

from __future__ import annotations

import functools
import os
import tempfile
from unittest.mock import patch

import torch
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from torch import Tensor

from nanochat.bigram import alphabet_of, bits_per_byte, counted, draw_batch, new_table, pairs, step
from nanochat.dataset import documents, prepare_sotu
from tools.pictures.style import SMALL, Palette, picture

Pairs = tuple[Tensor, Tensor]
RATE = 50.0  # the program's
SHOWN = 300  # steps of each curve
LETTERS = b" abcdefghijklmnopqrstuvwxyz"


@functools.cache
def speeches() -> tuple[bytes, Pairs, Pairs]:
    """The alphabet, the training pairs, those of validation; nothing is left in anybody's folders."""
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, NANOCHAT_BASE_DIR=folder):
        prepare_sotu()
        texts = list(documents("sotu", "train"))
        alphabet = alphabet_of(texts)
        return alphabet, pairs(texts, alphabet), pairs(documents("sotu", "val"), alphabet)


@functools.cache
def trained(rate: float, steps: int) -> tuple[Tensor, list[tuple[int, float]]]:
    """The table after these steps of the program, and its score after some of them."""
    alphabet, train, val = speeches()
    table, rng, scores = new_table(alphabet), torch.Generator().manual_seed(42), []
    for number in range(steps + 1):
        if number in (0, 2, 5, 10, 15, 20, 30, 40, 50, 75) or number % 50 == 0:
            scores.append((number, bits_per_byte(table, *val)))
        step(table, *draw_batch(*train, 4096, rng), rate)
    return table.detach(), scores


@picture(
    "learning-rates",
    alt="""Bits per byte of the validation speeches over the first 300 steps, at four learning rates. With
    1 the curve falls slowly, from 6.8 to 4.8. With 5 it reaches 3.9. With 50 it falls at once, and ends at
    3.5, close above the line of what counting gives. With 500 it rises within two steps out of the
    picture.""",
    title="Four learning rates",
    height=2.9,
)
def learning_rates(axes: Axes, palette: Palette) -> None:
    alphabet, train, val = speeches()
    for rate, colour, line in (
        (1.0, palette.green, "-."),
        (5.0, palette.blue, "--"),
        (RATE, palette.orange, "-"),
    ):
        at, bits = zip(*trained(rate, SHOWN)[1], strict=True)
        axes.plot(at, bits, line, color=colour)
        axes.text(SHOWN + 4, bits[-1], f"{rate:.0f}", va="bottom", color=colour, weight="bold")
    at, bits = zip(*trained(500.0, 2)[1], strict=True)  # above 2/λ no later number is the same everywhere
    axes.plot(at, bits, ":", color=palette.pink)
    axes.text(6, 8.0, "500", va="center", color=palette.pink, weight="bold")
    floor = bits_per_byte(counted(*train, alphabet), *val)
    axes.axhline(floor, color=palette.muted, lw=1)
    axes.text(0, floor - 0.1, "counted", va="top", size=SMALL, color=palette.muted)
    axes.set_ylim(2.7, 8.5)
    axes.set_xlim(-6, SHOWN + 24)
    axes.set_xlabel("steps")
    axes.set_ylabel("bits per byte")
    axes.grid(True)


@picture(
    "what-follows-what",
    alt="""The trained table for the space and the small letters: a square in row a and column b is the
    larger the likelier b follows a. The row of q has one large square, at u. Most consonants have theirs
    at vowels, h at e. Many letters, above all d, s, y and e, are followed by a space.""",
    title="What follows what",
    height=5.2,
)
def what_follows_what(axes: Axes, palette: Palette) -> None:
    table, _ = trained(RATE, 1000)
    rows = [speeches()[0].index(byte) + 1 for byte in LETTERS]
    p = table.softmax(-1)[rows][:, rows]
    a, b = (p >= 0.015).nonzero(as_tuple=True)
    half = 0.5 * p[a, b].sqrt()
    corners = [torch.stack([b + x * half, a + y * half], -1) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    axes.add_collection(PolyCollection(torch.stack(corners, 1).tolist(), facecolor=palette.blue, lw=0))
    names = ["␣", *LETTERS[1:].decode()]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_aspect("equal")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("followed by")
    axes.set_ylabel("after")
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.grid(True)
