"""One forward and one backward pass, component by component, on real text; or those of two models, compared.

python -m scripts.learn_via_debug.debug_gpt_components [--run=TAG] [--text=…] [--gpt=mine --against=book]
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, run_program, write_atomically
from nanochat.flags import flag, parse_flags
from nanochat.models import choose_gpt, gaps_named, load_gpt

if TYPE_CHECKING:
    import torch

    from nanochat.normans_gpt import GPT
    from nanochat.tokenizer import Tokenizer
    from nanochat.trace import Call, Difference, Trace

EXCERPT = (  # George Washington, first annual message, 8 January 1790
    "I embrace with great satisfaction the opportunity which now presents itself of congratulating you "
    "on the present favorable prospects of our public affairs."
)


@dataclass(frozen=True)
class WalkConfig:
    """The flags of debug_gpt_components."""

    run: str = flag("", "walk through this trained run, such as d4 or latest")
    gpt: str = flag("book", "whose model: book, mine, reference, or a file")
    against: str = flag("", "compare with this model; name what differs first")
    tolerance: float = flag(1e-5, "what counts as equal, of the largest number")
    statistics: bool = flag(False, "mean, deviation and largest of each tensor")
    text: str = flag("", "the text to read")
    depth: int = flag(2, "blocks of the random model")
    length: int = flag(32, "tokens to read")
    seed: int = flag(42, "of the random weights")
    out: str = flag("build/debug_gpt_components.md", "the Markdown file")

    def __post_init__(self) -> None:
        for name, least in (("depth", 1), ("length", 2)):
            if getattr(self, name) < least:
                raise UserError(f"--{name}={getattr(self, name)}: must be at least {least}")
        if not 0 < self.tolerance < 1:
            raise UserError(f"--tolerance={self.tolerance:g}: must be between 0 and 1")


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
    """Ids and their readable forms: the tokenizer's, or bytes. Raises UserError for fewer than two."""
    if tokenizer is None:
        ids = list(text.encode())[:length]
        words = [repr(bytes([i]))[1:] for i in ids]
    else:
        ids = [tokenizer.bos, *tokenizer.encode(text[: 20 * length])][:length]
        words = [repr(tokenizer.decode([i])) for i in ids]
    if len(ids) < 2:
        raise UserError(f"--text has {len(ids)} tokens; at least 2 are needed to predict one from the other")
    return ids, words


def random_model(module: Any, config: WalkConfig) -> GPT:
    """A small model on bytes with no weight left at zero, so that every component has an effect."""
    import torch

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
    torch.manual_seed(config.seed)  # only now: what a constructor draws is nobody's weights
    model.init_weights()
    for weight in model.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=weight.size(-1) ** -0.5)
    return model


def take_model(config: WalkConfig, gpt: str) -> tuple[Any, GPT, Tokenizer | None]:
    """The module that a --gpt names, with a model: trained if there is a --run, random otherwise."""
    module = load_gpt(gpt)
    if not config.run:
        return module, random_model(module, config), None
    import torch

    from nanochat.trained import load_model

    return module, *load_model(config.run, torch.device("cpu"), gpt)


def table(head: list[str], rows: list[list[object]]) -> list[str]:
    """A Markdown table."""
    lines: list[list[object]] = [[*head], ["---"] * len(head), *rows]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines] + [""]


def row(name: str, x: torch.Tensor) -> list[object]:
    """Name, shape, dtype, root mean square, largest magnitude, mean and standard deviation of a tensor."""
    wide = x.detach().double()
    numbers = wide.square().mean().sqrt(), wide.abs().max(), wide.mean(), wide.std(correction=0)
    return [name, tuple(x.shape), str(x.dtype).removeprefix("torch."), *(f"{n:.3f}" for n in numbers)]


TENSOR = ["tensor", "shape", "dtype", "rms", "largest", "mean", "std"]


def tensors(rows: list[list[object]], statistics: bool) -> list[str]:
    """A table of tensors; mean and deviation on demand."""
    columns = len(TENSOR) if statistics else len(TENSOR) - 2
    return table(TENSOR[:columns], [cells[:columns] for cells in rows])


def tell_block(layer: int, calls: list[Call], words: list[str], model: Any, statistics: bool) -> list[str]:
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
        *tensors(rows, statistics),
        f"Head 0 of the last position, {words[-1]}, looks most at {looks}. "
        f"Of the MLP's hidden numbers {silent:.0%} are zero.",
        "",
    ]


def tell_forward(calls: list[Call], words: list[str], model: Any, statistics: bool) -> list[str]:
    """From ids to the last norm."""
    first_norm = next(call for call in calls if call.name == "norm")
    rows = [row("embedding", first_norm.given["x"]), row("after the first norm", first_norm.result)]
    lines = ["## Embedding", "", *tensors(rows, statistics)]
    starts = [i for i, call in enumerate(calls) if call.name == "Block.forward"]
    for layer, start in enumerate(starts):
        inside = [calls[start]]
        for call in calls[start + 1 :]:
            if call.depth <= calls[start].depth:
                break
            inside.append(call)
        lines += tell_block(layer, inside, words, model, statistics)
    return lines


