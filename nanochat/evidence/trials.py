"""Train one setting with one seed on text of its own, and take its loss on every speech that is held back."""

from __future__ import annotations

import functools
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nanochat.engine import KVCache
from nanochat.evidence.settings import Setting
from nanochat.evidence.variations import VariedGPT, build, patched
from nanochat.loss_eval import evaluate_bpb
from nanochat.step import Batch, Rates, Schedule, Stepper, build_optimizers

Outcome: TypeAlias = dict[str, Any]  # what JSON can hold
WINDOW = 1024  # sequences that are mixed with one another


@dataclass(frozen=True)
class Text:
    """A corpus as tokens: each speech one array, which begins with the token that begins a document."""

    train: tuple[NDArray[np.int32], ...]
    held_back: tuple[NDArray[np.int32], ...]
    token_bytes: Tensor  # (V,), bytes of each token; 0 for one that is not counted
    fingerprint: str  # of all three


def train(setting: Setting, seed: int, text: Text, device: torch.device) -> Outcome:
    """Bits per byte of each speech held back, after training; None for each if the run diverged.

    The seed decides the first weights and the training text. "seconds" is the time of the training steps.
    """
    model = build(setting, seed, device)
    rates = Rates(setting.matrix_lr, setting.embedding_lr, setting.unembedding_lr, setting.weight_decay)
    context = functools.partial(autocast, setting, device)
    schedule = Schedule(setting.warmup_ratio, setting.warmdown_ratio)
    stepper = Stepper(model, build_optimizers(model, rates), schedule, setting.grad_clip, context)
    batches = drawn(text, setting, seed, device)
    start, finite = clock(device), True
    for step in range(setting.steps):
        one = stepper.step(batches, setting.passes, step, step / setting.steps, 1 / setting.steps)
        finite = finite and one.finite
        if not finite:
            break
    seconds = clock(device) - start
    with context():
        losses = losses_by_speech(model, text, setting, device) if finite else []
        seen = look_inside(model, rows_of(text.held_back[0], setting.sequence_len, device)[0][:2])
    finite = finite and all(math.isfinite(loss) for loss in losses)
    return {
        "losses": losses if finite else None,
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seen": {name: value if math.isfinite(value) else None for name, value in seen.items()},
    }


