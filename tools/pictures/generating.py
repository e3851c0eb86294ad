"""Generation: what a cache saves, and how temperature shares out probability."""

from __future__ import annotations

import functools

import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nanochat.engine import Engine
from nanochat.normans_gpt import GPT, GPTConfig
from tools.pictures.results import record
from tools.pictures.style import SMALL, Palette, canvas, picture

PROMPT, NEW = 4, 8


@functools.cache
def positions_processed(cached: bool) -> list[int]:
    """How many positions the model computes for each new token, read off what reaches its embedding."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=16, vocab_size=32, n_layer=1, n_head=1, n_kv_head=1, n_embd=16))
    model.init_weights()
    seen: list[int] = []
    model.transformer.wte.register_forward_pre_hook(lambda _, given: seen.append(given[0].size(1)))
    prompt = list(range(PROMPT))
    if cached:
        list(Engine(model).generate([prompt], NEW))
    else:
        list(model.generate(prompt, NEW))
    return seen


@picture(
    "what-a-cache-saves",
    alt="""Two tables for a prompt of four tokens and eight new ones: a row for each new token, a column
    for each position. Without a cache every row computes all positions before it, 60 in all. With a cache
    the first row computes the four of the prompt and each later row a single one, 11 in all.""",
    title="Positions computed for each new token",
    height=2.2,
    grid=(1, 2),
)
def what_a_cache_saves(axes: list[Axes], palette: Palette) -> None:
    cases = ((False, "without a cache", palette.orange), (True, "with a cache", palette.blue))
    for axis, (cached, title, colour) in zip(axes, cases, strict=True):
        counts = positions_processed(cached)
        canvas(axis, PROMPT + NEW - 1, NEW)
        axis.set_title(f"{title}: {sum(counts)}")
        for row, count in enumerate(counts):
            end = PROMPT + row
            for column in range(PROMPT + NEW - 1):
                computed = end - count <= column < end
                fill = (
                    colour
                    if computed
                    else palette.soft(palette.muted, 0.2)
                    if column < end
                    else palette.ground
                )
                edge = colour if computed else palette.faint
                axis.add_patch(Rectangle((column, row), 0.86, 0.86, facecolor=fill, edgecolor=edge, lw=0.6))


@picture(
    "temperature",
    alt="""Percentages of the eight likeliest words after The, and of all others together, at three
    temperatures. At 0.5 the two likeliest, Congress and President, share three quarters. At 1 they have a
    fifth and all the unlikely words together 63 percent. At 2 the unlikely words have 96 percent.""",
    title="What temperature does to the trained model's guess",
    height=3.1,
    grid=(1, 3),
    sharey=True,
)
def temperature(axes: list[Axes], palette: Palette) -> None:
    seen = record("train-cpu")["temperature"]
    names = [token.strip() or repr(token) for token in seen["tokens"]] + ["all others"]
    hues = (palette.blue, palette.green, palette.orange)
    for axis, (heat, shares), hue in zip(axes, seen["shares"].items(), hues, strict=True):
        values = [100 * share for share in shares]
        values.append(100 - sum(values))
        axis.barh(range(9), values, color=[hue] * 8 + [palette.muted], height=0.7)
        for row, value in enumerate(values):
            axis.text(value + 2, row, f"{value:.0f}" if value >= 1 else "<1", va="center", size=SMALL)
        axis.set_xlim(0, 125)
        axis.set_xticks([])
        axis.spines["bottom"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        axis.set_title(f"τ = {float(heat):g}")
    axes[0].set_yticks(range(9), names, color=palette.ink)
    axes[0].invert_yaxis()
