"""Optimization: who gets which optimizer, when who learns, and how rates and singular values move."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from torch import Tensor

from nanochat.muon import Muon, orthogonalize
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.plans import WIDE
from nanochat.step import Schedule, Stepper, muon_momentum
from nanochat.train_config import TrainConfig
from tools.pictures.style import SMALL, Palette, box, canvas, picture


def quick_model() -> GPT:
    """The model that `make train` trains, on the meta device."""
    with torch.device("meta"):
        return GPT(
            GPTConfig(
                sequence_len=WIDE.max_seq_len,
                vocab_size=WIDE.vocab_size,
                n_layer=WIDE.depth,
                n_head=WIDE.n_head,
                n_kv_head=WIDE.n_head,
                n_embd=WIDE.n_embd,
            )
        )


@picture(
    "optimizers",
    alt="""Three bands flow from left to right, as thick as their number of parameters. The head and the
    token embedding flow into AdamW, each as a group with a learning rate of its own: 0.0069 and 0.346.
    All twelve matrices of the two blocks flow into Muon, learning rate 0.02.""",
    title="Which parameters go to which optimizer",
    height=3.45,
)
def optimizers(axes: Axes, palette: Palette) -> None:
    model = quick_model()
    names = {id(p): name for name, p in model.named_parameters()}
    canvas(axes, 389, 248)
    hues = iter((palette.orange, palette.pink, palette.blue))
    total = sum(p.numel() for p in model.parameters())
    y, scale = 26.0, 196 / total
    axes.text(0, 8, "parameters", weight="bold", va="center")
    axes.text(272, 8, "optimizer", weight="bold", va="center")
    for optimizer in model.setup_optimizers():
        top = y
        for group in optimizer.param_groups:
            hue = next(hues)
            count = sum(p.numel() for p in group["params"])
            high = scale * count
            flow(axes, (128, y), (268, y), high, palette.soft(hue, 0.3))
            axes.add_patch(Rectangle((0, y), 128, high, facecolor=palette.soft(hue), edgecolor=hue, lw=1))
            lines = described([(names[id(p)], p) for p in group["params"]])
            for row, text in enumerate(lines):
                mono = row < len(lines) - 1
                axes.text(
                    8,
                    y + high / 2 + (row - (len(lines) - 1) / 2) * 15,
                    text,
                    va="center",
                    size=SMALL,
                    family="DejaVu Sans Mono" if mono else "DejaVu Sans",
                    color=palette.ink,
                )
            rate = f"rate {group['lr']:.3g}"
            axes.text(198, y + high / 2, rate, ha="center", va="center", size=SMALL, color=palette.ink)
            y += high + (5 if group is not optimizer.param_groups[-1] else 0)
        detail = momentum_of(optimizer)
        box(axes, palette, 268, top, 121, y - top, rounding=6)
        axes.text(328, (top + y) / 2 - 9, type(optimizer).__name__, ha="center", va="center", weight="bold")
        axes.text(328, (top + y) / 2 + 9, detail, ha="center", va="center", size=SMALL, color=palette.muted)
        y += 16


def momentum_of(optimizer: torch.optim.Optimizer) -> str:
    """What an optimizer remembers gradients by."""
    group = optimizer.param_groups[0]
    if isinstance(optimizer, Muon):
        return f"momentum {group['momentum']}"
    return "betas " + ", ".join(map(str, group["betas"]))


def described(parameters: list[tuple[str, Tensor]]) -> list[str]:
    """Lines about a group: its parameters' names, and how many numbers they hold."""
    numbers = f"{sum(p.numel() for _, p in parameters) / 1e6:.2f} M"
    if len(parameters) == 1:
        (name, p) = parameters[0]
        name = name.removesuffix(".weight").removeprefix("transformer.")
        return [name, f"{p.size(0)} × {p.size(1)}: {numbers}"]
    kinds = dict.fromkeys(name.split(".", 3)[3].removesuffix(".weight") for name, _ in parameters)
    lines = [
        " ".join(kind.split(".")[1] for kind in kinds if kind.startswith(part)) for part in ("attn", "mlp")
    ]
    return [*lines, f"{len(parameters)} matrices: {numbers}"]


