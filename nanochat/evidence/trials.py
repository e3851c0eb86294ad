"""Train one setting with one seed, and look into the model."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.common import Ranks
from nanochat.dataloader import TokenLoader
from nanochat.dataset import prepare_corpus
from nanochat.evidence.settings import Setting
from nanochat.evidence.variations import VariedGPT, build, patched
from nanochat.loss_eval import evaluate_bpb
from nanochat.step import Rates, Schedule, Stepper, build_optimizers
from nanochat.tokenizer import Tokenizer, prepare_tokenizer

Outcome: TypeAlias = dict[str, Any]  # "numbers": name to value or None; "curves": name to [[x, y], …]
POINTS = 30  # of a curve


class Text:
    """Batches of one corpus; "random" is made up on the spot, for trials that only have to run."""

    def __init__(self, setting: Setting, device: torch.device) -> None:
        """Raises UserError if the corpus cannot be had."""
        self.setting, self.device = setting, device
        self.tokenizer: Tokenizer | None = None
        self.token_bytes = torch.ones(setting.vocab_size, dtype=torch.int64)
        if setting.data != "random":
            prepare_corpus(setting.data)
            self.tokenizer = prepare_tokenizer(setting.data, setting.vocab_size)
            self.token_bytes = self.tokenizer.token_bytes()

    def batches(self, split: str, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets (B, T), the same ones for the same seed."""
        size, length = self.setting.batch_size, self.setting.sequence_len
        if self.tokenizer is not None:
            loader = TokenLoader(
                self.setting.data,
                split,
                self.tokenizer,
                size,
                length,
                Ranks(),
                device=self.device,
                seed=seed,
            )
            try:
                yield from loader
            finally:
                loader.close()
            return
        rng = torch.Generator().manual_seed(seed)
        while True:
            steps = torch.randint(1, 4, (size, length + 1), generator=rng).cumsum(1)
            rows = (steps % self.setting.vocab_size).to(self.device)
            yield rows[:, :-1].contiguous(), rows[:, 1:].contiguous()

    def fingerprint(self) -> str:
        """A short checksum of the first training and validation tokens: another text gives another one."""
        seen = hashlib.sha256()
        for split in ("train", "val"):
            batches = self.batches(split, seed=0)
            for _ in range(2):
                seen.update(next(batches)[0].cpu().numpy().tobytes())
        return seen.hexdigest()[:16]


def train(setting: Setting, seed: int, device: torch.device) -> Outcome:
    """Train, then evaluate on the validation text. A run that ends in no number has diverged: bpb is None."""
    text = Text(setting, device)
    model = build(setting, seed, device)
    rates = Rates(setting.matrix_lr, setting.embedding_lr, setting.unembedding_lr, setting.weight_decay)
    stepper = Stepper(
        model,
        build_optimizers(model, rates),
        Schedule(setting.warmup_ratio, setting.warmdown_ratio),
        setting.grad_clip,
        lambda: autocast(setting, device),
    )
    every = max(1, setting.steps // POINTS)
    losses: list[float] = []
    curves: dict[str, list[list[float]]] = {"loss": [], "largest score": []}
    batches, tokens = text.batches("train", seed), setting.passes * setting.batch_size * setting.sequence_len
    probe = next(text.batches("val", 0))[0][:2]
    seconds = 0.0
    for step in range(setting.steps):
        start = clock(device)
        outcome = stepper.step(batches, setting.passes, step, step / setting.steps, 1 / setting.steps)
        losses.append(outcome.loss)
        seconds += clock(device) - start
        if not outcome.finite:
            break
        if (step + 1) % every == 0:
            done = (step + 1) * tokens
            curves["loss"].append([done, round(sum(losses[-every:]) / every, 4)])
            with autocast(setting, device):
                curves["largest score"].append([done, round(largest_score(model, probe), 3)])
    wanted = max(1, setting.val_tokens // (setting.batch_size * setting.sequence_len))
    with autocast(setting, device):
        bpb = evaluate_bpb(model, text.batches("val", 0), wanted, text.token_bytes)
        found = look_inside(model, probe)
    numbers: dict[str, float | None] = {
        "bits per byte": bpb if math.isfinite(bpb) else None,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(seconds, 3),
        **{name: value if math.isfinite(value) else None for name, value in found.items()},
    }
    return {"numbers": numbers, "curves": curves}


def clock(device: torch.device) -> float:
    """Seconds: of this process's computing on a CPU, which others cannot lengthen; of the wall elsewhere."""
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
