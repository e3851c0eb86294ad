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
    from nanochat.run import Result, Watch

__all__ = ["TrainConfig", "main", "train"]


def train(config: TrainConfig) -> Result:
    """Train as `config` says; everything that can be refused is refused before PyTorch is imported."""
    choose_gpt(config.gpt)
    tokenizer = open_tokenizer(config)
    if config.resume or config.device_type:
        from nanochat import run

        run.refuse_what_is_not_there(config)
    refuse_a_short_split(config, tokenizer)
    from nanochat import run

    config = replace(config, vocab_size=tokenizer.vocab_size)
    with gaps_explained(config.gpt):
        return run.train(config, tokenizer, watch=watching(config) if config.trace else None)


def watching(config: TrainConfig) -> Watch:
    """A context in which the calls of a module's functions are reported."""
    from nanochat.common import Ranks
    from nanochat.run_log import say_around_a_bar
    from nanochat.trace import trace

    def say(text: str) -> None:
        say_around_a_bar(text, Ranks())

    return lambda module: trace(module, out=say, statistics=config.statistics)


def main() -> None:
    """Read the command line, train, and end with the status a shell expects."""
    config = parse_flags(TrainConfig, sys.argv[1:], "python -m scripts.base_train", "Train a GPT.")
    train(config).leave()


if __name__ == "__main__":
    run_program(main)
