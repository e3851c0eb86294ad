"""Train a GPT: `python -m scripts.base_train --help` lists the flags."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.common import run_program
from nanochat.flags import parse_flags
from nanochat.learning.gaps import gaps_explained
from nanochat.models import choose_gpt
from nanochat.train_config import TrainConfig, open_tokenizer, refuse_a_short_split

if TYPE_CHECKING:
    from nanochat.training import Result

__all__ = ["TrainConfig", "main", "train"]


def train(config: TrainConfig) -> Result:
    """Train as `config` says; everything that can be refused is refused before PyTorch is imported."""
    choose_gpt(config.gpt)
    tokenizer = open_tokenizer(config)
    if config.resume or config.device_type:
        from nanochat import training

        training.refuse_what_is_not_there(config)
    refuse_a_short_split(config, tokenizer)
    from nanochat import training

    with gaps_explained(config.gpt):
        return training.train(replace(config, vocab_size=tokenizer.vocab_size), tokenizer)


def main() -> None:
    """Read the command line, train, and end with the status a shell expects."""
    config = parse_flags(TrainConfig, sys.argv[1:], "python -m scripts.base_train", "Train a GPT.")
    result = train(config)
    if not result.finished:
        sys.exit(128 + result.signal)


if __name__ == "__main__":
    run_program(main)
