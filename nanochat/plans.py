"""What `make train` can train: a few plans, and the speed from which each is worth its size. No PyTorch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Plan:
    """Everything in which `make train` differs from base_train's defaults, for machines of one speed."""

    name: str
    from_pace: float  # FLOP/s of training steps that are not compiled, from which on it is the best plan
    depth: int
    n_embd: int
    n_head: int
    vocab_size: int
    max_seq_len: int
    device_batch_size: int
    total_batch_size: int
    num_iterations: int  # at most; the clock may end the run before
    shuffle_window: int = 10_000
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.4

    def flops_per_token(self) -> int:
        """Floating point operations to train on one token, as GPT.estimate_flops counts them."""
        L, C, V, T = self.depth, self.n_embd, self.vocab_size, self.max_seq_len
        return 6 * (12 * L * C * C + V * C) + 12 * L * C * T

    def shape(self) -> dict[str, int]:
        """The arguments of GPTConfig."""
        return {
            "sequence_len": self.max_seq_len,
            "vocab_size": self.vocab_size,
            "n_layer": self.depth,
            "n_head": self.n_head,
            "n_kv_head": self.n_head,
            "n_embd": self.n_embd,
        }

    def flags(self) -> dict[str, Any]:
        """The flags of scripts.base_train that this plan sets."""
        return {name: value for name, value in asdict(self).items() if name not in ("name", "from_pace")}


SMALL = Plan(
    name="small",
    from_pace=0.0,
    depth=2,
    n_embd=160,
    n_head=4,
    vocab_size=4096,
    max_seq_len=256,
    device_batch_size=16,
    total_batch_size=4096,
    num_iterations=3000,
)
WIDE = Plan(
    name="wide",
    from_pace=200e9,
    depth=2,
    n_embd=256,
    n_head=2,
    vocab_size=8192,
    max_seq_len=256,
    device_batch_size=32,
    total_batch_size=8192,
    num_iterations=2500,
)
CUDA = Plan(
    name="cuda",
    from_pace=0.0,
    depth=4,
    n_embd=512,
    n_head=4,
    vocab_size=8192,
    max_seq_len=512,
    device_batch_size=64,
    total_batch_size=32768,
    num_iterations=200,
)
CUDA_FINEWEB = Plan(
    name="cuda-fineweb",
    from_pace=0.0,
    depth=12,
    n_embd=768,
    n_head=6,
    vocab_size=32768,
    max_seq_len=1024,
    device_batch_size=32,
    total_batch_size=131072,
    num_iterations=4000,
)
BY_PACE = (SMALL, WIDE)  # without a GPU, by the pace from which each is chosen
PLANS = {plan.name: plan for plan in (*BY_PACE, CUDA, CUDA_FINEWEB)}


def measured_pace(plan: Plan, device: torch.device, dtype: torch.dtype | None, steps: int = 4) -> float:
    """The best rate, in FLOP/s, of some training steps of this plan, not compiled, on made-up tokens.

    dtype is the format of matrix products under autocast, None for plain float32.
    """
    import time
    from contextlib import nullcontext

    import torch

    from nanochat import normans_gpt
    from nanochat.machine import synchronize
    from nanochat.step import Rates, Stepper, build_model, build_optimizers

    rng = torch.Generator().manual_seed(0)
    B, T = plan.device_batch_size, plan.max_seq_len
    model = build_model(normans_gpt, plan.shape(), device, 0, dtype)
    stepper = Stepper(
        model,
        build_optimizers(model, Rates()),
        autocast=lambda: torch.autocast(device.type, dtype) if dtype else nullcontext(),
    )
    paces = []
    for _ in range(steps):
        tokens = torch.randint(plan.vocab_size, (B, T + 1), generator=rng).to(device)
        began = time.perf_counter()
        stepper.step(iter([(tokens[:, :-1], tokens[:, 1:])]))
        synchronize(device)
        paces.append(B * T * model.estimate_flops() / (time.perf_counter() - began))
    return max(paces)


def plan_for(pace: float) -> Plan:
    """The plan without a GPU for a machine whose first steps ran at this pace, in FLOP/s."""
    return [plan for plan in BY_PACE if plan.from_pace <= pace][-1]


def explain(plan: Plan, pace: float) -> str:
    """One line: which plan, and why."""
    larger = [other for other in BY_PACE if other.from_pace > plan.from_pace]
    next_one = f"; from {larger[0].from_pace / 1e9:.0f} on it would be {larger[0].name!r}" if larger else ""
    return (
        f"plan {plan.name!r} ({plan.depth} blocks of width {plan.n_embd}, vocabulary {plan.vocab_size:,}), "
        f"because the first steps ran at {pace / 1e9:.0f} GFLOP/s{next_one}"
    )
