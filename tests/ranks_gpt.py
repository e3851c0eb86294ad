"""A GPT that behaves differently in one of several processes: given to --gpt, told what to do by $RANK_TEST.

slow: the second process waits before each pass, and its clock goes twice as fast. fail: it raises in its
sixth training pass. evaluation: it raises in an evaluation, and the first process takes its time to leave.
kill: it kills itself in its sixth training pass, unless it was started again.
hang: it falls asleep in that pass, and the clock of its watch runs ahead.
Each process leaves its weights in $RANK_TEST_FOLDER.
"""

from __future__ import annotations

import atexit
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from nanochat import agreement, run
from nanochat.normans_gpt import GPT as BookGPT
from nanochat.normans_gpt import GPTConfig
from nanochat.parallel import local

__all__ = ["GPT", "GPTConfig"]


def own_clock(self: run.Run) -> float:
    """A second for each step in the first process, two in the second."""
    return self.progress.step * (1.0 + int(os.environ.get("RANK", "0")))


class Ahead:
    """In place of the module `time`."""

    sleep, hours = staticmethod(time.sleep), 0

    @classmethod
    def monotonic(cls) -> float:
        """Seconds."""
        return time.monotonic() + 3600 * cls.hours


def fall_asleep() -> None:
    """For longer than any test, while the watch's clock goes an hour ahead with each second."""
    agreement.time = Ahead  # type: ignore[assignment]
    while True:
        time.sleep(1)
        Ahead.hours += 1


class GPT(BookGPT):
    """The book's model with a fault."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.passes = 0
        if os.environ["RANK_TEST"] == "slow":
            run.Run.clock = own_clock  # type: ignore[method-assign]
        atexit.register(self.leave)

    def leave(self) -> None:
        """Keep the weights, to be compared."""
        folder = Path(os.environ["RANK_TEST_FOLDER"])
        if os.environ["RANK_TEST"] == "evaluation" and os.environ.get("RANK") == "0":
            time.sleep(2)  # torchrun looks for ended processes ten times a second
        torch.save(
            {name: local(held) for name, held in self.state_dict().items()},
            folder / f"rank{os.environ.get('RANK', '0')}.pt",
        )

    def forward(self, idx: Any, targets: Any = None, *rest: Any, **named: Any) -> Any:
        """As the book's, but for the fault."""
        second, what = os.environ.get("RANK") == "1", os.environ["RANK_TEST"]
        training = targets is not None and not named
        self.passes += training
        if second and what == "slow" and training:
            time.sleep(0.03)
        if second and what == "fail" and training and self.passes == 6:
            raise MemoryError("there is no more memory on this one")
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT") != "0"
        if second and what == "kill" and not again and training and self.passes == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        if second and what == "hang" and training and self.passes == 6:
            fall_asleep()
        if second and what == "evaluation" and targets is not None and named and self.passes:
            raise OSError("a shard cannot be read")
        return super().forward(idx, targets, *rest, **named)
