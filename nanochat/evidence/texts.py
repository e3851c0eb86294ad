"""The text that trials read, as tokens: prepared once in each process, and known by its content."""

from __future__ import annotations

import functools
import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

from nanochat.dataset import corpus_folder, documents, prepare_corpus
from nanochat.evidence.trials import Text
from nanochat.tokenizer import prepare_tokenizer, tokenizer_folder


@functools.cache
def read_text(data: str, vocab_size: int) -> Text:
    """The corpus `data` in tokens of its tokenizer; "random" is made up, for trials that only have to run.

    Raises UserError if the corpus cannot be had.
    """
    if data == "random":
        return made_up(vocab_size)
    prepare_corpus(data)
    tokenizer = prepare_tokenizer(data, vocab_size)
    splits = []
    for split in ("train", "val"):
        rows = tokenizer.encode(list(documents(data, split)), prepend=tokenizer.bos)
        splits.append(tuple(np.array(row, dtype=np.int32) for row in rows))
    return text_of(splits[0], splits[1], tokenizer.token_bytes())


def at_hand(data: str, vocab_size: int) -> bool:
    """Whether corpus and tokenizer are there already, so that reading them makes nothing."""
    if data == "random":
        return True
    made = (tokenizer_folder(data, vocab_size) / "tokenizer.json").exists()
    return made and any(corpus_folder(data).glob("*.parquet"))


def text_of(
    train: tuple[NDArray[np.int32], ...], held_back: tuple[NDArray[np.int32], ...], token_bytes: torch.Tensor
) -> Text:
    """A text with its fingerprint."""
    seen = hashlib.sha256(token_bytes.numpy().tobytes())
    for split in (train, held_back):
        for speech in split:
            seen.update(len(speech).to_bytes(8, "little") + speech.tobytes())
    return Text(train, held_back, token_bytes, seen.hexdigest()[:16])


def made_up(vocab_size: int) -> Text:
    """Eight short speeches for training and three for judging, in which each number follows from the last."""
    rng = np.random.default_rng(0)
    speeches = []
    for _ in range(11):
        rises = rng.integers(1, 4, int(rng.integers(40, 90)))
        speeches.append((rises.cumsum() % vocab_size).astype(np.int32))
    return text_of(tuple(speeches[3:]), tuple(speeches[:3]), torch.ones(vocab_size, dtype=torch.int64))
