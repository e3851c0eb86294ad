"""What trains a GPT, to be written by you: from the table of page one to a run that goes on after a stop.

The functions come from several chapters; `make learn ROUND=2` and `python -m scripts.learn hint NAME` say
which. What raises no NotImplementedError is given: mean_loss, join, decode, resume, and the classes around
the gaps.
"""

import math
import os
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanochat.machine import fastest_format
from nanochat.sampling import COLDEST
from nanochat.step import Autocast, Batch, Part

Pair = tuple[int, int]  # two tokens that are neighbours

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's choice: small singular values grow fast


def mean_loss(table: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, a float64 without dimensions: the mean of -ln p over the pairs, (N,) each."""
    log_p = table.log_softmax(dim=-1)
    return -log_p[inputs, targets].mean()


def step(table: Tensor, inputs: Tensor, targets: Tensor, learning_rate: float) -> float:
    """Move all scores once against the gradient of the mean loss of these pairs; returns the loss before."""
    raise NotImplementedError(
        "TODO: Implement step - the loss, its gradient, one move of the table against it, and nothing left "
        "behind"
    )


def join(ids: Sequence[int], pair: Pair, new: int) -> list[int]:
    """ids with `new` in place of each occurrence of the pair, found from left to right."""
    joined: list[int] = []
    i = 0
    while i < len(ids):
        if tuple(ids[i : i + 2]) == pair:
            joined.append(new)
            i += 2
        else:
            joined.append(ids[i])
            i += 1
    return joined


def learn_merges(chunks: Iterable[bytes], count: int) -> list[Pair]:
    """The pairs to join, at most `count`, each the most frequent when it is chosen; the first makes 256.

    A pair is counted at every place within a chunk where its tokens are neighbours: aaa has aa twice. Of
    equally frequent pairs the first in the order of tuples is chosen. There are fewer merges where no pair is
    left, not even one that occurs once. Source: Sennrich et al., arXiv 1508.07909, without its sign for the
    end of a word.
    """
    raise NotImplementedError(
        "TODO: Implement learn_merges - again and again: count all pairs of neighbours, join the most "
        "frequent"
    )


def encode(chunk: bytes, merges: Sequence[Pair]) -> list[int]:
    """The tokens of a chunk of any length: its bytes, joined by the merges, first by those learned first.

    Each merge is made wherever its pair stands, from left to right.
    """
    raise NotImplementedError(
        "TODO: Implement encode - as long as two neighbours are a merge, join the one that was learned first"
    )


def decode(ids: Sequence[int], merges: Sequence[Pair]) -> str:
    """The text of tokens; bytes that are no UTF-8 become U+FFFD."""
    tokens = [bytes([byte]) for byte in range(256)]
    for first, second in merges:
        tokens.append(tokens[first] + tokens[second])
    return b"".join(tokens[token] for token in ids).decode("utf-8", errors="replace")


def batches(documents: Iterable[Sequence[int]], B: int, T: int, bos: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, (B, T) int64 each, from the tokens of all documents in a row, each after a `bos`.

    Targets are the inputs one place later. The last target of a row is the first input of the next, from
    batch to batch too. Documents are taken as they are needed. What fills no batch in the end is left out.
    """
    raise NotImplementedError(
        "TODO: Implement batches - one stream of all documents, cut into rows so that no token is lost as a "
        "target"
    )


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, a scalar, of logits (R, V) against targets (R,); -1 asks for nothing.

    Finite for any finite logits. At least one target must not be -1. Uses no loss function of PyTorch.
    """
    raise NotImplementedError(
        "TODO: Implement cross_entropy - minus the logarithm of the target's probability, averaged over the "
        "rows that have a target, for scores of any size"
    )


def loss_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of softcap · tanh(x weightᵀ / softcap), and its gradients by x and by weight.

    x (R, C), weight (V, C), targets (R,) with -1 where nothing is asked. The logits of at most `rows` rows
    are held at a time. Autograd takes no part.
    """
    raise NotImplementedError(
        "TODO: Implement loss_and_gradients - for each chunk of rows: logits, loss, the gradient by the "
        "logits, and from it the two gradients"
    )


class LossInChunks(torch.autograd.Function):
    """The loss of loss_and_gradients, with the gradients that it has computed for its backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, targets: Tensor, softcap: float, rows: int) -> Tensor:
        """The loss; both gradients are kept."""
        loss, dx, dweight = loss_and_gradients(x, weight, targets, softcap, rows)
        ctx.save_for_backward(dx, dweight)
        return loss

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients by x and weight, scaled."""
        dx, dweight = ctx.saved_tensors
        return dx * grads[0], dweight * grads[0], None, None, None


def update_adamw(
    p: Tensor,
    grad: Tensor,
    state: dict[str, Any],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
) -> None:
    """Move p, in its place, by one step of AdamW. Source: Loshchilov and Hutter, arXiv 1711.05101.

    state is empty before the first step; then it holds "step", the number of steps, and two tensors like p,
    "exp_avg" and "exp_avg_sq". eps is added to the root. Call it under torch.no_grad().
    """
    raise NotImplementedError(
        "TODO: Implement update_adamw - decay, two running means, both corrected for their beginning, one "
        "step"
    )


class AdamW(torch.optim.Optimizer):
    """update_adamw for all parameters, as PyTorch's other programs expect it."""

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fused: bool = False,
    ) -> None:
        """Groups may have settings of their own. `fused` is taken, for PyTorch's sake, and ignored."""
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Move every parameter that has a gradient. Takes no closure."""
        for group in self.param_groups:
            settings = {name: group[name] for name in ("lr", "betas", "eps", "weight_decay")}
            for p in group["params"]:
                if p.grad is not None:
                    update_adamw(p, p.grad, self.state[p], **settings)


def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Push all singular values of each matrix of g (K, rows, columns) towards 1, keeping their vectors.

    Returns g's shape in `dtype`, in which it computes; without one, in the machine's fastest format.
    """
    raise NotImplementedError(
        "TODO: Implement orthogonalize - turn what is tall, divide by the norm, apply the polynomial again "
        "and again, turn back"
    )


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for weights that are matrices. Matrices of one shape go as one batch."""

    def __init__(
        self,
        params: Any,
        lr: float = 0.02,
        momentum: float = 0.95,
        nesterov: bool = True,
        ns_steps: int = 5,
        ns_dtype: torch.dtype | None = None,
    ) -> None:
        """ns_dtype is the format of orthogonalizing, without one the machine's fastest.

        Raises ValueError for a parameter that is not a matrix.
        """
        super().__init__(params, {"lr": lr, "momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps})
        self.ns_dtype = ns_dtype  # no part of the state: a run may go on where the other format is fast
        self.orthogonalize = orthogonalize  # several processes may share this work
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(
                        f"Muon: a parameter of shape {tuple(p.shape)} is no matrix; give it to AdamW instead"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient. A closure, if given, is called first, as in torch."""
        raise NotImplementedError(
            "TODO: Implement Muon.step - for each matrix with a gradient: its momentum, orthogonalized, "
            "scaled to the shape, subtracted"
        )

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The direction to orthogonalize for p: its running mean of gradients, with Nesterov's look ahead."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer


