"""Attention: how position turns a query, and what a query may see."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.patches import Circle, Rectangle
from torch import Tensor

from nanochat.engine import KVCache
from nanochat.normans_gpt import GPT, GPTConfig, apply_rotary_emb, norm
from tools.pictures.results import record
from tools.pictures.style import LETTERS, SMALL, Palette, canvas, picture


def turned(x: Tensor, positions: int) -> Tensor:
    """The vector x (D,) at positions 0, 1, …, as the model turns it: (positions, D)."""
    config = GPTConfig(sequence_len=positions, vocab_size=2, n_layer=1, n_head=1, n_kv_head=1, n_embd=len(x))
    model = GPT(config)
    rows = x.expand(1, positions, 1, -1)
    return apply_rotary_emb(rows, model.cos[:, :positions], model.sin[:, :positions])[0, :, 0]


@picture(
    "rotation",
    alt="""Left, two circles with arrows for positions 0 to 5: the fastest pair of channels turns
    clockwise by one radian per position, almost once around, while the next pair turns by a tenth of
    that. Right, the score of one query and one key over their distance, for four places of the key: all
    dots lie on one wavy curve.""",
    title="Queries and keys are turned by their position",
    height=2.35,
    grid=(1, 3),
    width_ratios=(1.2, 1.2, 2.1),
)
def rotation(axes: list[Axes], palette: Palette) -> None:
    *circles, scores = axes
    places = turned(torch.tensor([1.0, 1, 1, 1, 0, 0, 0, 0]), 6)  # pairs are (0, 4), (1, 5), …
    cases = zip(circles, ("fastest pair", "next pair"), (palette.blue, palette.orange), strict=True)
    for pair, (circle, title, colour) in enumerate(cases):
        circle.set_aspect("equal")
        circle.set_xlim(-1.4, 1.4)
        circle.set_ylim(-1.4, 1.4)
        circle.axis("off")
        circle.set_title(title, loc="center", size=SMALL)
        circle.add_patch(Circle((0, 0), 1, fill=False, edgecolor=palette.faint, lw=1))
        for position, vector in enumerate(places):
            x, y = float(vector[pair]), float(vector[pair + 4])
            style = {"arrowstyle": "-|>", "color": colour, "lw": 1.6, "shrinkA": 0, "shrinkB": 0}
            circle.annotate("", (x, y), (0, 0), arrowprops=style)
            if pair == 0 or position in (0, 5):
                circle.text(1.25 * x, 1.25 * y, f"{position}", ha="center", va="center", size=SMALL)
    keys, distances = (0, 10, 40, 90), range(33)
    marks = (("o", palette.blue), ("s", palette.orange), ("^", palette.green), ("D", palette.pink))
    table = score_table(max(keys) + max(distances) + 1)
    scores.plot(distances, [table[d, 0] for d in distances], color=palette.faint, lw=1.5)
    for offset, (key, (mark, colour)) in enumerate(zip(keys, marks, strict=True)):
        own = list(distances)[offset::4]
        scores.plot(own, [table[key + d, key] for d in own], mark, color=colour, ms=4.5, label=f"{key}")
    scores.set_title("score")
    scores.set_xlabel("query's position − key's")
    scores.set_ylim(0.4, 2.25)
    scores.grid(True)
    scores.legend(title="key at", ncols=4, loc="upper left", handletextpad=0, columnspacing=0.7)


@functools.cache
def score_table(positions: int) -> Tensor:
    """Scores of one query at every position (rows) with one key at every position (columns)."""
    rng = torch.Generator().manual_seed(3)
    q, k = norm(torch.randn(2, 16, generator=rng))
    return turned(q, positions) @ turned(k, positions).T / 16**0.5


@functools.cache
def weights_seen(*lengths: int) -> list[Tensor]:
    """Attention weights (T, T_k) of the model's calls, feeding it these numbers of tokens with one cache."""
    torch.manual_seed(0)
    config = GPTConfig(sequence_len=16, vocab_size=32, n_layer=1, n_head=1, n_kv_head=1, n_embd=16)
    model = GPT(config)
    model.init_weights()
    cache = KVCache(1, 1, 16, 16, 1)
    with torch.no_grad(), watching_attention() as seen:
        for length in lengths:
            model(torch.arange(length)[None], kv_cache=cache)
    return [heads[0] for heads in seen]