def flow(axes: Axes, start: tuple[float, float], end: tuple[float, float], high: float, colour: str) -> None:
    """A band from one edge to another, of constant height."""
    (x0, y0), (x1, y1) = start, end
    middle = (x0 + x1) / 2
    points = [(x0, y0), (middle, y0), (middle, y1), (x1, y1)]
    back = [(x1, y1 + high), (middle, y1 + high), (middle, y0 + high), (x0, y0 + high)]
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    codes += [Curve.LINETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    axes.add_patch(PathPatch(Curve(points + back, codes), facecolor=colour, edgecolor="none"))


@functools.cache
def first_gradients() -> dict[str, list[float]]:
    """The length of each kind of weight's gradient at steps 0, 1 and 2, under the real optimizers."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(sequence_len=64, vocab_size=256, n_layer=2, n_head=2, n_kv_head=2, n_embd=64))
    model.init_weights()
    lengths: dict[str, list[float]] = {}

    @contextmanager
    def note(part: str) -> Iterator[None]:
        yield
        if part != "backward":
            return
        squares: dict[str, float] = {}
        for name, p in model.named_parameters():
            assert p.grad is not None
            kind = ".".join(name.removesuffix(".weight").split(".")[-2:]).removeprefix("transformer.")
            squares[kind] = squares.get(kind, 0.0) + float(p.grad.square().sum())
        for kind, square in squares.items():
            lengths.setdefault(kind, []).append(math.sqrt(square))

    stepper = Stepper(model, model.setup_optimizers(), clip=0.0, part=note)
    idx = torch.randint(256, (8, 64))
    for _ in range(3):
        stepper.step(iter([(idx, idx.roll(-1, 1))]))
    return lengths


@picture(
    "who-learns-when",
    alt="""A table of gradients at steps 0, 1 and 2. At step 0 only lm_head has one. At step 1 lm_head,
    wte and the two c_proj of every block have one, while c_q, c_k, c_v and c_fc still have exactly zero.
    At step 2 every matrix has one.""",
    title="Who learns when",
    height=3.1,
)
def who_learns_when(axes: Axes, palette: Palette) -> None:
    order = ("lm_head", "wte", "attn.c_proj", "mlp.c_proj", "attn.c_v", "mlp.c_fc", "attn.c_q", "attn.c_k")
    lengths = first_gradients()
    assert set(order) == set(lengths)
    canvas(axes, 389, 223)
    for step in range(3):
        axes.text(160 + 92 * step, 9, f"step {step}", ha="center", va="center", weight="bold")
    for row, kind in enumerate(order):
        y = 22 + 25 * row
        axes.text(104, y + 11, kind, ha="right", va="center", size=SMALL, family="DejaVu Sans Mono")
        for step, length in enumerate(lengths[kind]):
            x = 116 + 92 * step
            hue = palette.orange if length else None
            strength = 0.14 + 0.1 * max(0.0, 4 + math.log10(length)) if length else 0
            fill = palette.soft(palette.orange, min(0.45, strength)) if length else palette.ground
            text = f"{length:.1g}" if length else "0"
            colour = palette.ink if length else palette.muted
            box(axes, palette, x, y, 88, 21, text=text, colour=hue, fill=fill, rounding=4, color=colour)


@picture(
    "newton-schulz",
    alt="""Twenty lines, one for each singular value of a matrix, over the steps 0 to 5 of the iteration,
    on a logarithmic scale. They start between 0.0005 and 0.7. The small ones rise in parallel, 3.4 times
    a step; each that reaches the shaded band between 0.68 and 1.21 bounces within it and stays. After
    five steps only the smallest have not arrived.""",
    title="Newton–Schulz at work",
    height=3.3,
)
def newton_schulz(axes: Axes, palette: Palette) -> None:
    values = singular_values()
    axes.axhspan(0.68, 1.21, color=palette.soft(palette.green, 0.3), lw=0)
    axes.axhline(1, color=palette.green, lw=0.8, ls=":")
    for path in values.T:
        arrived = bool((path[-1] > 0.6).item())
        colour = palette.blue if arrived else palette.orange
        axes.plot(range(6), path, color=colour, lw=1.2, marker="o", ms=3)
    axes.set_yscale("log")
    axes.set_yticks([0.001, 0.01, 0.1, 1], ["0.001", "0.01", "0.1", "1"])
    axes.minorticks_off()
    axes.set_ylim(3e-4, 2)
    axes.set_xlim(-0.12, 5.12)
    axes.set_xlabel("step of the iteration")
    axes.set_ylabel("singular value")
    axes.grid(True, axis="y")
    axes.text(0.02, 1.36, "0.68 to 1.21", color=palette.green, size=SMALL, va="bottom")


@functools.cache
def singular_values() -> Tensor:
    """What orthogonalize makes of 20 singular values after 0 to 5 steps: (6, 20)."""
    torch.manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(64, 20))[0] for _ in range(2))
    matrix = (u * torch.logspace(0, -3.2, 20)) @ v.T
    steps = [orthogonalize(matrix[None], steps=k, dtype=torch.float32)[0] for k in range(6)]
    return torch.stack([(u.T @ x @ v).diagonal() for x in steps])


@picture(
    "schedule",
    alt="""Left, the factor on every learning rate over the share of the run that is over. The default
    stays at 1 and falls to 0 over the last fifth; make train falls over the last two fifths; a run with a
    warmup of a tenth and a final fraction of a fifth rises first and ends at 0.2. Right, Muon's momentum
    rises from 0.85 to 0.95 over 300 steps and stays there.""",
    title="Learning rates and Muon's momentum over a run",
    height=2.75,
    grid=(1, 2),
    width_ratios=(1.45, 1),
)
def schedule(axes: list[Axes], palette: Palette) -> None:
    left, right = axes
    steps = 100
    quick = Schedule(WIDE.warmup_ratio, WIDE.warmdown_ratio)
    usual = TrainConfig().warmdown_ratio
    cases = (
        ("default", Schedule(warmdown=usual), palette.blue, "-"),
        ("make train", quick, palette.orange, "-"),
        ("with warmup", Schedule(0.1, usual, 0.2), palette.green, "--"),
    )
    for name, factor, colour, line in cases:
        shares = [step / steps for step in range(steps + 1)]
        factors = [factor.multiplier(share, 1 / steps) for share in shares]
        left.plot([100 * share for share in shares], factors, color=colour, ls=line, label=name)
    left.set_title("factor on all learning rates")
    left.set_xlabel("part of the run that is over")
    left.set_xticks([0, 50, 100], ["0", "50 %", "100 %"])
    left.set_yticks([0, 0.2, 1])
    left.set_ylim(-0.03, 1.08)
    left.legend(loc="center left", bbox_to_anchor=(0.1, 0.36))
    left.grid(True)
    right.plot(range(0, 501, 20), [muon_momentum(step) for step in range(0, 501, 20)], color=palette.pink)
    right.set_title("Muon's momentum")
    right.set_xlabel("step")
    right.set_xticks([0, 300, 500])
    right.set_yticks([0.85, 0.9, 0.95])
    right.grid(True)


@functools.cache
def rows_path(betas: tuple[float, float], before: int = 20_000, after: int = 120) -> list[float]:
    """How far torch's AdamW has moved a number, in learning rates, after one gradient late in training."""
    weight = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.AdamW([weight], lr=1.0, betas=betas, eps=1e-10, weight_decay=0.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    optimizer.state[weight]["step"].fill_(before)  # as if it had been silent for so many steps
    path = [0.0]
    for step in range(after):
        weight.grad.fill_(1.0 if step == 0 else 0.0)
        optimizer.step()
        path.append(-float(weight.detach()))
    return path


@picture(
    "how-long-adamw-remembers",
    alt="""How far one gradient, followed by zeros, moves a row of the embedding, in learning rates. With
    betas 0.8 and 0.95 the row moves 5 within about twenty steps and stops. With the usual 0.9 and 0.999
    it moves on for fifty steps and ends 31.8 learning rates away.""",
    title="How far one gradient moves a row",
    height=2.7,
)
def how_long_adamw_remembers(axes: Axes, palette: Palette) -> None:
    model = quick_model()
    used = model.setup_optimizers()[0].param_groups[0]["betas"]
    for betas, colour, place in (((0.9, 0.999), palette.blue, -14), (used, palette.orange, 7)):
        path = rows_path(betas)
        axes.plot(path[:81], color=colour)
        name = f"betas {betas[0]}, {betas[1]}: {path[-1]:.1f}"
        axes.annotate(name, (80, path[80]), (0, place), textcoords="offset points", ha="right", color=colour)
    axes.set_xlabel("steps after the gradient")
    axes.set_ylabel("learning rates")
    axes.set_ylim(-1, 35)
    axes.grid(True)


@picture(
    "steps-lost-in-bfloat16",
    alt="""A weight that starts at 1 and loses the same small amount 300 times. Exactly, it falls along
    straight dashed lines. In bfloat16 a step of 0.0015 changes nothing at all. A step of 0.0025 is
    rounded up to 0.0039 until the weight reaches one half, then down to 0.0020, below one quarter up
    again.""",
    title="Short steps in bfloat16",
    height=2.8,
)
def steps_lost_in_bfloat16(axes: Axes, palette: Palette) -> None:
    for size, colour, (at, dx, dy) in (
        (0.0015, palette.blue, (220, 0, 5)),
        (0.0025, palette.orange, (150, -8, -12)),
    ):
        narrow = torch.ones((), dtype=torch.bfloat16)
        path = [1.0]
        for _ in range(300):
            narrow = narrow - size
            path.append(float(narrow))
        axes.plot([0, 300], [1, 1 - 300 * size], color=colour, ls="--", lw=1.2)
        axes.plot(range(0, 301, 2), path[::2], color=colour)
        side = "right" if dx else "left"
        place: dict[str, Any] = {"textcoords": "offset points", "xytext": (dx, dy)}
        axes.annotate(f"steps of {size}", (at, path[at]), color=colour, ha=side, **place)
    axes.text(4, 0.14, "dashed: exact", color=palette.muted, size=SMALL)
    axes.set_xlabel("step")
    axes.set_ylabel("weight")
    axes.set_yticks([0.25, 0.5, 0.75, 1])
    axes.set_ylim(0.1, 1.09)
    axes.grid(True)
