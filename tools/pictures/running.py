"""The program around the model: a recorded run, memory, text, batches, files."""

from __future__ import annotations

import functools
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from nanochat import checkpoint_manager
from nanochat.dataloader import Bookmark, _make_blocks
from nanochat.engine import KVCache
from nanochat.loss import rows_per_chunk, rows_per_tile
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.step import Stepper
from tools.pictures.results import record
from tools.pictures.style import SMALL, Palette, box, canvas, picture, thousands


@picture(
    "training-curve",
    alt="""The recorded run of make train. Above, the training loss over the steps: it falls from 9 to 5
    in the first hundred steps and slowly to 3.8 after 1,238. Below, bits per byte on text the model never
    saw: 2.71 untrained, 1.39 after 250 steps, 1.19 at the end. The last part, in which the learning rate
    falls, is shaded.""",
    title="The training run behind this book",
    height=4.1,
    grid=(2, 1),
    sharex=True,
    height_ratios=(1.25, 1),
)
def training_curve(axes: list[Axes], palette: Palette) -> None:
    run = record("train-cpu")
    metrics, scores = run["metrics"], run["validation"]
    steps = metrics["step"]
    falling = next(step for step, factor in zip(steps, metrics["lrm"], strict=True) if factor < 1)
    upper, lower = axes
    upper.plot(steps[::3], metrics["loss"][::3], color=palette.soft(palette.blue, 0.45), lw=0.6)
    upper.plot(steps[::4], metrics["smooth_loss"][::4], color=palette.blue)
    upper.set_title("training loss, nats per token")
    upper.set_yticks([4, 5, 6, 7, 8, 9])
    lower.plot(
        [score["step"] for score in scores],
        [score["val_bpb"] for score in scores],
        color=palette.orange,
        marker="o",
        ms=5,
    )
    for score, place, side in ((scores[0], (8, -3), "left"), (scores[-1], (0, 8), "right")):
        lower.annotate(
            f"{score['val_bpb']:.2f}",
            (score["step"], score["val_bpb"]),
            xytext=place,
            textcoords="offset points",
            ha=side,
            color=palette.ink,
            weight="bold",
        )
    lower.set_title("validation, bits per byte")
    lower.set_ylim(1, 2.9)
    lower.set_xlabel("step")
    thousands(lower.xaxis)
    for axis in axes:
        axis.axvspan(falling, steps[-1], color=palette.soft(palette.green, 0.14), lw=0)
        axis.grid(True, axis="y")
        axis.set_xlim(-15, steps[-1] + 15)
    upper.text(falling + 15, 8.9, "learning rate falls", color=palette.green, size=SMALL, va="top")


def cache_bytes(kv_heads: int, users: int = 64) -> int:
    """Bytes of the engine's cache for 12 layers and 2,048 positions in bf16, as it allocates them."""
    cache = KVCache(users, kv_heads, 2048, 128, 12)
    one = torch.empty(users, kv_heads, 1, 128, dtype=torch.bfloat16, device="meta")
    cache.insert_kv(0, one, one)
    assert cache.store is not None
    return cache.store.numel() * cache.store.element_size()


def weight_bytes(kv_heads: int) -> int:
    """Bytes in bf16 of what the chapter's model multiplies with; of its embedding a step reads a few rows."""
    with torch.device("meta"):
        model = GPT(GPTConfig(2048, 65536, n_layer=12, n_head=6, n_kv_head=kv_heads, n_embd=768))
    return 2 * (sum(p.numel() for p in model.parameters()) - model.transformer.wte.weight.numel())


@picture(
    "kv-cache",
    alt="""Bars of gigabytes read in one step, which makes a token for each of 64 users with 2,048
    positions. With six key-value heads (multi-head) the cache is 4.83 GB, with two (grouped-query) 1.61
    GB, with one (multi-query) 0.81 GB. The weights that multiply, 0.27 GB, are small beside each of
    them.""",
    title="The key-value cache, and what shared heads save",
    height=2.3,
)
def kv_cache(axes: Axes, palette: Palette) -> None:
    cases = (("6 heads\nmulti-head", 6), ("2 heads\ngrouped-query", 2), ("1 head\nmulti-query", 1))
    for row, (_, heads) in enumerate(cases):
        weights, cache = weight_bytes(heads) / 1e9, cache_bytes(heads) / 1e9
        axes.barh(row, weights, color=palette.muted, height=0.62, label="weights" if row == 0 else None)
        axes.barh(
            row, cache, left=weights, color=palette.blue, height=0.62, label="cache" if row == 0 else None
        )
        axes.text(weights + cache + 0.06, row, f"{cache:.2f} GB", va="center", size=SMALL)
    axes.set_yticks(range(3), [name for name, _ in cases], color=palette.ink)
    axes.invert_yaxis()
    axes.set_xlim(0, 6.3)
    axes.set_xlabel("GB read in one step, 64 users")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.legend(loc="lower right", reverse=True)