@contextmanager
def watching_attention() -> Iterator[list[Tensor]]:
    """Collects the attention weights (H, T, T_k) of every call inside the block, for the first sequence."""
    seen: list[Tensor] = []
    real = F.scaled_dot_product_attention

    def watch(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        one = torch.eye(k.size(-2)).expand(*k.shape[:-1], -1)  # averaging unit vectors shows the weights
        seen.append(real(q, k, one, **how)[0].detach())
        return real(q, k, v, **how)

    F.scaled_dot_product_attention = watch  # type: ignore[assignment]
    try:
        yield seen
    finally:
        F.scaled_dot_product_attention = real


@picture(
    "what-heads-look-at",
    alt="""Two heads of the trained model's second block, reading a sentence; each row shows where one
    word looks. In the first head of and the both look at the noun before them: people, President. In the
    second head the looks at the word before it, of or elected. On the right, the model's guess of what
    comes next: after United it is States, with 97 and 99 percent.""",
    title="What two trained heads look at",
    height=3.4,
)
def what_heads_look_at(axes: Axes, palette: Palette) -> None:
    seen = record("train-cpu")["attention"]
    tokens = [token.strip() for token in seen["tokens"]]
    canvas(axes, 389, 241)
    wide, high, top, left = 9.4, 16.5, 26, 66
    grids = (
        ("1.0", left, palette.blue, "one head"),
        ("1.1", left + 13 * wide + 10, palette.orange, "another"),
    )
    for name, x, colour, title in grids:
        axes.text(x, 10, title, weight="bold", va="center", color=colour)
        for row, weights in enumerate(seen["heads"][name]):
            for column in range(row + 1):
                weight = weights[column]
                fill = palette.soft(colour, round(weight, 1)) if weight >= 0.05 else palette.panel
                place = (x + column * wide, top + row * high)
                axes.add_patch(Rectangle(place, wide - 1, high - 1.5, facecolor=fill, lw=0))
    edge = left + 26 * wide + 18
    axes.text(edge, 10, "next", weight="bold", va="center")
    for row, (token, (guess, sure)) in enumerate(zip(tokens, seen["next"], strict=True)):
        y = top + row * high + 7.5
        axes.text(left - 5, y, token, ha="right", va="center", size=SMALL)
        certain = palette.ink if sure >= 0.5 else palette.muted
        axes.text(edge, y, f"{100 * sure:.0f}%", va="center", size=SMALL, color=certain)
        axes.text(edge + 30, y, guess.strip(), va="center", size=SMALL, color=certain)


@picture(
    "causal-mask",
    alt="""Three six by six grids of queries (rows) and keys (columns). Without a cache all six rows are
    computed and row m is filled up to column m, a triangle. With five keys in the cache only the last row
    is computed, and it is full. With four keys in the cache the last two rows are computed: five and six
    fields are filled. Each time the filled rows are the same rows of the same triangle.""",
    title="Three cases of one mask",
    height=2.05,
    grid=(1, 3),
)
def causal_mask(axes: list[Axes], palette: Palette) -> None:
    cases = ((6,), "all six new"), ((5, 1), "one new"), ((4, 2), "two new")
    for axis, (lengths, title) in zip(axes, cases, strict=True):
        seen = weights_seen(*lengths)[-1] > 0
        new, keys = seen.shape
        canvas(axis, keys + 0.9, keys + 1.5)
        axis.set_title(title, size=LETTERS)
        for row in range(keys):
            for column in range(keys):
                query = row - (keys - new)
                computed = query >= 0
                filled = computed and bool(seen[query, column])
                old = column < keys - new
                hue = palette.blue if old else palette.orange
                past = palette.soft(palette.muted, 0.2) if column <= row else palette.ground
                axis.add_patch(
                    Rectangle(
                        (0.9 + column, row),
                        0.88,
                        0.88,
                        facecolor=hue if filled else past,
                        edgecolor=palette.faint if not filled else hue,
                        lw=0.7,
                    )
                )
            colour = palette.ink if row >= keys - new else palette.muted
            weight = "bold" if row >= keys - new else "normal"
            axis.text(
                0.5, row + 0.44, f"{row}", ha="center", va="center", size=SMALL, color=colour, weight=weight
            )
        for first, last, colour, text in (
            (0, keys - new, palette.blue, "cached"),
            (keys - new, keys, palette.orange, "new"),
        ):
            if last > first:
                middle = 0.9 + (first + last) / 2
                axis.text(middle, keys + 0.62, text, ha="center", va="center", size=SMALL, color=colour)
