"""Training on a corpus, from its flags to its result. Imports no PyTorch at first."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from nanochat.models import choose_gpt, gaps_named
from nanochat.train_config import TrainConfig, open_tokenizer, refuse_a_short_split

if TYPE_CHECKING:
    from nanochat.run import Result, Watch


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
    with gaps_named(config.gpt):
        return run.train(config, tokenizer, watch=watching(config) if config.trace else None)


def watching(config: TrainConfig) -> Watch:
    """A context in which the calls of a module's functions are reported."""
    from nanochat.common import Ranks
    from nanochat.run_log import say_around_a_bar
    from nanochat.trace import trace

    def say(text: str) -> None:
        say_around_a_bar(text, Ranks())

    return lambda module: trace(module, out=say, statistics=config.statistics)
