"""Evaluation in bits per byte, a loss that models with different tokenizers can be compared by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch

from nanochat.common import Ranks, UserError


def evaluate_bpb(
    model: Callable[..., torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    token_bytes: torch.Tensor,
    ranks: Ranks | None = None,
) -> float:
    """Bits per byte of `model` on `steps` batches of this rank, together with the other ranks' batches.

    `model(inputs, targets, loss_reduction="none")` gives the loss of each target in nats, (B·T,).
    `batches` gives inputs and targets, (B, T); `steps` 0 takes all of them. `token_bytes` is (V,), 0 for
    tokens that do not count; targets below 0 do not count either. All ranks must call this together.
    Raises UserError if there are fewer targets than `steps` full batches have, or no byte among them.
    """
    sums = losses_and_bytes(model, batches, steps, token_bytes)
    return bits_per_byte(sums, ranks or Ranks(), token_bytes.device)


@torch.no_grad()
def losses_and_bytes(
    model: Callable[..., torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    token_bytes: torch.Tensor,
) -> list[float]:
    """This rank's part of evaluate_bpb: nats, bytes, targets seen and targets wanted."""
    nats = size = seen = wanted = 0.0
    for step, (inputs, targets) in enumerate(batches, start=1):
        losses = model(inputs, targets, loss_reduction="none").view(-1)
        flat = targets.reshape(-1)
        token_bytes = token_bytes.to(flat.device)
        lengths = torch.where(flat >= 0, token_bytes[flat.clamp(min=0)], 0)
        nats += torch.where(lengths > 0, losses.float(), 0.0).sum().item()
        size += lengths.sum().item()
        seen += (flat >= 0).sum().item()
        wanted = steps * flat.numel()
        if step == steps:
            break
    return [nats, size, seen, wanted]


def bits_per_byte(sums: list[float], ranks: Ranks, device: torch.device) -> float:
    """The score that all ranks' parts give. All ranks must call this together; raises as evaluate_bpb."""
    if ranks.world_size > 1:
        together = torch.tensor(sums, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(together)
        sums = together.tolist()
    nats, size, seen, wanted = sums
    if seen < wanted or not size:
        raise UserError(
            f"the evaluation holds {seen:,.0f} tokens ({size:,.0f} bytes), wanted are {wanted:,.0f}: "
            "lower --eval_tokens, or take a larger corpus"
        )
    return nats / (math.log(2) * size)
