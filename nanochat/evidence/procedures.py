"""What tests of identities measure: for one setting and seed, named numbers."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from nanochat.evidence.settings import Setting
from nanochat.evidence.texts import made_up
from nanochat.evidence.trials import autocast, drawn
from nanochat.evidence.variations import VariedGPT, build
from nanochat.step import Stepper, accumulate_gradients


def hold(model: VariedGPT, how: str) -> VariedGPT:
    """Hold the model's tables in another way."""
    for name in ("cos", "sin"):
        table = getattr(model, name)
        delattr(model, name)
        if how == "parameter":
            setattr(model, name, nn.Parameter(table))
        elif how == "attribute":
            setattr(model, name, table)
        else:
            model.register_buffer(name, table, persistent=how == "saved buffer")
    return model


def hold_tables(setting: Setting, seed: int, device: torch.device) -> dict[str, float]:
    """What a checkpoint, an optimizer and a move do to tables that are held as the setting says."""
    setting = replace(setting, embedding_dtype="float32")  # so that it runs without autocast
    model = hold(build(setting, seed, device), setting.tables)
    before = model.cos.detach().clone()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    longer = hold(
        build(replace(setting, sequence_len=2 * setting.sequence_len), seed, device), setting.tables
    )
    try:
        longer.load_state_dict(model.state_dict())
        loads = 1
    except RuntimeError:
        loads = 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batches = drawn(made_up(setting.vocab_size), setting, seed, device)
    stepper = Stepper(model, [optimizer], clip=0)
    for _ in range(min(20, setting.steps)):
        stepper.step(batches)
    cos, sin = model.cos.detach().float(), model.sin.detach().float()
    return {
        "tensors in a checkpoint": len(model.state_dict()),
        "checkpoint, bytes": len(file.getvalue()),
        "numbers the optimizer gets": sum(p.numel() for p in model.parameters()),
        "table moved by": float((cos - before.float()).abs().max()),
        "length error": float((cos.square() + sin.square() - 1).abs().max()),
        "loads at 2 T": loads,
        "follows .to()": int(model.to("meta").cos.is_meta),
    }


def compare_accumulation(setting: Setting, seed: int, device: torch.device) -> dict[str, float]:
    """Distances of gradients, relative to the exact one's length: one batch and several passes, by format."""
    model = build(replace(setting, embedding_dtype="float32"), seed, device)  # also without autocast
    torch.manual_seed(seed)
    for p in model.parameters():
        if not p.any():
            p.data.normal_(std=0.05)  # silent branches and a silent head would have nothing to compare
    batches = drawn(made_up(setting.vocab_size), setting, seed, device)
    passes = [next(batches) for _ in range(setting.passes)]
    whole = [(torch.cat([x for x, _ in passes]), torch.cat([y for _, y in passes]))]
    short = [*passes[:-1], (passes[-1][0], passes[-1][1].clone())]
    short[-1][1][:, ::2] = -1
    whole_short = [(whole[0][0], torch.cat([y for _, y in short]))]
    low = replace(setting, dtype="bfloat16")
    single = {"once": gradient(model, whole), "passes": gradient(model, passes)}
    with autocast(low, device):
        half = {"once": gradient(model, whole), "passes": gradient(model, passes)}
    undivided = sum((gradient(model, [one]) for one in passes), torch.zeros_like(single["once"]))
    unequal = distance(gradient(model, short), gradient(model, whole_short))
    model.double()
    exact = gradient(model, whole)
    errors = {name: distance(value, exact) for name, value in half.items()}
    return {
        "float64": distance(gradient(model, passes), exact),
        "float32": distance(single["passes"], single["once"]),
        "bf16, one batch": errors["once"],
        "bf16, passes": errors["passes"],
        "bf16, passes over one batch": errors["passes"] / errors["once"],
        "not divided": float(undivided.norm() / single["once"].norm()),
        "unequal passes": unequal,
    }


def gradient(model: VariedGPT, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient of the mean loss over the batches, all of it as one float64 vector."""
    model.zero_grad(set_to_none=True)
    accumulate_gradients(model, iter(batches), len(batches))
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def distance(found: Tensor, exact: Tensor) -> float:
    """The length of the difference over the length of `exact`."""
    return float((found - exact).norm() / exact.norm())


def measure_rounding(setting: Setting, seed: int, device: torch.device) -> dict[str, float]:
    """Bytes of table and embedding, and the error of logits near the start and far behind."""
    plain = replace(setting, dtype="float32", embedding_dtype="float32")
    length = 8 * setting.sequence_len
    models = [build(one, seed, device) for one in (plain, replace(plain, table_dtype="float32"))]
    torch.manual_seed(seed)
    filled = {name: 0.05 * torch.randn_like(p) for name, p in models[0].named_parameters() if not p.any()}
    for model in models:
        for name, value in filled.items():
            model.get_parameter(name).data.copy_(value)
    ids = torch.randint(setting.vocab_size, (1, length), device=device)
    with torch.no_grad():
        error = (models[0](ids) - models[1](ids)).abs().mean(dim=-1)[0]
    part = max(1, length // 32)
    model = build(setting, seed, device)
    return {
        "embedding, bytes": model.transformer.wte.weight.nbytes,
        "tables, bytes": model.cos.nbytes + model.sin.nbytes,
        "logit error, first T": float(error[: setting.sequence_len].mean()),
        "logit error, at 8 T": float(error[-part:].mean()),
    }


PROCEDURES: dict[str, Callable[[Setting, int, torch.device], dict[str, float]]] = {
    "hold the tables": hold_tables,
    "compare accumulation": compare_accumulation,
    "measure rounding": measure_rounding,
}
