"""Train a tokenizer on a corpus: python -m scripts.tok_train --data=sotu --vocab_size=4096."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from nanochat.common import UserError, run_program
from nanochat.dataset import documents
from nanochat.flags import flag, parse_flags
from nanochat.tokenizer import DEFAULT_VOCAB_SIZE, SMALLEST_VOCAB_SIZE, Tokenizer, tokenizer_folder


@dataclass(frozen=True)
class TokTrainConfig:
    """The flags of scripts.tok_train."""

    data: str = flag("sotu", "the corpus: sotu, fineweb or a name of your own")
    vocab_size: int = flag(DEFAULT_VOCAB_SIZE, "number of tokens, specials included")
    max_chars: int = flag(1_000_000_000, "characters to learn from at most")

    def __post_init__(self) -> None:
        if self.vocab_size < SMALLEST_VOCAB_SIZE:
            raise UserError(
                f"--vocab_size is {self.vocab_size}; the smallest possible is {SMALLEST_VOCAB_SIZE}"
            )
        if self.max_chars < 1:
            raise UserError(f"--max_chars is {self.max_chars}; it has to be at least 1")


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The texts up to `limit` characters in all, the last one cut."""
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def bytes_per_token(tokenizer: Tokenizer, texts: Iterable[str]) -> float:
    """How many bytes of text a token stands for on average, special tokens aside."""
    rows = [(len(text.encode("utf-8")), len(tokenizer.encode(text))) for text in texts]
    return sum(size for size, _ in rows) / max(1, sum(count for _, count in rows))


SAMPLE_CHARS = 10_000_000


def main() -> None:
    """Train the tokenizer the flags ask for, or reuse it, and report."""
    config = parse_flags(TokTrainConfig, sys.argv[1:], "python -m scripts.tok_train", "Train a tokenizer.")
    folder = tokenizer_folder(config.data, config.vocab_size)
    if (folder / "tokenizer.json").exists():
        tokenizer = Tokenizer.load(folder)
        print(f"tokenizer {folder} is there already and is reused")
    else:
        from tqdm import tqdm

        texts = first_characters(documents(config.data, "train"), config.max_chars)
        start = time.perf_counter()
        bar = tqdm(texts, unit=" documents", desc="reading", disable=not sys.stderr.isatty())
        tokenizer = Tokenizer.train(bar, config.vocab_size)
        tokenizer.save(folder, f"{config.data}, at most {config.max_chars} characters")
        print(f"tokenizer trained in {time.perf_counter() - start:.1f} s and saved in {folder}")
    ratio = bytes_per_token(tokenizer, first_characters(documents(config.data, "val"), SAMPLE_CHARS))
    print(f"{tokenizer.vocab_size:,} tokens; {ratio:.2f} bytes/token on validation text")
    print(f"next: python -m scripts.base_train --data={config.data} --vocab_size={config.vocab_size}")


if __name__ == "__main__":
    run_program(main)
