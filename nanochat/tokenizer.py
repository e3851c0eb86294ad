"""A byte-level BPE tokenizer: trained by `tokenizers`, run by `tiktoken`, stored as two readable files."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

import tiktoken

from nanochat.common import UserError, base_dir, one_at_a_time, print0, write_atomically
from nanochat.dataset import documents
from nanochat.machine import own_cores

if TYPE_CHECKING:
    import torch


SPLIT_PATTERN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)


DEFAULT_VOCAB_SIZE = 4096
SPECIAL_TOKENS = (
    "<|bos|>",
    "<|user_start|>",
    "<|user_end|>",
    "<|assistant_start|>",
    "<|assistant_end|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|output_start|>",
    "<|output_end|>",
)
SMALLEST_VOCAB_SIZE = 256 + len(SPECIAL_TOKENS)


def tokenizer_folder(data: str, vocab_size: int) -> Path:
    """Where the tokenizer of this size, trained on this corpus, is kept."""
    return base_dir() / "tokenizers" / f"{data}-{vocab_size}"


def _how_to_train(folder: Path) -> str:
    data, _, vocab_size = folder.name.rpartition("-")
    if not data or not vocab_size.isdecimal():
        data, vocab_size = "NAME", "SIZE"
    return f"python -m scripts.tok_train --data={data} --vocab_size={vocab_size}"


def undisguise() -> dict[str, int]:
    """From the character that `tokenizers` shows for a byte, to the byte."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


ENDLESS = 2**18


def _has_endless_blanks(text: str) -> bool:
    return len(text) >= ENDLESS and re.search(rf"\s{{{ENDLESS}}}", text) is not None


LONGEST_RUN = 256
LONGEST_TEXT = 2**20
RUN = re.compile(rf"(\S{{{LONGEST_RUN}}}|\s{{{LONGEST_RUN}}})")


def bounded(texts: Iterable[str]) -> Iterator[str]:
    """The same texts in pieces up to LONGEST_TEXT, and no run of blanks, or of none, above LONGEST_RUN."""
    for text in texts:
        start = 0
        while start < len(text):
            end = start + LONGEST_TEXT
            blank = text.rfind(" ", start + 1, end) if end < len(text) else -1
            piece = text[start : blank if blank > 0 else end]
            start += len(piece)
            yield from filter(None, RUN.split(piece)) if RUN.search(piece) else [piece]


