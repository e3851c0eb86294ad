"""What experiments run: for one setting, or for several in turns. Each returns named numbers and curves."""

from __future__ import annotations

import io
import statistics
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn as nn
from torch import Tensor

from nanochat.engine import KVCache
from nanochat.evidence.settings import Setting
from nanochat.evidence.trials import Outcome, Text, autocast, clock, train
from nanochat.evidence.variations import VariedGPT, build
from nanochat.normans_gpt import apply_rotary_emb
from nanochat.step import Stepper, accumulate_gradients


@torch.inference_mode()
def measure_decoding(settings: dict[str, Setting], seed: int, device: torch.device) -> dict[str, Outcome]:
    """Cache of 16 sequences with 8 T positions, and the time of their next tokens; all in turns, medians."""
    works: dict[str, tuple[VariedGPT, KVCache]] = {}
    for name, setting in settings.items():
        model = build(replace(setting, n_embd=4 * setting.n_embd), seed, device)
        config, held = model.config, 8 * setting.sequence_len
        cache = KVCache(16, config.n_kv_head, held + 1, config.head_dim, config.n_layer)
        kind = getattr(torch, setting.dtype)
        keys = torch.randn(16, config.n_kv_head, held, config.head_dim, device=device, dtype=kind)
        for layer in range(config.n_layer):
            cache.insert_kv(layer, keys, keys)
        works[name] = model, cache
    times: dict[str, list[float]] = {name: [] for name in works}
    ids = torch.zeros(16, 1, dtype=torch.long, device=device)
    for turn in range(8):
        for name, (model, cache) in works.items():
            start = clock(device)
            with autocast(settings[name], device):
                model(ids, kv_cache=cache, last_only=True)
            seconds = clock(device) - start
            cache.pos -= 1
            if turn > 1:
                times[name].append(seconds)
    outcomes: dict[str, Outcome] = {}
    for name, (_, cache) in works.items():
        assert cache.store is not None
        numbers = {
            "cache, MB": cache.store.nbytes / 1e6,
            "decoding, ms": 1000 * statistics.median(times[name]),
        }
        outcomes[name] = {"numbers": numbers, "curves": {}}
    return outcomes


def measure_steps(settings: dict[str, Setting], seed: int, device: torch.device) -> dict[str, Outcome]:
    """Milliseconds of a training step of each variation, all in turns: the median of 9."""
    works: dict[str, Callable[[], object]] = {}
    for name, setting in settings.items():
        works[name] = one_step(setting, seed, device)
    times: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(10):
        for name, work in works.items():
            start = clock(device)
            work()
            seconds = clock(device) - start
            if turn:  # the first one pays for memory
                times[name].append(seconds)
    return {
        name: {"numbers": {"step, ms": round(1000 * statistics.median(taken), 2)}, "curves": {}}
        for name, taken in times.items()
    }


def one_step(setting: Setting, seed: int, device: torch.device) -> Callable[[], object]:
    """A function that trains one step, always on the same batch."""
    model = build(setting, seed, device)
    stepper = Stepper(model, model.setup_optimizers(), autocast=lambda: autocast(setting, device))
    batch = next(Text(replace(setting, data="random"), device).batches("train", seed))
    return lambda: stepper.step(iter([batch]))


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


def hold_tables(setting: Setting, seed: int, device: torch.device) -> Outcome:
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
    batches = Text(setting, device).batches("train", seed)
    stepper = Stepper(model, [optimizer], clip=0)
    for _ in range(min(20, setting.steps)):
        stepper.step(batches)
    cos, sin = model.cos.detach().float(), model.sin.detach().float()
    numbers = {
        "tensors in a checkpoint": len(model.state_dict()),
        "checkpoint, bytes": len(file.getvalue()),
        "numbers the optimizer gets": sum(p.numel() for p in model.parameters()),
        "table moved by": float((cos - before.float()).abs().max()),
        "length error": float((cos.square() + sin.square() - 1).abs().max()),
        "loads at 2 T": loads,
        "follows .to()": int(model.to("meta").cos.is_meta),
    }
    return {"numbers": numbers, "curves": {}}


