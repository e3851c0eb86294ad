"""What the program leaves to libraries or does faster, written out plainly, for understanding."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Pair = tuple[int, int]  # two tokens that are neighbours


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
    sequences = [(list(chunk), times) for chunk, times in Counter(chunks).items()]
    merges: list[Pair] = []
    while len(merges) < count:
        pairs: Counter[Pair] = Counter()
        for ids, times in sequences:
            for pair in pairwise(ids):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        sequences = [(join(ids, best, 256 + len(merges)), times) for ids, times in sequences]
        merges.append(best)
    return merges


def encode(chunk: bytes, merges: Sequence[Pair]) -> list[int]:
    """The tokens of a chunk of any length: its bytes, joined by the merges, first by those learned first.

    Each merge is made wherever its pair stands, from left to right.
    """
    order = {pair: n for n, pair in enumerate(merges)}
    ids = list(chunk)
    while known := [pair for pair in pairwise(ids) if pair in order]:
        first = min(known, key=lambda pair: order[pair])
        ids = join(ids, first, 256 + order[first])
    return ids


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
    need = B * T + 1
    waiting: list[int] = []
    for document in documents:
        waiting += [bos, *document]
        while len(waiting) >= need:
            block = torch.tensor(waiting[:need])
            yield block[:-1].view(B, T), block[1:].view(B, T)
            waiting = waiting[need - 1 :]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats, a scalar, of logits (R, V) against targets (R,); -1 asks for nothing.

    Finite for any finite logits. At least one target must not be -1. Uses no loss function of PyTorch.
    """
    asked = targets != -1
    logits, targets = logits[asked], targets[asked]
    top = logits.amax(dim=-1, keepdim=True)
    total = top.squeeze(-1) + (logits - top).exp().sum(dim=-1).log()
    reached = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    return (total - reached).mean()


def loss_and_gradients(
    x: Tensor, weight: Tensor, targets: Tensor, softcap: float, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy of softcap · tanh(x weightᵀ / softcap), and its gradients by x and by weight.

    x (R, C), weight (V, C), targets (R,) with -1 where nothing is asked. The logits of at most `rows` rows
    are held at a time. Autograd takes no part.
    """
    n_asked = (targets != -1).sum()
    loss = torch.zeros((), dtype=x.dtype)
    dx, dweight = torch.zeros_like(x), torch.zeros_like(weight)
    with torch.no_grad():
        for start in range(0, x.size(0), rows):
            part = slice(start, start + rows)
            asked = (targets[part] != -1).unsqueeze(-1)
            target = targets[part].clamp(min=0).unsqueeze(-1)
            squashed = torch.tanh(x[part] @ weight.t() / softcap)
            log_p = (softcap * squashed).log_softmax(dim=-1)
            loss -= (log_p.gather(-1, target) * asked).sum() / n_asked
            came = torch.zeros_like(log_p).scatter(-1, target, 1.0)
            dlogits = (log_p.exp() - came) * (1 - squashed.square()) * asked / n_asked
            dx[part] = dlogits @ weight
            dweight += dlogits.t() @ x[part]
    return loss, dx, dweight


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
    if not state:
        state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    p.mul_(1 - lr * weight_decay)
    state["exp_avg"].lerp_(grad, 1 - betas[0])
    state["exp_avg_sq"].lerp_(grad.square(), 1 - betas[1])
    mean = state["exp_avg"] / (1 - betas[0] ** state["step"])
    size = (state["exp_avg_sq"] / (1 - betas[1] ** state["step"])).sqrt()
    p.sub_(lr * mean / (size + eps))


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


def save(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], step: int) -> None:
    """Write into one file what `resume` needs; an older file at this path stays whole until the new one is.

    The file is torch.save's, of a dictionary: "model", "optimizers" (a list, in their order), "step", and
    "random", the state of PyTorch's generator. Nothing else is left in the folder.
    """
    state = {
        "model": model.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "random": torch.get_rng_state(),
    }
    draft = path.with_name(f"{path.name}.draft")
    torch.save(state, draft)
    os.replace(draft, path)


def resume(path: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Bring model, optimizers and the random generator back to where `save` found them; returns the step."""
    state = torch.load(path, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
    torch.set_rng_state(state["random"])
    return int(state["step"])