def drawn(text: Text, setting: Setting, seed: int, device: torch.device) -> Iterator[Batch]:
    """Batches (B, T) of speeches that the seed draws, in its order, cut into sequences and mixed in windows.

    A longer run of the same seed reads the same speeches and then more of them. When all have been read,
    they are drawn again in another order.
    """
    length, size = setting.sequence_len, setting.batch_size
    wanted = setting.steps * setting.passes * size
    speeches: list[NDArray[np.int32]] = []
    order = np.random.default_rng((seed, 0))
    while sum(len(one) for one in speeches) <= wanted * length:
        speeches += [text.train[number] for number in order.permutation(len(text.train))]
    stream = np.concatenate(speeches)
    for first in range(0, wanted, WINDOW):
        count = min(WINDOW, wanted - first)
        mixed = first + np.random.default_rng((seed, 1 + first // WINDOW)).permutation(count)
        for start in range(0, count, size):
            chosen = mixed[start : start + size, None] * length + np.arange(length + 1)
            rows = torch.from_numpy(stream[chosen]).to(device).long()
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()


def rows_of(speech: NDArray[np.int32], length: int, device: torch.device) -> Batch:
    """A speech as inputs and targets (rows, T): each token but the first is a target once; -1 at the end."""
    count = -(-(len(speech) - 1) // length)
    padded = torch.full((count * length + 1,), -1, dtype=torch.long)
    padded[: len(speech)] = torch.from_numpy(speech).long()
    rows = padded.unfold(0, length + 1, length).to(device)
    return rows[:, :-1].clamp(min=0).contiguous(), rows[:, 1:].contiguous()


def losses_by_speech(model: VariedGPT, text: Text, setting: Setting, device: torch.device) -> list[float]:
    """Bits per byte of each speech held back, all of its tokens but the first."""
    at_once, found = 4 * setting.batch_size, []
    for speech in text.held_back:
        inputs, targets = rows_of(speech, setting.sequence_len, device)
        batches = zip(torch.split(inputs, at_once), torch.split(targets, at_once), strict=True)
        found.append(round(evaluate_bpb(model, batches, 0, text.token_bytes), 7))
    return found


@torch.inference_mode()
def time_decoding(settings: tuple[Setting, ...], seed: int, device: torch.device) -> Outcome:
    """Milliseconds of 16 sequences' next tokens behind 8 T positions, at 4 times the width, in turns."""
    works = []
    for setting in settings:
        model = build(replace(setting, n_embd=4 * setting.n_embd), seed, device)
        config, held = model.config, 8 * setting.sequence_len
        cache = KVCache(16, config.n_kv_head, held + 1, config.head_dim, config.n_layer)
        kind = getattr(torch, setting.dtype)
        keys = torch.randn(16, config.n_kv_head, held, config.head_dim, device=device, dtype=kind)
        for layer in range(config.n_layer):
            cache.insert_kv(layer, keys, keys)
        works.append((model, cache))
    times: list[list[float]] = [[] for _ in works]
    ids = torch.zeros(16, 1, dtype=torch.long, device=device)
    for turn in range(22):
        for number, (model, cache) in enumerate(works):
            start = clock(device)
            with autocast(settings[number], device):
                model(ids, kv_cache=cache, last_only=True)
            seconds = clock(device) - start
            cache.pos -= 1
            if turn > 1:  # the first two pay for memory
                times[number].append(seconds)
    return {"decoding, ms": [1000 * statistics.median(taken) for taken in times]}


def clock(device: torch.device) -> float:
    """Seconds: of this process's computing on a CPU, which others hardly lengthen; of the wall elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.process_time() if device.type == "cpu" else time.perf_counter()


def autocast(setting: Setting, device: torch.device) -> Any:
    """The context of forward passes."""
    return torch.autocast(device.type, torch.bfloat16) if setting.dtype == "bfloat16" else nullcontext()


@torch.no_grad()
def largest_score(model: VariedGPT, inputs: Tensor) -> float:
    """The largest |q · k| / √D of all layers, heads and pairs of positions."""
    attend, largest = F.scaled_dot_product_attention, [0.0]

    def spy(q: Tensor, k: Tensor, v: Tensor, **rest: Any) -> Tensor:
        shared = k.repeat_interleave(q.size(1) // k.size(1), dim=1)
        largest.append(float((q.float() @ shared.float().mT).abs().max()) / q.size(-1) ** 0.5)
        return attend(q, k, v, **rest)

    with patched(F, scaled_dot_product_attention=spy):
        model(inputs, last_only=True)
    return max(largest)


@torch.no_grad()
def look_inside(model: VariedGPT, inputs: Tensor) -> dict[str, float]:
    """What claims are about: scores, logits before the cap, zeros in the MLP, sizes of embedding rows."""
    zeros: list[float] = []

    def count(_: Any, inputs: tuple[Tensor]) -> None:
        zeros.append(float((inputs[0] == 0).float().mean()))

    hooks = [block.mlp.c_proj.register_forward_pre_hook(count) for block in model.blocks()]
    setting, model.setting = model.setting, replace(model.setting, softcap=0.0)
    raw = model(inputs)
    model.setting = setting
    for hook in hooks:
        hook.remove()
    rows = model.transformer.wte.weight.float().square().mean(dim=1).sqrt().sort().values
    low, high = rows[len(rows) // 20], rows[-1 - len(rows) // 20]
    return {
        "largest score": largest_score(model, inputs),
        "largest logit": float(raw.abs().max()),
        "zeros in the MLP": sum(zeros) / len(zeros),
        "row size, 95 % to 5 %": float(high / low),
    }
