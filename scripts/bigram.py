"""Train a table of what follows what, and let it write: python -m scripts.bigram."""

from __future__ import annotations

import math
import random
import sys
import textwrap
from dataclasses import dataclass

from nanochat.common import UserError, run_program
from nanochat.dataset import documents, prepare_sotu
from nanochat.flags import flag, parse_flags


@dataclass(frozen=True)
class BigramConfig:
    """The flags of scripts.bigram."""

    data: str = flag("sotu", "name of the corpus")
    steps: int = flag(1000, "steps of gradient descent")
    batch_size: int = flag(4096, "pairs that a step learns from")
    learning_rate: float = flag(50.0, "what a gradient is multiplied by")
    eval_every: int = flag(200, "steps between two validations")
    length: int = flag(300, "bytes to write in the end; 0: none")
    seed: int = flag(42, "of all that is drawn by chance")

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        for name, least in (("steps", 0), ("batch_size", 1), ("eval_every", 1), ("length", 0)):
            value = getattr(self, name)
            if value < least:
                raise UserError(f"--{name}={value}: must be at least {least}")
        if self.learning_rate <= 0:
            raise UserError(f"--learning_rate={self.learning_rate}: must be above 0")


def main() -> None:
    """Train, compare with counting, write."""
    about = "Train a table of what follows what, compare it with counting, and let it write."
    config = parse_flags(BigramConfig, sys.argv[1:], "python -m scripts.bigram", about)
    import torch  # here, so that a wrong flag is refused at once

    from nanochat import bigram

    torch.set_num_threads(1)  # with so small a table a second thread would wait more than it works
    if config.data == "sotu":
        prepare_sotu()
    texts = list(documents(config.data, "train"))
    alphabet = bigram.alphabet_of(texts)
    train = bigram.pairs(texts, alphabet)
    val = bigram.pairs(documents(config.data, "val"), alphabet)
    print(f"{config.data}: {len(train[0]):,} bytes to learn from, {len(val[0]):,} kept back")
    table, rng = bigram.new_table(alphabet), torch.Generator().manual_seed(config.seed)
    print(f"{len(alphabet)} different bytes and START: a table of {table.numel():,} scores, all 0")
    for number in range(config.steps + 1):
        batch = bigram.draw_batch(*train, config.batch_size, rng)
        if number % config.eval_every == 0 or number == config.steps:
            loss = bigram.mean_loss(table, *batch).item()
            bits = bigram.bits_per_byte(table, *val)
            if not math.isfinite(bits):
                raise UserError(f"the loss is {bits} at step {number}: lower --learning_rate")
            print(f"step {number:4d} | loss: {loss:.4f} | validation: {bits:.4f} bits per byte")
        if number < config.steps:
            bigram.step(table, *batch, config.learning_rate)
    bits = bigram.bits_per_byte(bigram.counted(*train, alphabet), *val)
    print(f"counted, not trained      | validation: {bits:.4f} bits per byte")
    if config.length:
        print("it writes:")
        print(textwrap.fill(bigram.write(table, alphabet, config.length, random.Random(config.seed)), 100))


if __name__ == "__main__":
    run_program(main)