@picture(
    "loss-in-chunks",
    alt="""Left, memory at the peak of the loss over the number of rows, both axes logarithmic. All at
    once it grows in a straight line from half a gigabyte at 512 rows to 69 at 65,536. In chunks it stays
    at 0.2 up to 2,048 rows, grows slowly, and is 28 times lower at the end. Right, measured at 2,048
    rows: a whole training step holds 3.6 gigabytes all at once and 1.7 in chunks.""",
    title="The memory of the loss, all at once and in chunks",
    height=2.9,
    grid=(1, 2),
    width_ratios=(2.1, 1),
)
def loss_in_chunks(axes: list[Axes], palette: Palette) -> None:
    left, right = axes
    vocabulary, copies, copies_of_a_tile = 65536, 4, 2.25
    rows = [2**k for k in range(9, 17)]
    whole = [copies * n * vocabulary * 4 / 1e9 for n in rows]
    chunks = [min(n, rows_per_chunk(n, vocabulary, 4)) for n in rows]
    tiles = [min(n, rows_per_tile(n, vocabulary)) for n in chunks]
    held = [chunk + copies_of_a_tile * tile for chunk, tile in zip(chunks, tiles, strict=True)]
    cut = [n * vocabulary * 4 / 1e9 for n in held]
    left.loglog(rows, whole, color=palette.blue, marker="o", ms=4)
    left.loglog(rows, cut, color=palette.orange, marker="s", ms=4)
    left.text(1500, 5.2, "all at once", color=palette.blue, ha="right", size=SMALL)
    left.text(8192, 0.42, "in chunks", color=palette.orange, size=SMALL)
    left.set_xticks([512, 2048, 8192, 65536], ["512", "2,048", "8,192", "65,536"])
    left.set_yticks([0.2, 1, 10, 69], ["0.2", "1", "10", "69"])
    left.minorticks_off()
    left.set_title("counted, GB")
    left.set_xlabel("rows $B\\,T$")
    left.grid(True)
    cases = record("bench-cpu-bfloat16")["groups"]["loss"]
    measured = {case["name"]: case["peak_memory_bytes"] / 1e9 for case in cases}
    pairs = (
        ("all at\nonce", "all at once, eager", palette.blue),
        ("in\nchunks", "in chunks, eager", palette.orange),
    )
    for place, (_, name, colour) in enumerate(pairs):
        right.bar(place, measured[name], color=colour, width=0.6)
        right.text(place, measured[name] + 0.08, f"{measured[name]:.1f}", ha="center")
    right.set_xticks(range(2), [name for name, _, _ in pairs])
    right.tick_params(axis="x", length=0)
    right.set_yticks([])
    right.spines["left"].set_visible(False)
    right.set_ylim(0, 4.2)
    right.set_title("measured, GB")


@picture(
    "tokens-of-a-sentence",
    alt="""A sentence cut into tokens, each with its number: frequent words such as America, unemployed
    and need are one token with their space; 's and 't are tokens of their own; 1936 is cut into 19 and
    36; naïve becomes five tokens, its ï two single bytes; tokenizer becomes to, ken, iz and er.""",
    title="What a tokenizer of 8,192 tokens makes of a sentence",
    height=2.2,
)
def tokens_of_a_sentence(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 158)
    hues = (palette.blue, palette.orange, palette.green, palette.pink)
    words: list[list[tuple[str, int, float]]] = []
    for number, as_hex in record("train-cpu")["sentence"]:
        try:
            shown = bytes.fromhex(as_hex).decode().replace(" ", "␣")
        except UnicodeDecodeError:
            shown = as_hex
        if not words or shown.startswith("␣"):
            words.append([])
        words[-1].append((shown, number, max(7.6 * len(shown), 6.6 * len(str(number))) + 9))
    x, y = 0.0, 4.0
    for place, word in enumerate(words):
        if x + sum(wide + 4 for _, _, wide in word) > 392:
            x, y = 0.0, y + 52
        for shown, number, wide in word:
            text = {"text": shown, "color": palette.ink, "family": "DejaVu Sans Mono", "size": SMALL + 1}
            box(axes, palette, x, y, wide, 25, colour=hues[place % 4], rounding=4, **text)
            middle = x + wide / 2
            axes.text(middle, y + 35, f"{number}", ha="center", va="center", size=SMALL, color=palette.muted)
            x += wide + 4


