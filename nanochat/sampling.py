"""Choose the next token from a model's logits."""

import math
import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

COLDEST = 1e-6  # a temperature below this is 0: dividing logits by it could overflow


def sample_next(
    logits: Tensor, rngs: Sequence[random.Random], temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Choose one token for each row of logits (B, V), row i by rngs[i] alone; returns (B, 1), int64.

    Temperature divides the logits; 0 takes the likeliest token, the first of equals, and draws nothing.
    top_k keeps the k likeliest and whatever equals the last of them. Raises ValueError for a temperature
    below 0 or not finite, for top_k < 1, and for logits that are NaN.
    """
    if not 0 <= temperature < math.inf:
        raise ValueError(f"sample_next: temperature is {temperature}; use 0 for the likeliest token, or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample_next: top_k is {top_k}; use at least 1, or None for the whole vocabulary")
    if logits.amax(dim=-1).isnan().any():
        raise ValueError("sample_next: the logits are NaN, so the weights are; take an earlier checkpoint")
    if temperature < COLDEST:
        return likeliest(logits)
    tokens: Tensor | None = None  # the token that each column of logits belongs to, if not its number
    if top_k is not None and top_k < logits.size(-1):
        best = logits.topk(min(top_k + 16, logits.size(-1)), dim=-1)
        kth = best.values[:, top_k - 1 : top_k]
        if (best.values[:, -1:] < kth).all():
            tokens = best.indices.sort(dim=-1).values
            logits = logits.gather(-1, tokens)
        logits = logits.masked_fill(logits < kth, -math.inf)
    shares = (F.softmax(logits / temperature, dim=-1) * 2**31).round().long()  # whole numbers add up exactly
    ends = shares.cumsum(dim=-1)  # token i owns the numbers from ends[i - 1] up to, not including, ends[i]
    draws = torch.tensor([[rng.getrandbits(31)] for rng in rngs], device=logits.device)
    chosen = torch.searchsorted(ends, draws * ends[:, -1:] // 2**31, right=True)
    return chosen if tokens is None else tokens.gather(-1, chosen)


def likeliest(logits: Tensor) -> Tensor:
    """The first of the largest numbers of each row of logits (B, V); returns (B, 1), int64."""
    if logits.device.type != "cpu":
        return logits.argmax(dim=-1, keepdim=True)
    return torch.from_numpy(logits.detach().float().numpy().argmax(axis=-1, keepdims=True))