def compare_accumulation(setting: Setting, seed: int, device: torch.device) -> Outcome:
    """Distances of gradients, relative to the exact one's length: one batch and several passes, by format."""
    model = build(replace(setting, embedding_dtype="float32"), seed, device)  # also without autocast
    torch.manual_seed(seed)
    for p in model.parameters():
        if not p.any():
            p.data.normal_(std=0.05)  # silent branches and a silent head would have nothing to compare
    batches = Text(setting, device).batches("train", seed)
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
    numbers = {
        "float64": distance(gradient(model, passes), exact),
        "float32": distance(single["passes"], single["once"]),
        "bf16, one batch": errors["once"],
        "bf16, passes": errors["passes"],
        "bf16, passes over one batch": errors["passes"] / errors["once"],
        "not divided": float(undivided.norm() / single["once"].norm()),
        "unequal passes": unequal,
    }
    return {"numbers": numbers, "curves": {}}


def gradient(model: VariedGPT, batches: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The gradient of the mean loss over the batches, all of it as one float64 vector."""
    model.zero_grad(set_to_none=True)
    accumulate_gradients(model, iter(batches), len(batches))
    return torch.cat([p.grad.double().flatten() for p in model.parameters() if p.grad is not None])


def distance(found: Tensor, exact: Tensor) -> float:
    """The length of the difference over the length of `exact`."""
    return float((found - exact).norm() / exact.norm())


def measure_rounding(setting: Setting, seed: int, device: torch.device) -> Outcome:
    """Bytes of table and embedding, steps that rounding swallowed, and the error of logits by position."""
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
    curve = [[(i + 1) * part, float(piece.mean())] for i, piece in enumerate(error.split(part))]
    model = build(setting, seed, device)
    numbers = {
        "embedding, bytes": model.transformer.wte.weight.nbytes,
        "tables, bytes": model.cos.nbytes + model.sin.nbytes,
        "weights never moved": swallowed(model, setting, seed, device),
        "logit error, first T": float(error[: setting.sequence_len].mean()),
        "logit error, at 8 T": float(error[-part:].mean()),
        "error, far over near": float(
            error[-part:].mean() / error[: setting.sequence_len].mean().clamp(min=1e-12)
        ),
        "rotation, relative": rotation_time(model, device),
    }
    return {"numbers": numbers, "curves": {"logit error": curve}}


def swallowed(model: VariedGPT, setting: Setting, seed: int, device: torch.device) -> float:
    """Train 20 steps; the share of the embedding's weights, in rows that were read, that did not move."""
    before, read = model.transformer.wte.weight.detach().clone(), set[int]()
    optimizers = model.setup_optimizers(setting.unembedding_lr, setting.embedding_lr, setting.matrix_lr)
    stepper = Stepper(model, optimizers, clip=0, autocast=lambda: autocast(setting, device))
    batches = Text(setting, device).batches("train", seed)
    for _ in range(min(20, setting.steps)):
        batch = next(batches)
        read |= set(batch[0].flatten().tolist())
        stepper.step(iter([batch]))
    rows = sorted(read)
    return float((model.transformer.wte.weight.detach()[rows] == before[rows]).float().mean())


def rotation_time(model: VariedGPT, device: torch.device) -> float:
    """The time of rotating bf16 queries by the model's tables, over that with float32 tables."""
    length, heads = model.cos.size(1) // 2, model.config.n_head
    q = torch.randn(8, length, heads, model.config.head_dim, device=device).bfloat16()
    own = model.cos[:, :length], model.sin[:, :length]
    wide = own[0].float(), own[1].float()
    times: dict[str, list[float]] = {"own": [], "wide": []}
    for _ in range(9):
        for name, (cos, sin) in (("own", own), ("wide", wide)):
            start = clock(device)
            apply_rotary_emb(q, cos, sin)
            times[name].append(clock(device) - start)
    return statistics.median(times["own"]) / statistics.median(times["wide"])


PROCEDURES: dict[str, Callable[[Setting, int, torch.device], Outcome]] = {
    "train": train,
    "hold the tables": hold_tables,
    "compare accumulation": compare_accumulation,
    "measure rounding": measure_rounding,
}
TOGETHER: dict[str, Callable[[dict[str, Setting], int, torch.device], dict[str, Outcome]]] = {
    "measure decoding": measure_decoding,
    "measure a step": measure_steps,
}