@picture(
    "loader-windows",
    alt="""Above, the stream of tokens: documents one after another, each opened by a bos token, cut every
    four tokens into sequences of five, so that neighbours share one token. Below, the order in which the
    sequences are handed out: within each window of four they are mixed, and none leaves its window.""",
    title="From a stream to batches",
    height=2.85,
)
def loader_windows(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 205)
    length, window, sequences = 4, 4, 12
    tokens = np.arange(sequences * length + 1, dtype=np.int32)
    (block,) = _make_blocks(iter([(Bookmark(), tokens)]), length, window, seed=7, first=0)
    order = [int(row[0]) // length for row in block.rows]
    hues = (palette.blue, palette.orange, palette.green)
    step = 380 / len(tokens)
    starts = (0, 13, 19, 36)
    axes.text(0, 8, "one stream of documents", weight="bold", va="center")
    for token in tokens:
        opens = token in starts
        fill = palette.ink if opens else palette.soft(palette.muted, 0.45)
        axes.add_patch(Rectangle((token * step, 20), step * 0.8, 20, facecolor=fill, lw=0))
    wide = length * step
    for number in range(sequences):
        hue = hues[number // window]
        y = 46 + 7 * (number % 2)
        axes.plot([number * wide + 1, (number + 1) * wide + step * 0.8 - 1], [y, y], color=hue, lw=3)
        box(axes, palette, number * wide + 2, 66, wide - 4, 22, text=f"{number}", colour=hue, rounding=4)
    axes.text(0, 104, "the same, mixed within windows", weight="bold", va="center")
    for place, number in enumerate(order):
        hue = hues[number // window]
        box(axes, palette, place * wide + 2, 156, wide - 4, 22, text=f"{number}", colour=hue, rounding=4)
        axes.plot([(number + 0.5) * wide, (place + 0.5) * wide], [119, 153], color=hue, lw=1.1)
    for number in range(sequences // window):
        left, right = number * window * wide + 2, (number + 1) * window * wide - 2
        axes.plot([left, right], [116, 116], color=hues[number], lw=1.5)
        axes.text((left + right) / 2, 192, f"window {number}", ha="center", va="center", size=SMALL)


@functools.cache
def writes_of_a_checkpoint() -> list[tuple[str, int]]:
    """The files of one checkpoint with their sizes, in the order in which save_checkpoint writes them."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=16, vocab_size=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=32))
    model.init_weights()
    stepper = Stepper(model, model.setup_optimizers())
    idx = torch.randint(64, (2, 16))
    stepper.step(iter([(idx, idx)]))
    written: list[tuple[str, int]] = []
    with mock.patch.object(checkpoint_manager, "write_together") as write:
        write.side_effect = lambda files: written.extend((path.name, len(data)) for path, data in files)
        checkpoint_manager.save_checkpoint(Path("nowhere"), 123, model, stepper.optimizers, {})
    return written


@picture(
    "checkpoint-order",
    alt="""The files of a checkpoint are first all written under hidden names: the model's weights, the
    optimizers' state, and the JSON that describes them. Then they are renamed in this order. Stopped before
    the third rename, there is no checkpoint of this step and the older one counts; after it, the new one is
    complete.""",
    title="The description is written last",
    height=2.5,
)
def checkpoint_order(axes: Axes, palette: Palette) -> None:
    canvas(axes, 389, 164)
    files = [name for name, _ in writes_of_a_checkpoint()]
    hues = (palette.blue, palette.orange, palette.green)
    left, wide, apart = 152, 37, 33
    for row, (name, hue) in enumerate(zip(files, hues, strict=True)):
        x, y = left + row * wide, 6 + 35 * row
        dot = left + 3 * wide + 14 + row * apart
        axes.text(0, y + 12, name, va="center", size=SMALL)
        axes.plot([left - 4, x - 2], [y + 12, y + 12], color=palette.faint, lw=0.8)
        box(axes, palette, x, y, 34, 24, text="write", colour=hue, rounding=4)
        axes.plot([x + 35, dot], [y + 12, y + 12], color=hue, lw=1.4)
        axes.plot([dot], [y + 12], "o", color=hue, ms=8)
    last = left + 3 * wide + 14 + 2 * apart
    axes.plot([last, last], [98, 158], color=palette.muted, ls=":", lw=1.2)
    text = "stopped before: the older one counts"
    box(axes, palette, 0, 124, last - 4, 32, text=text, rounding=5)
    box(axes, palette, last + 4, 124, 389 - last - 5, 32, text="new", colour=palette.green, rounding=5)
