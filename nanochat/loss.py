"""Cross-entropy of softcapped logits, computed from hidden states without holding all logits at once."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

SMALLEST_CHUNK = 2**24  # logits: 64 MB in float32
MOST_CHUNKS = 8


def rows_per_chunk(n_rows: int, vocab_size: int) -> int:
    """Positions whose logits are held together: 2^24 logits' worth, or an eighth of all if that is more."""
    return max(1, SMALLEST_CHUNK // vocab_size, -(-n_rows // MOST_CHUNKS))


def chunk_nll(x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Negative log-likelihood in nats of each target (N,), float32, 0 where the target is -1; x is (N, C)."""
    logits = softcap * torch.tanh((x @ weight.t()).float() / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def chunk_loss_and_dlogits(logits: Tensor, targets: Tensor, softcap: float) -> tuple[Tensor, Tensor]:
    """Summed loss of one chunk (float32 scalar) and its gradient by the raw logits (N, V), in their dtype."""
    squashed = torch.tanh(logits.float() / softcap)
    capped = softcap * squashed
    top = capped.amax(dim=-1, keepdim=True)
    weights = torch.exp(capped - top)
    total = weights.sum(dim=-1, keepdim=True)
    asked = (targets != -1).unsqueeze(-1)
    index = targets.clamp(min=0).unsqueeze(-1)
    nll = (top + total.log() - capped.gather(-1, index)).masked_fill(~asked, 0.0)
    is_target = torch.arange(logits.size(-1), device=logits.device) == index
    dlogits = (weights / total - is_target.float()) * (1 - squashed * squashed) * asked
    return nll.sum(), dlogits.to(logits.dtype)


_kernel = chunk_loss_and_dlogits


def compile_kernel() -> None:
    """Fuse the kernel's passes over the logits into few, for every later loss of this process."""
    global _kernel
    _kernel = torch.compile(chunk_loss_and_dlogits, dynamic=False)


class _SummedLoss(torch.autograd.Function):
    """Loss and both gradients in one walk over the chunks; backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, dtype: torch.dtype
    ) -> Tensor:
        rows = rows_per_chunk(x.size(0), weight.size(0))
        narrow_weight = weight.to(dtype)
        losses: list[Tensor] = []
        dx: list[Tensor] = []
        dweight: Tensor | None = None
        chunks = zip(torch.split(x.to(dtype), rows), torch.split(targets, rows), strict=True)
        for x_chunk, targets_chunk in chunks:
            loss, dlogits = _kernel(x_chunk @ narrow_weight.t(), targets_chunk, softcap)
            losses.append(loss)
            dx.append((dlogits @ narrow_weight).to(x.dtype))
            contribution = (dlogits.t() @ x_chunk).to(torch.promote_types(weight.dtype, torch.float32))
            dweight = contribution if dweight is None else dweight.add_(contribution)
        assert dweight is not None
        ctx.save_for_backward(torch.cat(dx), dweight.to(weight.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        dx, dweight = ctx.saved_tensors
        return dx * scale.to(dx.dtype), dweight * scale.to(dweight.dtype), None, None, None


def softcapped_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy, in nats, of the logits softcap · tanh(x weightᵀ / softcap) against targets.

    x (N, C), weight (V, C), targets (N,) int64 with -1 where nothing is asked. reduction is "mean" (over the
    asked positions), "sum", or "none" (shape (N,)). Returns float32. Raises ValueError for another reduction.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    with torch.autocast(device, enabled=False):
        if reduction == "none":
            rows = rows_per_chunk(x.size(0), weight.size(0))
            narrow_weight = weight.to(dtype)
            chunks = zip(torch.split(x.to(dtype), rows), torch.split(targets, rows), strict=True)
            score = partial(checkpoint, chunk_nll, use_reentrant=False)
            return torch.cat([score(x_chunk, narrow_weight, t, softcap) for x_chunk, t in chunks])
        if reduction not in ("mean", "sum"):
            raise ValueError(f'loss: reduction is {reduction!r}; use "mean", "sum" or "none"')
        total: Tensor = _SummedLoss.apply(x, weight, targets, softcap, dtype)  # type: ignore[no-untyped-call]
        return total / (targets != -1).sum() if reduction == "mean" else total