@dataclass(frozen=True)
class Schedule:
    """The factor on every learning rate: a rise, a plateau and a fall, each a part of the run."""

    warmup: float = 0.0  # part of the run in which the factor rises
    warmdown: float = 0.0  # part of the run in which it falls
    final: float = 0.0  # where it falls to

    def multiplier(self, done: float, one_step: float) -> float:
        """The factor when the fraction `done` of the run is over; one_step is 1/S."""
        raise NotImplementedError("TODO: Implement Schedule.multiplier - a rise, a plateau and a fall")


def muon_momentum(step: int) -> float:
    """Muon's momentum: 0.85 at step 0, rising linearly to 0.95 at step 300."""
    return 0.85 + 0.10 * min(step / 300, 1.0)


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
    raise NotImplementedError(
        "TODO: Implement accumulate_gradients - add up the gradients of several batches so that they are "
        "those of the mean loss"
    )


@torch.no_grad()
def losses_and_bytes(
    model: Callable[..., torch.Tensor],
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    steps: int,
    token_bytes: torch.Tensor,
) -> list[float]:
    """This rank's part of evaluate_bpb: nats, bytes, targets seen and targets wanted."""
    raise NotImplementedError(
        "TODO: Implement losses_and_bytes - four sums over the batches, of the targets that stand for text"
    )


