"""One optimizer step, its schedule, how a model and its optimizers are built: the same for all programs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from nanochat.common import Ranks
from nanochat.muon import Muon
from nanochat.normans_gpt import GPT
from nanochat.parallel import whole, with_exchanges

Batch = tuple[Tensor, Tensor]  # inputs and targets, (B, T) int64; a target of -1 is not learned
Autocast = Callable[[], AbstractContextManager[Any]]
Part = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Schedule:
    """The factor on every learning rate: a rise, a plateau and a fall, each a part of the run."""

    warmup: float = 0.0  # part of the run in which the factor rises
    warmdown: float = 0.0  # part of the run in which it falls
    final: float = 0.0  # where it falls to

    def multiplier(self, done: float, one_step: float) -> float:
        """The factor when the fraction `done` of the run is over; one_step is 1/S."""
        if done < self.warmup:
            return min(1.0, (done + one_step) / self.warmup)
        if done <= 1 - self.warmdown:
            return 1.0
        left = max(0.0, 1 - done) / self.warmdown
        return left + (1 - left) * self.final


def muon_momentum(step: int) -> float:
    """Muon's momentum: 0.85 at step 0, rising linearly to 0.95 at step 300."""
    return 0.85 + 0.10 * min(step / 300, 1.0)


@dataclass(frozen=True)
class Rates:
    """What the optimizers are built with."""

    matrix: float = 0.02  # learning rate of the blocks' matrices (Muon)
    embedding: float = 0.2  # of the embedding (AdamW)
    unembedding: float = 0.004  # of lm_head (AdamW)
    weight_decay: float = 0.0  # of embedding and lm_head
    muon_dtype: str = "auto"  # in which Muon orthogonalizes: bfloat16, float32, or auto for the fastest


def empty_model(chosen: ModuleType, shape: dict[str, int], device: torch.device) -> GPT:
    """The chosen module's GPT on the device, its memory not written; shape: the arguments of GPTConfig."""
    with torch.device("meta"):
        model: GPT = chosen.GPT(chosen.GPTConfig(**shape))
    model.to_empty(device=device)
    return model


def build_model(
    chosen: ModuleType, shape: dict[str, int], device: torch.device, seed: int, dtype: torch.dtype | None
) -> GPT:
    """The chosen module's GPT with the starting weights of a seed; the random generators go on from there.

    dtype is the format of matrix products under autocast, None for none.
    """
    torch.manual_seed(seed)
    model = empty_model(chosen, shape, device)
    model.init_weights()
    fit_format(model, dtype)
    return model


def fit_format(model: nn.Module, dtype: torch.dtype | None) -> None:
    """Without autocast (None), bring all weights to float32: nothing would convert one beside another."""
    for parameter in model.parameters() if dtype is None else ():
        parameter.data = parameter.data.float()


def build_optimizers(model: GPT, rates: Rates) -> list[torch.optim.Optimizer]:
    """The model's optimizers, at these rates."""
    optimizers = model.setup_optimizers(
        unembedding_lr=rates.unembedding,
        embedding_lr=rates.embedding,
        matrix_lr=rates.matrix,
        weight_decay=rates.weight_decay,
    )
    for optimizer in optimizers:
        if isinstance(optimizer, Muon) and rates.muon_dtype != "auto":
            optimizer.ns_dtype = getattr(torch, rates.muon_dtype)
    return optimizers


def accumulate_gradients(
    model: nn.Module,
    batches: Iterator[Batch],
    count: int,
    autocast: Autocast = nullcontext,
    part: Part = nullcontext,
) -> Tensor:
    """Add to every `.grad` the gradient of the mean loss over `count` batches; returns that mean, detached.

    model(inputs, targets) is the mean loss of one batch. One pass over all of them would give the same if
    every batch has the same number of targets. `part` is entered around each "forward" and "backward".
    """
    total = torch.zeros((), device=next(model.parameters()).device)
    for _ in range(count):
        inputs, targets = next(batches)
        with part("forward"), autocast():
            loss = model(inputs, targets)
        with part("backward"):
            (loss / count).backward()
        total += loss.detach() / count
    return total


@dataclass(frozen=True)
class Outcome:
    """What one step came to."""

    loss: float  # mean over the batch and all ranks, in nats per token, before the update
    norm: float  # length of the gradient before clipping
    rate: float  # the factor on every learning rate
    finite: bool  # whether loss and gradient were numbers on all ranks; if not, nothing was changed


@dataclass
class Stepper:
    """Takes optimizer steps with a model; the only place in this book that does."""

    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    schedule: Schedule | None = None  # None: rates and momentum stay as they are
    clip: float = 1.0  # longest gradient, in L2 norm; 0: any
    autocast: Autocast = nullcontext  # around each forward pass
    ranks: Ranks = field(default_factory=Ranks)
    part: Part = nullcontext  # entered around each part of a step with its name, for a clock
    whole: bool = True  # whether the weights are those of one step; not while they are being moved

    def step(
        self,
        batches: Iterator[Batch],
        passes: int = 1,
        step: int = 0,
        done: float = 0.0,
        one_step: float = 1.0,
    ) -> Outcome:
        """Take step number `step` on the next `passes` batches; `done` and `one_step` are the schedule's."""
        batches = with_exchanges(self.model, batches, passes)
        loss = accumulate_gradients(self.model, batches, passes, self.autocast, self.part)
        with self.part("clipping"):
            length = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip or math.inf)
        norm = float(whole(length))
        mean, finite = self.agree(loss, math.isfinite(norm))
        rate = self.schedule.multiplier(done, one_step) if self.schedule else 1.0
        if finite:
            self.update(rate, step)
        self.model.zero_grad(set_to_none=True)
        return Outcome(mean, norm, rate, finite)

    def agree(self, loss: Tensor, finite: bool) -> tuple[float, bool]:
        """The mean loss over all ranks, and whether it and what each rank found are finite."""
        if self.ranks.world_size == 1:
            return float(loss), finite and math.isfinite(float(loss))
        both = torch.stack([loss, torch.full_like(loss, 0.0 if finite else 1.0)])
        torch.distributed.all_reduce(both)
        mean = float(both[0] / self.ranks.world_size)
        return mean, math.isfinite(mean) and float(both[1]) == 0

    def update(self, rate: float, step: int) -> None:
        """Move the weights along the gradients that are there."""
        self.whole = False
        for optimizer in self.optimizers:
            for group in optimizer.param_groups if self.schedule else ():
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rate
                if "momentum" in group:
                    group["momentum"] = muon_momentum(step)
            with self.part(type(optimizer).__name__):
                optimizer.step()
        self.whole = True
