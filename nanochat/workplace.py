"""Where a run computes and what it reads: memory, compiling, number formats, sources of text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from nanochat import system
from nanochat.agreement import Signals
from nanochat.common import Ranks, print0
from nanochat.dataloader import TokenLoader
from nanochat.dataset import corpus_fingerprint
from nanochat.loss import compile_kernel
from nanochat.normans_gpt import GPT
from nanochat.step import Batch
from nanochat.tokenizer import Tokenizer
from nanochat.train_config import TrainConfig, evaluation_steps


def prepare_memory(device: torch.device, reuse: bool = True) -> None:
    """On a CPU: large tensors on large pages, and freed ones reused. Call before the first tensor is made."""
    if device.type != "cpu":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch at its first large allocation
    if reuse:
        system.keep_freed_memory()


def release_memory(device: torch.device) -> None:
    """On a CPU, give back what is free now but was kept for reuse; without glibc, do nothing."""
    if device.type == "cpu":
        system.return_freed_memory()


COMPILING_PAYS_AFTER = 120.0  # seconds of training on a CPU


def compile_blocks(model: GPT) -> None:
    """Compile every block in place, which keeps the names of parameters, and the kernel of the loss."""
    for block in model.transformer.h:
        block.compile()
    compile_kernel()


def worth_compiling(config: TrainConfig, device: torch.device, expected_seconds: float) -> bool:
    """Whether to compile: as the flag says; on "auto" on CUDA, and on a CPU when the run is long."""
    if config.compile != "auto" or config.trace:
        return config.compile == "true"
    long_enough = device.type == "cuda" or (device.type == "cpu" and expected_seconds > COMPILING_PAYS_AFTER)
    return long_enough and compiler_works(device)


def compiler_works(device: torch.device) -> bool:
    """Try torch.compile on one addition: it needs a C++ compiler on a CPU, and Triton on CUDA."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print0(f"torch.compile does not work here, so training goes on without: {reason[:150]}")
        return False
    return True


@dataclass(frozen=True)
class Workplace:
    """Where and how this process computes."""

    ranks: Ranks
    device: torch.device
    dtype: torch.dtype | None  # of matrix products under autocast; None: float32, no autocast
    signals: Signals
    group: Any = None  # of all processes, for what checkpoints say to each other in the background

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Around a look at the model: nothing is compiled, and random generators are left as they were."""
        generators = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(generators), torch.compiler.set_stance("force_eager"), self.autocast():
            yield


class Batches(Protocol):
    """A stream of batches whose position can be saved."""

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batches handed out so far, the same on every rank; fits into JSON."""

    def close(self) -> None:
        """Give up what it holds."""


class Source(Protocol):
    """What a run reads."""

    program: str  # the module whose command goes on with a run, such as scripts.base_train
    tag: str  # the name of a run that was given none, such as d4

    def train(self, state: dict[str, Any] | None) -> Batches:
        """Batches without end for this rank, from the beginning or from a saved position."""

    def validation(self) -> tuple[Batches, int]:
        """Batches for one evaluation, and how many of them are wanted; 0: all."""

    def fingerprint(self) -> str:
        """Another text for whatever else the batches could be made of. Called in the first process only."""


class Corpus:
    """A corpus, cut into sequences: "train" shuffled and without end, "val" in the order of the text."""

    program = "scripts.base_train"

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer, place: Workplace) -> None:
        self.config, self.tokenizer, self.place = config, tokenizer, place
        self.tag = f"d{config.depth}"

    def open(self, split: str, state: dict[str, Any] | None = None) -> TokenLoader:
        """The loader of a split."""
        return TokenLoader(
            self.config.data,
            split,
            self.tokenizer,
            self.config.device_batch_size,
            self.config.max_seq_len,
            ranks=self.place.ranks,
            device=self.place.device,
            shuffle_window=self.config.shuffle_window,
            seed=self.config.seed,
            state=state,
        )

    def train(self, state: dict[str, Any] | None) -> TokenLoader:
        """Batches without end for this rank."""
        return self.open("train", state)

    def validation(self) -> tuple[TokenLoader, int]:
        """The beginning of the validation text, or all of it with --eval_tokens=-1."""
        return self.open("val"), evaluation_steps(self.config, self.place.ranks.world_size)

    def fingerprint(self) -> str:
        """That of all files of the corpus."""
        return corpus_fingerprint(self.config.data)