def tell_prediction(
    logits: torch.Tensor, ids: list[int], loss: float, show: Any, statistics: bool
) -> list[str]:
    """The likeliest next tokens, and the loss."""
    chances, tokens = logits[0, -1].softmax(-1).topk(5)
    rows: list[list[object]] = [[show(int(t)), f"{c:.3f}"] for c, t in zip(chances, tokens, strict=True)]
    uniform = math.log(logits.size(-1))
    return [
        "## Prediction",
        "",
        *tensors([row("logits, softcapped", logits)], statistics),
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

    module, model, tokenizer = take_model(config, config.gpt)
    whose = f"the weights of run {config.run}" if config.run else f"random weights, seed {config.seed}"
    ids, words = tokens_of(some_text(config), tokenizer, config.length)
    idx, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    watched = module.watched_module() if config.gpt == "reference" else module
    with trace(watched, out=None, keep=True) as recording, torch.no_grad():
        logits = model(idx)
    calls = module.retell(recording.calls) if config.gpt == "reference" else recording.calls
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
        *tell_forward(calls, words[:-1], model, config.statistics),
        *tell_prediction(logits, ids, loss.item(), show, config.statistics),
        *tell_backward(model),
    ]


def compare(config: WalkConfig) -> tuple[list[str], bool]:
    """What two models do with the same weights and text: lines about it, and whether they do the same."""
    import torch

    from nanochat.trace import describe, first_difference, moments_of

    module, model, tokenizer = take_model(config, config.gpt)
    expected_module, expected_model, _ = take_model(config, config.against)
    give_the_same_weights(model, expected_model, config)
    ids, _ = tokens_of(some_text(config), tokenizer, config.length)
    idx, targets = torch.tensor([ids[:-1]]), torch.tensor([ids[1:]])
    mine = record(module, model, idx, targets)
    expected = record(expected_module, expected_model, idx, targets)
    common = {call.name for call in mine.calls} & {call.name for call in expected.calls}
    forward = sum(len(tensors) for _, tensors in moments_of(expected, common))
    found = first_difference(mine, expected, config.tolerance)
    found = found or first_gradient(model, expected_model, config.tolerance, forward)
    what = f"--gpt={config.gpt} and --against={config.against}, {len(ids) - 1} tokens"
    if found is None:
        gradients = sum(1 for _ in model.parameters())
        return [
            f"the same: {what}",
            f"  {forward} tensors of two forward passes and {gradients} gradients agree to"
            f" {config.tolerance:g} of the largest number in each",
        ], True
    lines = [
        f"different: {what}",
        f"  tensors that agree: {found.agreed}; the first that does not:",
        f"  {found}",
    ]
    for name, tensor in zip((config.gpt, config.against), found.pair or (), strict=False):
        lines += [f"    {line}" for line in describe(name, tensor, config.statistics)]
    return lines, False


def give_the_same_weights(model: GPT, expected: GPT, config: WalkConfig) -> None:
    """Copy the expected model's weights. Raises UserError if names or shapes are not the same."""
    ours = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    theirs = {name: tuple(weight.shape) for name, weight in expected.named_parameters()}
    for name in [*theirs, *ours]:
        if ours.get(name) != theirs.get(name):
            raise UserError(
                f"the weights differ before anything is computed: {name} is {ours.get(name, 'missing')} in"
                f" --gpt={config.gpt} and {theirs.get(name, 'missing')} in --against={config.against}"
            )
    model.load_state_dict(expected.state_dict(), strict=False)  # not strict: a table may be in one of them


def record(module: Any, model: GPT, idx: torch.Tensor, targets: torch.Tensor) -> Trace:
    """Both kinds of forward pass, recorded; then the backward pass, which leaves gradients."""
    from nanochat.trace import trace

    with trace(module, out=None, keep=True) as recording:
        model(idx)
        loss = model(idx, targets)
    loss.backward()
    return recording


def first_gradient(model: GPT, expected: GPT, tolerance: float, forward: int) -> Difference | None:
    """The first gradient that differs, from the head down; forward: tensors that agreed before."""
    from nanochat.trace import Difference, unlike

    pairs = zip(model.named_parameters(), expected.named_parameters(), strict=True)
    for agreed, ((name, ours), (_, theirs)) in enumerate(reversed(list(pairs)), forward):
        if ours.grad is None or theirs.grad is None:
            if ours.grad is not theirs.grad:
                side = "the expected model" if ours.grad is None else "this model"
                return Difference("backward", f"gradient of {name}", f"exists in {side} only", agreed)
        elif how := unlike(ours.grad, theirs.grad, tolerance):
            return Difference("backward", f"gradient of {name}", how, agreed, (ours.grad, theirs.grad))
    return None


def main() -> None:
    """Walk through one model, or compare two; status 1 if they differ."""
    config = parse_flags(WalkConfig, sys.argv[1:], "debug_gpt_components", __doc__ or "")
    choose_gpt(config.gpt)
    with gaps_named(config.gpt):
        if config.against:
            choose_gpt(config.against)
            with gaps_named(config.against):
                lines, same = compare(config)
            print("\n".join(lines))
            sys.exit(0 if same else 1)
        story = "\n".join(walk(config)) + "\n"
    print(story)
    write_atomically(Path(config.out), story)
    print(f"written to {config.out}")


if __name__ == "__main__":
    run_program(main)
