"""Cross-entropy of softcapped logits, computed from hidden states without holding all logits at once."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

SMALLEST_CHUNK = 2**26  # bytes of raw logits
MOST_CHUNKS = 8


def rows_per_chunk(n_rows: int, vocab_size: int, itemsize: int) -> int:
    """Positions whose logits are held together: 2^26 bytes' worth, or an eighth of all if that is more.

    itemsize is the size of one raw logit in bytes.
    """
    return max(1, SMALLEST_CHUNK // (vocab_size * itemsize), -(-n_rows // MOST_CHUNKS))


def cut(x: Tensor, targets: Tensor, vocab_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of x (R, C) with their targets (R,), a chunk at a time; views, not copies."""
    rows = rows_per_chunk(x.size(0), vocab_size, x.itemsize)
    return zip(torch.split(x, rows), torch.split(targets, rows), strict=True)


def widen(x: Tensor) -> Tensor:
    """x in float32, or float64 where it is that already."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def chunk_nll(x: Tensor, weight: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Negative log-likelihood in nats of each target (R,), 0 where the target is -1; x is (R, C)."""
    logits = softcap * torch.tanh(widen(x @ weight.t()) / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="none")


def differentiate_tile(logits: Tensor, targets: Tensor, softcap: float) -> Tensor:
    """Summed loss of these rows, a wide scalar; its gradient by the raw logits (R, V) takes their place."""
    asked = (targets != -1).unsqueeze(-1)
    target = targets.unsqueeze(-1).masked_fill(~asked, 0)  # any index will do where nothing is asked
    squashed = (widen(logits) / softcap).tanh_()
    capped = softcap * squashed
    reached = capped.gather(-1, target)
    top = capped.amax(dim=-1, keepdim=True)
    weights = capped.sub_(top).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    loss = ((top + total.log() - reached) * asked).sum()
    is_target = torch.arange(logits.size(-1), device=logits.device) == target
    dlogits = weights.div_(total).add_(is_target, alpha=-1)
    slope = squashed.square_().neg_().add_(1)
    logits.copy_(dlogits.mul_(slope).mul_(asked))
    return loss


_kernel = differentiate_tile


def compile_kernel() -> None:
    """Fuse the kernel's passes over the logits into few, for every later loss of this process."""
    global _kernel
    _kernel = torch.compile(differentiate_tile, dynamic=False, options={"cpp.use_decompose_tanh": True})


SMALLEST_TILE = 2**24  # logits: 67 MB in float32
MOST_TILES = 16


def rows_per_tile(chunk_rows: int, vocab_size: int) -> int:
    """Positions differentiated together: 2^24 logits' worth, or a sixteenth of the chunk if that is more."""
    return max(1, SMALLEST_TILE // vocab_size, -(-chunk_rows // MOST_TILES))


def differentiate(logits: Tensor, targets: Tensor, softcap: float) -> list[Tensor]:
    """The summed losses of a chunk's tiles; its raw logits (R, V) become their gradient."""
    rows = rows_per_tile(*logits.shape)
    tiles = zip(torch.split(logits, rows), torch.split(targets, rows), strict=True)
    return [_kernel(tile, tile_targets, softcap) for tile, tile_targets in tiles]


def score(x: Tensor, weight: Tensor, targets: Tensor, softcap: float, dtype: torch.dtype) -> Tensor:
    """The loss of each position (R,), in nats; a backward pass computes each chunk's logits again."""
    narrow_weight = weight.to(dtype)
    nll: list[Tensor] = []
    for x_chunk, targets_chunk in cut(x.to(dtype), targets, weight.size(0)):
        arguments = x_chunk, narrow_weight, targets_chunk, softcap
        nll.append(checkpoint(chunk_nll, *arguments, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(nll)


class _SummedLoss(torch.autograd.Function):
    """Loss and both gradients in one walk over the chunks; backward only scales what forward kept."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, dtype: torch.dtype
    ) -> Tensor:
        narrow_weight = weight.to(dtype)
        losses: list[Tensor] = []
        dx: list[Tensor] = []
        dweight: Tensor | None = None
        for x_chunk, targets_chunk in cut(x.to(dtype), targets, weight.size(0)):
            logits = x_chunk @ narrow_weight.t()
            losses += differentiate(logits, targets_chunk, softcap)  # from here on, logits is their gradient
            dx.append((logits @ narrow_weight).to(x.dtype))
            part = logits.t() @ x_chunk
            del logits  # or they would live on beside the next chunk's
            dweight = widen(part) if dweight is None else dweight.add_(part)
        assert dweight is not None  # even no rows are one chunk
        ctx.save_for_backward(torch.cat(dx), dweight.to(weight.dtype))
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (scale,) = grad_outputs
        dx, dweight = ctx.saved_tensors
        return dx * scale, dweight * scale, None, None, None


def leave_out(x: Tensor, targets: Tensor, vocab_size: int) -> tuple[Tensor, Tensor]:
    """The asked rows of x (R, C) and targets (R,), in order, and others up to a multiple of a unit."""
    asked = targets != -1
    eighth = max(1, SMALLEST_TILE // vocab_size // 8)  # of a tile
    unit = eighth * -(-targets.size(0) // (8 * eighth))
    count = unit * max(1, -(-int(asked.sum()) // unit))
    if count >= targets.size(0):
        return x, targets
    chosen = asked.sort(descending=True, stable=True).indices[:count]
    return x[chosen], targets[chosen]


def softcapped_cross_entropy(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str = "mean"
) -> Tensor:
    """Cross-entropy, in nats, of the logits softcap · tanh(x weightᵀ / softcap) against targets.

    x (R, C), weight (V, C), targets (R,) int64 with -1 where nothing is asked. reduction is "mean" (over the
    asked positions; nan if there is none), "sum", or "none" (shape (R,)). Returns float32 (float64 for
    float64 inputs). Raises ValueError for another reduction or for more or fewer targets than rows, and
    IndexError or RuntimeError for a target that is neither -1 nor a token.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f'loss: reduction is {reduction!r}; use "mean", "sum" or "none"')
    if targets.shape != x.shape[:1]:
        raise ValueError(
            f"loss: {x.size(0)} rows but targets of shape {tuple(targets.shape)}; each row needs one target"
        )
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    learning = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    with torch.autocast(device, enabled=False):
        if learning and reduction != "none":
            if device == "cpu" and not torch.compiler.is_compiling():
                x, targets = leave_out(x, targets, weight.size(0))
            total: Tensor = _SummedLoss.apply(x, weight, targets, softcap, dtype)  # type: ignore[no-untyped-call]
        else:
            nll = score(x, weight, targets, softcap, dtype)
            if reduction == "none":
                return nll
            total = nll.sum()
        if reduction == "sum":
            return total
        n_asked = (targets != -1).sum()
        return (total / n_asked.clamp(min=1)).masked_fill(n_asked == 0, torch.nan)
