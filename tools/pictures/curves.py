"""Functions of one number, drawn by sending numbers through the model's own parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor

from nanochat.normans_gpt import GPT, MLP, SOFTCAP, GPTConfig
from tools.pictures.style import SMALL, Palette, picture


def through_the_mlp(h: Tensor) -> tuple[Tensor, Tensor]:
    """The activation inside the model's MLP and its slope: all matrices pick the first channel."""
    mlp = MLP(GPTConfig(n_embd=2, n_head=1, n_kv_head=1))
    with torch.no_grad():
        mlp.c_fc.weight.zero_()[0, 0] = 1.0
        mlp.c_proj.weight.zero_()[0, 0] = 1.0
    x = torch.stack([h, torch.zeros_like(h)], dim=-1).requires_grad_()
    y = mlp(x)[:, 0]
    y.sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad[:, 0]


def through(function: object, h: Tensor) -> tuple[Tensor, Tensor]:
    """A function's values and slopes."""
    x = h.clone().requires_grad_()
    y = function(x)  # type: ignore[operator]
    y.sum().backward()
    assert x.grad is not None
    return y.detach(), x.grad


@picture(
    "relu2",
    alt="""Two plots over the hidden value h from -2 to 2. Left, the output: relu and GELU run almost
    together; relu squared starts flatter, crosses both near h = 1 and reaches 4 at h = 2. Right, the
    slope: relu jumps from 0 to 1 at zero, GELU swings around that jump, relu squared rises along a
    straight line.""",
    title="relu² beside relu and GELU",
    height=2.9,
    grid=(1, 2),
)
def relu2(axes: list[Axes], palette: Palette) -> None:
    h = torch.linspace(-2, 2, 81)
    rivals = (("GELU", F.gelu, palette.green, "--"), ("relu", F.relu, palette.blue, "-"))
    for name, function, colour, line in rivals:
        for axis, values in zip(axes, through(function, h), strict=True):
            if name == "relu" and axis is axes[1]:  # a jump is not a steep line
                axis.plot([-2, 0], [0, 0], colour, ls=line, label=name)
                axis.plot([0, 2], [1, 1], colour, ls=line)
            else:
                axis.plot(h, values, colour, ls=line, label=name)
    for axis, values in zip(axes, through_the_mlp(h), strict=True):
        axis.plot(h, values, palette.orange, lw=2.8, label="relu²")
        axis.set_xlabel("hidden value $h$")
        axis.set_xticks([-2, -1, 0, 1, 2])
        axis.set_ylim(-0.4, 4.2)
        axis.grid(True)
    axes[0].set_title("output")
    axes[1].set_title("slope")
    axes[0].legend(loc="upper left")


@picture(
    "softcap",
    alt="""Left, the capped logit over the raw one: it follows the diagonal near zero, bends, and stays
    between -15 and 15. Right, the share of the gradient that passes: all of it at zero, 42 percent at a
    raw logit of 15, 7 percent at 30, nearly nothing at 45; clipping would pass everything up to 15 and
    nothing beyond.""",
    title="The softcap and its slope",
    height=2.9,
    grid=(1, 2),
)
def softcap(axes: list[Axes], palette: Palette) -> None:
    raw, capped, slope = through_the_cap()
    left, right = axes
    left.plot(raw, raw, palette.muted, lw=1, ls=":")
    left.plot(raw, raw.clamp(-SOFTCAP, SOFTCAP), palette.blue, ls="--", label="clipped")
    left.plot(raw, capped, palette.orange, lw=2.8, label="capped")
    left.set_ylim(-20, 20)
    left.set_yticks([-SOFTCAP, 0, SOFTCAP])
    left.set_title("logit")
    left.legend(loc="upper left", handlelength=1.4, borderaxespad=0)
    edge = [-45, -SOFTCAP, -SOFTCAP, SOFTCAP, SOFTCAP, 45]
    right.plot(edge, [0, 0, 100, 100, 0, 0], palette.blue, ls="--")
    right.plot(raw, 100 * slope, palette.orange, lw=2.8)
    right.set_ylim(-5, 112)
    right.set_yticks([0, 50, 100], ["0", "50 %", "100 %"])
    right.set_title("gradient that passes")
    for at in (15, 30):
        share = 100 * float(slope[(raw - at).abs().argmin()])
        right.plot([at], [share], "o", color=palette.orange, ms=5)
        right.annotate(f"{share:.0f} %", (at, share), xytext=(5, 5), textcoords="offset points", size=SMALL)
    for axis in axes:
        axis.set_xlabel("raw logit")
        axis.set_xticks([-45, -30, -15, 0, 15, 30, 45], ["−45", "", "−15", "", "15", "", "45"])
        axis.grid(True)


def through_the_cap() -> tuple[Tensor, Tensor, Tensor]:
    """Raw logits from -45 to 45, what GPT.forward makes of them, and the slope there."""
    raw = torch.linspace(-45, 45, 91)
    model = GPT(GPTConfig(sequence_len=8, vocab_size=len(raw), n_layer=1, n_head=1, n_kv_head=1, n_embd=8))
    model.init_weights()
    last: list[Tensor] = []
    model.lm_head.register_forward_pre_hook(lambda _, arguments: last.append(arguments[0].detach()))
    idx = torch.zeros(1, 1, dtype=torch.long)
    with torch.no_grad():
        model(idx)
        top = last[0][0, 0]
        model.lm_head.weight.copy_(raw[:, None] * top / top.square().sum())
    capped = model(idx)[0, 0]
    capped.sum().backward()
    assert model.lm_head.weight.grad is not None
    return raw, capped.detach(), model.lm_head.weight.grad @ top / top.square().sum()
