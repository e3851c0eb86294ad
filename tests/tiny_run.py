"""A corpus, a tokenizer and a model so small that a training run takes a fraction of a second."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from nanochat.dataset import prepare_folder
from nanochat.tokenizer import Tokenizer, tokenizer_folder
from nanochat.train_config import TrainConfig
from tests.core_questions import WORDS

VOCAB_SIZE = 300


def make_base(folder: Path) -> None:
    """Put the corpus `tiny` and its tokenizer into `folder`, which $NANOCHAT_BASE_DIR must already name."""
    rng = random.Random(0)
    words = [*WORDS, "money", "house"]
    texts = [" ".join(rng.choices(words, k=300)) + ".\n" for _ in range(40)]
    source = folder / "texts"
    source.mkdir(parents=True)
    for number, text in enumerate(texts):
        (source / f"{number:02d}.txt").write_text(text)
    prepare_folder(source, "tiny")
    Tokenizer.train(texts, VOCAB_SIZE).save(tokenizer_folder("tiny", VOCAB_SIZE))


def tiny_config(**changes: Any) -> TrainConfig:
    """One block of width 32, 4 passes of 2 x 16 tokens a step, 8 steps, on the CPU in float32."""
    values: dict[str, Any] = {
        "data": "tiny",
        "vocab_size": VOCAB_SIZE,
        "depth": 1,
        "n_embd": 32,
        "n_head": 2,
        "max_seq_len": 16,
        "device_batch_size": 2,
        "total_batch_size": 128,
        "num_iterations": 8,
        "eval_every": 4,
        "eval_tokens": 128,
        "sample_every": -1,
        "core_metric_every": -1,
        "device_type": "cpu",
        "dtype": "float32",
        "compile": "false",
    }
    return TrainConfig(**(values | changes))


class Clock:
    """A clock in place of the module `time`: it goes on by `reading` seconds whenever it is read."""

    def __init__(self, reading: float) -> None:
        self.reading, self.now = reading, 0.0

    def perf_counter(self) -> float:
        """Seconds since the clock was made."""
        self.wait(self.reading)
        return self.now

    def time(self) -> float:
        """Seconds since 1970, if it was made then; it does not go on by this."""
        return self.now

    def wait(self, seconds: float) -> float:
        """Let time pass; returns how much."""
        self.now += seconds
        return seconds


def flags(config: TrainConfig) -> list[str]:
    """The command-line flags that give this configuration."""
    return [
        f"--{f.name}={getattr(config, f.name)}"
        for f in fields(config)
        if getattr(config, f.name) != f.default
    ]


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what depends on the clock."""
    clock = {"dt_ms", "tok_per_sec", "mfu", "seconds"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


@contextmanager
def own_base(folder: Path) -> Iterator[pytest.MonkeyPatch]:
    """The folder as the base folder, with the tiny corpus in it and no ranks in the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOCHAT_BASE_DIR", str(folder))
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            patch.delenv(name, raising=False)
        make_base(folder)
        yield patch