class Tokenizer:
    """Turns text into token ids and back. Ids: 0–255 bytes, then merges, then the nine special tokens."""

    def __init__(self, tokens: Sequence[bytes], pattern: str = SPLIT_PATTERN) -> None:
        """From the tokens of text in the order of their ids; the special tokens are added above them."""
        self.tokens = tuple(tokens)
        self.pattern = pattern
        self.specials = {name: len(self.tokens) + place for place, name in enumerate(SPECIAL_TOKENS)}
        self.vocab_size = len(self.tokens) + len(self.specials)
        self.bos = self.specials["<|bos|>"]
        self._encoding = tiktoken.Encoding(
            "nanochat",
            pat_str=pattern,
            mergeable_ranks={token: rank for rank, token in enumerate(self.tokens)},
            special_tokens=self.specials,
        )

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = DEFAULT_VOCAB_SIZE) -> Tokenizer:
        """Learn `vocab_size` tokens, specials included, from `texts`.

        Byte pair encoding on UTF-8 bytes (Sennrich et al., arXiv 1508.07909). The same texts give the same
        tokens. Raises UserError if vocab_size is below 265, or the texts are too few for so many merges.
        """
        if vocab_size < SMALLEST_VOCAB_SIZE:
            raise UserError(
                f"--vocab_size is {vocab_size}; 256 bytes and {len(SPECIAL_TOKENS)} special tokens "
                f"need at least {SMALLEST_VOCAB_SIZE}"
            )
        from tokenizers import Regex, models, pre_tokenizers, trainers
        from tokenizers import Tokenizer as Learner

        learner = Learner(models.BPE())
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        cut = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
        learner.pre_tokenizer = pre_tokenizers.Sequence([cut, as_bytes])
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size - len(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=sys.stderr.isatty(),
        )
        learner.train_from_iterator(bounded(texts), trainer)
        byte_of = undisguise()
        in_order = sorted((number, token) for token, number in learner.get_vocab().items())
        learnt = [bytes(byte_of[char] for char in token) for _, token in in_order]
        tokens = [bytes([byte]) for byte in range(256)] + [token for token in learnt if len(token) > 1]
        if len(tokens) + len(SPECIAL_TOKENS) != vocab_size:
            most = len(tokens) + len(SPECIAL_TOKENS)
            raise UserError(
                f"the texts give only {most:,} tokens, not {vocab_size:,}: take more text, or"
                f" --vocab_size={most} (of scripts.tok_train and scripts.base_train)"
            )
        return cls(tokens)

    def save(self, folder: Path, trained_on: str = "") -> None:
        """Write `vocab.tiktoken` and `tokenizer.json` into `folder`; if it holds the same ones, leave them.

        Raises UserError if the folder holds another tokenizer.
        """
        if (folder / "tokenizer.json").exists():
            if Tokenizer.load(folder).fingerprint() == self.fingerprint():
                return
            raise UserError(f"{folder} holds another tokenizer, which models may need: move it away first")
        about = {
            "format": 1,
            "vocab_size": self.vocab_size,
            "pattern": self.pattern,
            "special_tokens": self.specials,
            "trained_on": trained_on,
            "sha256": self.fingerprint(),
        }
        write_atomically(folder / "vocab.tiktoken", self._vocabulary())
        write_atomically(folder / "tokenizer.json", json.dumps(about, indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Tokenizer:
        """Read a tokenizer that `save` wrote. Raises UserError if there is none or it is damaged."""
        if not (folder / "tokenizer.json").exists():
            raise UserError(f"there is no tokenizer in {folder}: train it with {_how_to_train(folder)}")
        try:
            about = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
            lines = (folder / "vocab.tiktoken").read_text(encoding="ascii").splitlines()
            tokens = [base64.b64decode(line.split()[0], validate=True) for line in lines]
            tokenizer = cls(tokens, about["pattern"])
            same = (tokenizer.fingerprint(), tokenizer.specials) == (about["sha256"], about["special_tokens"])
            reason = "" if same else "its contents do not have the SHA-256 they were saved with"
        except (OSError, ValueError, LookupError, TypeError, binascii.Error) as error:
            reason = f"{type(error).__name__}: {error}"
        if reason:
            raise UserError(
                f"the tokenizer in {folder} is damaged ({reason}): move the folder away and train it again "
                f"with {_how_to_train(folder)}"
            )
        return tokenizer

    def fingerprint(self) -> str:
        """A SHA-256 over all that decides how text is encoded: tokens in order, pattern, special tokens."""
        rules = json.dumps([self.pattern, self.specials])
        return hashlib.sha256(self._vocabulary().encode() + rules.encode()).hexdigest()

    def _vocabulary(self) -> str:
        """The contents of `vocab.tiktoken`: on each line a token in base64, a space and its id."""
        lines = (f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(self.tokens))
        return "".join(lines)

    def special(self, name: str) -> int:
        """The id of a special token, such as `<|user_start|>`. Raises KeyError for a name that is none."""
        return self.specials[name]

    @overload
    def encode(self, text: str, prepend: str | int | None = None, num_threads: int = 0) -> list[int]: ...

    @overload
    def encode(
        self, text: list[str], prepend: str | int | None = None, num_threads: int = 0
    ) -> list[list[int]]: ...

    def encode(
        self, text: str | list[str], prepend: str | int | None = None, num_threads: int = 0
    ) -> list[int] | list[list[int]]:
        """Encode a text to a list of ids, or a list of texts to a list of such lists.

        The text is taken as text throughout: special tokens come only from `prepend`, a name or id. A list is
        spread over `num_threads` threads (0: one for each core, at most 8). Lone surrogates, which no UTF-8
        text contains, become U+FFFD.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if len(texts) == 1 or any(map(_has_endless_blanks, texts)):
            rows = [self._encode_tamed(one) for one in texts]
        else:
            threads = num_threads or min(8, own_cores())
            rows = self._encoding.encode_ordinary_batch(texts, num_threads=threads)
        if prepend is not None:
            first = prepend if isinstance(prepend, int) else self.special(prepend)
            for row in rows:
                row.insert(0, first)
        return rows[0] if isinstance(text, str) else rows

    def _encode_tamed(self, text: str) -> list[int]:
        """Encode a text that may have endless blanks, piece by piece."""
        pieces = [piece for piece in re.split(rf"(\s{{{ENDLESS}}})", text) if piece]
        return [token for piece in pieces for token in self._encoding.encode_ordinary(piece)]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`, joined; a special token gives its name. Raises ValueError for an unknown id."""
        if ids and not (min(ids) >= 0 and max(ids) < self.vocab_size):
            raise ValueError(f"token ids are 0 to {self.vocab_size - 1}, not {min(ids)} to {max(ids)}")
        return self._encoding.decode_bytes(ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text that `ids` stand for; bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def token_bytes(self) -> torch.Tensor:
        """The number of bytes of each token, int64 of shape (V,); 0 for special tokens."""
        import torch

        sizes = [len(token) for token in self.tokens]
        return torch.tensor(sizes + [0] * len(self.specials), dtype=torch.int64)


TRAINING_CHARS = 100_000_000


def prepare_tokenizer(data: str, vocab_size: int) -> Tokenizer:
    """The tokenizer of this corpus and size; if it is missing, train it, after a line that says so.

    Raises UserError if the corpus is missing, or too small for so many tokens.
    """
    folder = tokenizer_folder(data, vocab_size)
    if (folder / "tokenizer.json").exists():
        return Tokenizer.load(folder)
    from tqdm import tqdm

    with one_at_a_time(folder.with_name(f".{folder.name}.lock"), f"trains the tokenizer {folder.name}"):
        if not (folder / "tokenizer.json").exists():
            print0(f"tokenizer: {data} has none of {vocab_size:,} tokens yet, so one is trained in {folder}")
            texts = first_characters(documents(data, "train"), TRAINING_CHARS)
            bar = tqdm(texts, unit=" documents", desc="reading", leave=False, disable=None)
            Tokenizer.train(bar, vocab_size).save(folder, f"the first {TRAINING_CHARS} characters of {data}")
    return Tokenizer.load(folder)


def first_characters(texts: Iterable[str], limit: int) -> Iterator[str]:
    """The texts up to `limit` characters in all, the last one cut."""
    for text in texts:
        yield text[:limit]
        limit -= len(text)
        if limit <= 0:
            return


def usual_vocab_size(data: str) -> int:
    """Of the tokenizers that `data` has, the size nearest to the default, after a line that says so."""
    folders = [path.parent.name for path in (base_dir() / "tokenizers").glob("*/tokenizer.json")]
    sizes = sorted(int(m[1]) for name in folders if (m := re.fullmatch(rf"{re.escape(data)}-(\d+)", name)))
    if not sizes:
        return DEFAULT_VOCAB_SIZE
    nearest = min(sizes, key=lambda size: max(size / DEFAULT_VOCAB_SIZE, DEFAULT_VOCAB_SIZE / size))
    several = f", of {', '.join(f'{size:,}' for size in sizes)}," if len(sizes) > 1 else ""
    print0(
        f"tokenizer: the one of {nearest:,} tokens that {data} has{several} is taken"
        " (--vocab_size takes or makes another)"
    )
    return nearest
