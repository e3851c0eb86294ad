"""How far two programs may differ that compute the same: libraries, kernels, formats, batches, threads.

The same program on the same machine gives the same bits, and tests of saving and resuming ask for them.
Anything else adds the same numbers in another order, and gets another last bit. Each bound here is derived,
and tests/test_bounds.py shows that sums in two orders do differ, and by less.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from nanochat.muon import NEWTON_SCHULZ


def unit_roundoff(dtype: torch.dtype = torch.float32) -> float:
    """The most that writing a number in dtype changes it, relative to it: half a step to its neighbour."""
    return torch.finfo(dtype).eps / 2


def sum_error(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """How far a sum of products may be off in any order, relative to the sizes of its terms added up.

    Each term is rounded at most `terms` times on its way into the sum, by u each: n·u / (1 - n·u) at worst
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Roundings go up as often as down,
    so their sum has a standard deviation of at most sqrt(n)·u, and four of these are exceeded less than once
    in a thousand sums (Higham and Mary 2019, A New Approach to Probabilistic Rounding Error Analysis), by
    terms that all pull one way.
    """
    roundings = min(terms, 4 * math.sqrt(terms)) * unit_roundoff(dtype)
    return roundings / (1 - roundings)


def moved(tensors: Iterable[Tensor], run: Callable[[], Sequence[Tensor]], relative: float) -> list[float]:
    """The most that each result of run() moves when all numbers of these tensors move by `relative`.

    Up or down at random, three times. The tensors are put back.
    """
    tensors = list(tensors)
    kept = [tensor.detach().clone() for tensor in tensors]
    still = [result.detach().clone() for result in run()]
    most = [0.0] * len(still)
    for draw in range(3):
        rng = torch.Generator().manual_seed(draw)
        with torch.no_grad():
            for tensor, before in zip(tensors, kept, strict=True):
                signs = torch.randint(2, before.shape, generator=rng) * 2 - 1
                tensor.copy_(before * (1 + relative * signs))
        for place, (result, before) in enumerate(zip(run(), still, strict=True)):
            most[place] = max(most[place], float((result.detach() - before).abs().max()))
    with torch.no_grad():
        for tensor, before in zip(tensors, kept, strict=True):
            tensor.copy_(before)
    return most


def results_error(
    weights: Iterable[Tensor],
    run: Callable[[], Sequence[Tensor]],
    terms: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[float]:
    """How far each result that run() computes with these weights may be from another program's.

    A computed product of a row of weights with a vector is the exact one of weights that are each off by
    sum_error at most. So all weights are moved by that, and the results watched: the program itself tells how
    much it amplifies. The longest row gives the number of terms, or `terms` where other sums are longer, as
    those over all positions in a weight's gradient. Results are sums too, of a loss over positions for one,
    so the same share of the largest is added. Every weight has moved as far as it may, while of real
    roundings most are smaller and cancel: this leaves room for the second program, the norms and the softmax.
    """
    weights = list(weights)
    relative = sum_error(max(terms, *(weight.size(-1) for weight in weights)), dtype)
    sizes = [float(result.detach().abs().max()) for result in run()]
    return [move + relative * size for move, size in zip(moved(weights, run, relative), sizes, strict=True)]


def logits_error(model: torch.nn.Module, idx: Tensor, dtype: torch.dtype = torch.float32) -> float:
    """How far each logit of model(idx) may be from another program's."""
    with torch.no_grad():
        return results_error(model.parameters(), lambda: [model(idx)], dtype=dtype)[0]


def newton_schulz_error(size: int, dtype: torch.dtype, steps: int = 5) -> float:
    """What orthogonalizing rounds, as a relative change of its input, for matrices of at most size columns.

    A step adds a·σ, b·σ³ and c·σ⁵, which cancel to about σ: each is a product of sums that float32 adds up
    and dtype rounds once. The steps' roundings add up. How far the result moves, `moved` has to tell.
    """
    return steps * sum(map(abs, NEWTON_SCHULZ)) * (unit_roundoff(dtype) + sum_error(size))


def clearance(
    logits: Tensor, tokens: list[int], temperature: float = 1.0, top_k: int | None = None, seed: int = 42
) -> float:
    """How far all logits may move, each up or down, before another of these tokens would be chosen.

    logits are (n, V), those that the n tokens were chosen from, with one generator of this seed. The
    likeliest stays so while its lead is more than twice the move. A draw at the share r of the whole falls
    into the token that reaches from the share p to q; a move of every logit by e, divided by the temperature,
    moves the log-odds of p and q by 2·e at most.
    """
    if temperature == 0 or top_k is not None:
        ordered = logits.sort(dim=-1, descending=True).values
        last = (top_k or 1) - 1
        least = float((ordered[:, last] - ordered[:, last + 1]).min()) / 2
        if temperature == 0:
            return least
        logits = logits.masked_fill(logits < ordered[:, last : last + 1], -math.inf)
    else:
        least = math.inf
    rng = random.Random(seed)
    for row, token in zip(logits.double(), tokens, strict=True):
        ends = (row / temperature).softmax(dim=-1).cumsum(dim=-1)
        odds = torch.logit(torch.tensor([rng.getrandbits(31) / 2**31], dtype=torch.float64))
        reach = torch.logit(ends[[token - 1, token]] if token else ends[[token, token]])
        least = min(least, float((reach - odds).abs().min()) * temperature / 2)
    return least
