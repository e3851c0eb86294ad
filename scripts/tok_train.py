"""Train a tokenizer on a corpus: python -m scripts.tok_train --data=sotu --vocab_size=4096."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass

from nanochat.common import UserError, run_program
from nanochat.dataset import documents, prepare_corpus
from nanochat.flags import flag, parse_flags
from nanochat.tokenizer import (
    DEFAULT_VOCAB_SIZE,
    SMALLEST_VOCAB_SIZE,
    Tokenizer,
    first_characters,
    prepare_tokenizer,
    tokenizer_folder,
)


@dataclass(frozen=True)
class TokTrainConfig:
    """The flags of scripts.tok_train."""

    data: str = flag("sotu", "the corpus: sotu, fineweb or a name of your own")
    vocab_size: int = flag(DEFAULT_VOCAB_SIZE, "number of tokens, specials included")

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCAB_SIZE:
            raise UserError(
                f"--vocab_size is {self.vocab_size}; the smallest possible is {SMALLEST_VOCAB_SIZE}"
            )


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """How many bytes of text a token stands for on average, special tokens aside."""
    rows = [(len(text.encode("utf-8")), len(tokenizer.encode(text))) for text in texts]
    return sum(size for size, _ in rows) / max(1, sum(count for _, count in rows))


SAMPLE_CHARS = 10_000_000


def main() -> None:
    """Train the tokenizer the flags ask for, or reuse it, and report."""
    config = parse_flags(TokTrainConfig, sys.argv[1:], "python -m scripts.tok_train", "Train a tokenizer.")
    prepare_corpus(config.data)
    folder = tokenizer_folder(config.data, config.vocab_size)
    if (folder / "tokenizer.json").exists():
        print(f"tokenizer: {folder} is there already and is taken")
    tokenizer = prepare_tokenizer(config.data, config.vocab_size)
    ratio = bytes_per_token(tokenizer, first_characters(documents(config.data, "val"), SAMPLE_CHARS))
    print(f"{tokenizer.vocab_size:,} tokens; {ratio:.2f} bytes/token on validation text")
    print(f"next: python -m scripts.base_train --data={config.data} --vocab_size={config.vocab_size}")


if __name__ == "__main__":
    run_program(main)