def sample_next(
    logits: Tensor, rngs: Sequence[random.Random], temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Choose one token for each row of logits (B, V), row i by rngs[i] alone; returns (B, 1), int64.

    Temperature divides the logits; 0 takes the likeliest token, the first of equals, and draws nothing.
    top_k keeps the k likeliest and whatever equals the last of them. Raises ValueError for a temperature
    below 0 or not finite, for top_k < 1, and for logits that are NaN.
    """
    raise NotImplementedError(
        "TODO: Implement sample_next - refuse, divide by the temperature, drop all but the k likeliest, draw "
        "one token a row with that row's generator"
    )


def likeliest(logits: Tensor) -> Tensor:
    """The first of the largest numbers of each row of logits (B, V); returns (B, 1), int64."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1, keepdim=True)
    return torch.from_numpy(logits.detach().float().numpy().argmax(axis=-1, keepdims=True))


def write_kv(store: Tensor, k: Tensor, v: Tensor, layer_idx: int, start: int) -> None:
    """Put k and v (B, H_kv, T, D) into a memory (L, 2, B, H_kv, seq_len, D), from position start on."""
    end = start + k.size(-2)
    store[layer_idx, 0, :, :, start:end] = k
    store[layer_idx, 1, :, :, start:end] = v


class KVCache:
    """Keys and values of all layers for the positions read so far. All rows are at the same position."""

    def __init__(self, batch_size: int, num_heads: int, seq_len: int, head_dim: int, num_layers: int) -> None:
        """Room for seq_len positions of batch_size sequences; num_heads counts key-value heads, H_kv.

        Takes no memory yet. Raises ValueError for a size below 1.
        """
        if min(batch_size, num_heads, seq_len, head_dim, num_layers) < 1:
            raise ValueError(
                f"KVCache: batch_size {batch_size}, num_heads {num_heads}, seq_len {seq_len}, "
                f"head_dim {head_dim}, num_layers {num_layers}: each must be at least 1"
            )
        self.batch_size = batch_size
        self.num_heads = num_heads
        self.seq_len = seq_len
        self.head_dim = head_dim
        self.num_layers = num_layers
        self.store: Tensor | None = None  # (L, 2, B, H_kv, seq_len, D); 0 is keys, 1 is values
        self.pos = 0

    def get_pos(self) -> int:
        """The number of positions stored, which is the position the next token takes."""
        return self.pos

    def insert_kv(self, layer_idx: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store one layer's newest k and v (B, H_kv, T, D); return views of all its keys and values so far.

        The position moves on when the last layer has inserted. Numbers are kept in v's dtype. Raises
        ValueError, before anything is stored, for another shape or more positions than there is room for.
        """
        raise NotImplementedError(
            "TODO: Implement KVCache.insert_kv - refuse what does not fit, store behind what is there, move "
            "on after the last layer, return all of it"
        )

    def _write(self, store: Tensor, layer_idx: int, k: Tensor, v: Tensor) -> None:
        """Put k and v into the memory, at the positions that follow."""
        write_kv(store, k, v, layer_idx, self.pos)

    def prefill(self, other: "KVCache") -> None:
        """Copy what other holds into this empty cache; a single row of other goes to every row here.

        Raises ValueError when this cache is not empty, other is, or what other holds does not fit.
        """
        if self.pos or other.store is None or not other.pos:
            raise ValueError(
                f"KVCache.prefill: other holds {other.pos} positions and this one {self.pos}; copy from a "
                "cache that has read the prompt into one that is new, or reset()"
            )
        sizes = ("num_layers", "num_heads", "head_dim")
        same = all(getattr(other, size) == getattr(self, size) for size in sizes)
        if not same or other.batch_size not in (1, self.batch_size):
            raise ValueError(
                f"KVCache.prefill: other is {other}, this one {self}; all but seq_len must be equal, "
                "and batch_size may be 1 in other"
            )
        if other.pos > self.seq_len:
            raise ValueError(
                f"KVCache.prefill: {other.pos} positions do not fit into {self.seq_len}; "
                f"create this cache with seq_len={other.pos} or more"
            )
        self._store_like(other.store)[..., : other.pos, :] = other.store[..., : other.pos, :]
        self.pos = other.pos

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order, and free the others' memory."""
        self.batch_size = len(rows)
        if self.store is not None:
            wide = self.store
            self.store = None
            self._store_like(wide)[..., : self.pos, :] = wide[:, :, list(rows), :, : self.pos]

    def reset(self) -> None:
        """Forget all positions; the memory stays for the next prompt."""
        self.pos = 0

    def _store_like(self, example: Tensor) -> Tensor:
        """The memory, taken at the first call with the example's dtype and device."""
        if self.store is None:
            shape = (self.num_layers, 2, self.batch_size, self.num_heads, self.seq_len, self.head_dim)
            self.store = torch.empty(shape, dtype=example.dtype, device=example.device)
        return self.store

    def __repr__(self) -> str:
        """The sizes, for messages."""
        return (
            f"KVCache(batch_size={self.batch_size}, num_heads={self.num_heads}, seq_len={self.seq_len}, "
            f"head_dim={self.head_dim}, num_layers={self.num_layers})"
        )


def save(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Write into one file what `resume` needs; an older file at this path stays whole until the new one is.

    The file is torch.save's, of a dictionary: "model", "optimizers" (a list, in their order), "step", and
    "random", the state of PyTorch's generator. Nothing else is left in the folder.
    """
    raise NotImplementedError(
        "TODO: Implement save - model, optimizers, steps and random state, under another name first"
    )


def resume(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bring model, optimizers and the random generator back to where `save` found them; returns the step."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    torch.set_rng_state(state["random"])
    return int(state["step"])
