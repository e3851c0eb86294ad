"""Muon: momentum whose every step is turned into a nearly orthogonal matrix.

Sources: Keller Jordan, "Muon: an optimizer for hidden layers in neural networks" (2024); arXiv 2502.16982.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanochat.machine import fastest_format

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan's choice: small singular values grow fast


def orthogonalize(g: Tensor, steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Push all singular values of each matrix of g (K, rows, columns) towards 1, keeping their vectors.

    Returns g's shape in `dtype`, in which it computes; without one, in the machine's fastest format.
    """
    a, b, c = NEWTON_SCHULZ
    x: Tensor = g.to(dtype or fastest_format(g.device))
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT  # for the smaller Gram matrix
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)  # now no singular value exceeds 1
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b·gram + c·gram²
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a·x + polynomial·x, rounded once
    return x.mT if tall else x


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
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            by_shape: defaultdict[torch.Size, list[Tensor]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    by_shape[p.shape].append(p)
            for (rows, columns), matrices in by_shape.items():
                directions = torch.stack([self._momentum(p, group) for p in matrices])
                rate = group["lr"] * max(1.0, rows / columns) ** 0.5
                updates = self.orthogonalize(directions, group["ns_steps"], self.ns_dtype)
                for p, update in zip(matrices, updates, strict=True):
                    p.add_(update.to(p.dtype), alpha=-rate)
        return loss

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        """The direction to orthogonalize for p: its running mean of gradients, with Nesterov's look ahead."""
        assert p.grad is not None
        state = self.state[p]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(p.grad)
        buffer: Tensor = state["momentum_buffer"]
        buffer.lerp_(p.grad, 1 - group["momentum"])
        return p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
