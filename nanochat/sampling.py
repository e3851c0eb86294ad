"""Choose the next token from a model's logits."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_next(
    logits: Tensor, rng: torch.Generator, temperature: float = 1.0, top_k: int | None = None
) -> Tensor:
    """Draw one token for each row of logits (B, V); returns (B, 1), int64.

    Temperature divides the logits; 0 takes the likeliest token. top_k keeps the k likeliest. Raises
    ValueError for a negative temperature or top_k < 1.
    """
    if temperature < 0:
        raise ValueError(f"sample_next: temperature is {temperature}; use 0 for the likeliest token, or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"sample_next: top_k is {top_k}; use at least 1, or None for the whole vocabulary")
    if temperature == 0:
        return logits.argmax(dim=-1, keepdim=True)
    if top_k is not None and top_k < logits.size(-1):
        kth = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), num_samples=1, generator=rng)
