"""Where a run stands and what it decided: saved with every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from nanochat.common import UserError, typed

COSTS = ("checkpoint", "evaluation", "core", "samples")


@dataclass
class Progress:
    """Where a run is. Saved with every checkpoint; JSON can hold all of it."""

    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # since the run began, everything included but pauses before a resume
    train_seconds: float = 0.0  # of these, inside training steps
    smooth_loss: float = 0.0  # exponential mean of the loss, biased towards its start at 0
    skipped: int = 0  # steps whose loss or gradient was no number
    skipped_at: int = -2  # the last of them
    val_bpb: float | None = None
    min_val_bpb: float | None = None
    best_at: int = -1  # the checkpoint with the lowest val_bpb
    evaluated_at: int = -1
    sampled_at: int = -1
    core_at: int = -1
    records: int = 0  # lines in metrics.jsonl
    samples_size: int = 0  # bytes in samples.txt
    costs: dict[str, float] = field(default_factory=dict)  # seconds that the latest of COSTS took


@dataclass(frozen=True)
class Decisions:
    """What was decided when a run began or went on. Saved with every checkpoint; JSON can hold all of it."""

    device: str  # the GPU's or the processor's name
    dtype: str  # of matrix products
    compiled: bool
    threads: int
    torch: str  # version
    deterministic: bool  # whether PyTorch was told to use only kernels that give the same bits each time
    world_size: int
    corpus: str  # fingerprint of the text
    tokenizer: str  # fingerprint
    shards: int = 1  # processes that share one copy of the weights


State = TypeVar("State", Progress, Decisions)


def read_state(kind: type[State], saved: object, place: Path) -> State:
    """Progress or Decisions as a checkpoint has them. Raises UserError for what they cannot be."""
    names = [one.name for one in fields(kind)]
    known = {name: saved[name] for name in names if name in saved} if isinstance(saved, dict) else saved
    try:
        return typed(kind, known, kind.__name__.lower())
    except UserError as error:
        raise UserError(f"{place}: {error}: go on from another checkpoint, or train again") from None
