"""The model from above: what passes through it, with shapes read from a forward pass."""

from __future__ import annotations

import functools
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Circle

from nanochat import normans_gpt
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.trace import trace
from tools.pictures.style import SMALL, Palette, arrow, box, canvas, picture

JOURNEY = GPTConfig(sequence_len=512, vocab_size=4096, n_layer=4, n_head=2, n_kv_head=2, n_embd=256)


@functools.cache
def shapes() -> dict[str, tuple[int, ...]]:
    """The shapes that pass through the model of chapter 90, and those of its weights."""
    model = GPT(JOURNEY)
    model.init_weights()
    idx = torch.zeros(1, JOURNEY.sequence_len, dtype=torch.long)
    with torch.no_grad(), trace(normans_gpt, out=None, keep=True) as seen:
        model(idx)
    found = {"idx": tuple(idx.shape)}
    for call in seen.calls:
        found.setdefault(call.name, tuple(call.result.shape))
    for name, p in model.named_parameters():
        found[name.removesuffix(".weight").replace("transformer.h.0.", "").removeprefix("transformer.")] = (
            tuple(p.shape)
        )
    return found


def times(shape: tuple[int, ...]) -> str:
    """A shape as a product."""
    return " × ".join(map(str, shape))


def draw_branches(
    axes: Axes, palette: Palette, seen: dict[str, Any], stream: int, mono: dict[str, Any]
) -> None:
    """Attention and MLP: each leaves the residual stream, computes, and is added to it."""
    branches = (
        (
            166,
            68,
            palette.orange,
            (
                ("c_q  c_k  c_v", times(seen["attn.c_q"])),
                ("rotate, norm", times(seen["apply_rotary_emb"][1:])),
                ("look back", ""),
                ("c_proj", times(seen["attn.c_proj"])),
            ),
        ),
        (
            248,
            54,
            palette.green,
            (
                ("c_fc", times(seen["mlp.c_fc"])),
                ("relu²", ""),
                ("c_proj", times(seen["mlp.c_proj"])),
            ),
        ),
    )
    for top, high, colour, lines in branches:
        arrow(axes, (stream, top + 11), (148, top + 11), colour, lw=1.6)
        box(axes, palette, 149, top, 42, 22, text="norm", rounding=4, fill=palette.ground, **mono)
        arrow(axes, (191, top + 11), (203, top + 11), colour, lw=1.6)
        box(axes, palette, 204, top, 176, high, colour=colour, rounding=5)
        for row, (name, size) in enumerate(lines):
            y = top + high * (row + 0.5) / len(lines) + 1 - (len(lines) - 1 - 2 * row) * 0.4
            axes.text(211, y, name, va="center", **mono)
            axes.text(374, y, size, va="center", ha="right", size=SMALL, color=palette.muted)
        bottom = top + high - 10
        arrow(axes, (204, bottom), (stream + 9, bottom), colour, lw=1.6)
        axes.add_patch(
            Circle((stream, bottom), 9, facecolor=palette.ground, edgecolor=colour, lw=1.6, zorder=3)
        )
        axes.text(stream, bottom, "+", ha="center", va="center", weight="bold", zorder=4)


@picture(
    "model-map",
    alt="""A map of the model, from top to bottom. Token ids (B, T) become vectors (B, T, C) in wte and
    are normed. The stream then runs straight down through L blocks. In each, a normed copy goes through
    attention (c_q, c_k, c_v, rotate and norm, look back, c_proj) and the result is added to the stream;
    another goes through the MLP (c_fc, relu squared, c_proj) and is added. A last norm, lm_head and the
    softcap give logits (B, T, V).""",
    title="A map of the model, with the shapes of one with four blocks",
    height=6.05,
)
def model_map(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 433)
    seen = shapes()
    stream, half = 122, 42
    mono: dict[str, Any] = {"family": "DejaVu Sans Mono", "size": SMALL}

    def station(y: float, text: str, colour: str | None = None, code: bool = True) -> None:
        more = mono if code else {}
        box(axes, palette, stream - half, y, 2 * half, 24, text=text, colour=colour, rounding=5, **more)

    def shape(y: float, letters: str, numbers: tuple[int, ...]) -> None:
        axes.text(stream - 12, y - 6, letters, ha="right", va="center", size=SMALL)
        axes.text(
            stream - 12, y + 7, times(numbers), ha="right", va="center", size=SMALL, color=palette.muted
        )

    def weights(y: float, letters: str, numbers: tuple[int, ...]) -> None:
        text = f"{letters} = {times(numbers)}"
        axes.text(stream + half + 8, y + 12, text, va="center", size=SMALL, color=palette.muted)

    def down(start: float, end: float) -> None:
        arrow(axes, (stream, start), (stream, end), palette.ink, lw=1.6)

    station(0, "token ids", code=False)
    down(24, 50)
    shape(36, "B, T", seen["idx"])
    station(51, "wte", palette.blue)
    weights(51, "V × C", seen["wte"])
    down(75, 86)
    station(87, "norm")
    box(axes, palette, 36, 141, 351, 172, rounding=8)
    axes.text(stream + 14, 153, f"block, {JOURNEY.n_layer} times", weight="bold", va="center")
    axes.plot([stream, stream], [111, 322], color=palette.ink, lw=3.4, solid_capstyle="butt")
    shape(126, "B, T, C", seen["norm"])
    draw_branches(axes, palette, seen, stream, mono)
    axes.text(44, 196, "attention", va="center", size=SMALL, color=palette.orange)
    axes.text(44, 275, "MLP", va="center", size=SMALL, color=palette.green)
    down(314, 334)
    station(335, "norm")
    down(359, 370)
    station(371, "lm_head", palette.blue)
    weights(371, "V × C", seen["lm_head"])
    down(395, 406)
    station(407, "softcap", code=False)
    axes.text(
        stream + half + 8, 419, f"logits: B, T, V = {times(seen['GPT.forward'])}", va="center", size=SMALL
    )
