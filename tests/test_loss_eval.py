"""nanochat.loss_eval: bits per byte, against sums done by hand. Two ranks: in test_common.py."""

import bz2
import gzip
import itertools
import lzma
import math
from collections import Counter
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TypeVar

import pytest
import torch

from nanochat.common import Ranks, UserError
from nanochat.dataset import documents, prepare_sotu
from nanochat.loss_eval import evaluate_bpb
from nanochat.tokenizer import Tokenizer

# Token 0: one byte, 1: four bytes, 2: half a character, two bytes, 3: special.
TOKEN_BYTES = torch.tensor([1, 4, 2, 0])
NATS = torch.tensor([0.5, 3.0, 1.25, 100.0])
Batch = tuple[torch.Tensor, torch.Tensor]
T = TypeVar("T")


def model(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str = "mean") -> torch.Tensor:
    """A stub with known losses: NATS of the target times the input, and 7 where there is no target."""
    assert loss_reduction == "none"
    assert not torch.is_grad_enabled()
    losses = torch.where(targets >= 0, NATS[targets.clamp(min=0)] * inputs, 7.0)
    return losses.view(-1)


def batch(inputs: list[list[int]], targets: list[list[int]]) -> Batch:
    return torch.tensor(inputs), torch.tensor(targets)


# 0.5 + 2 · 3 + 1.25 nats over 1 + 4 + 2 bytes; the special counts nothing.
ONE = batch([[1, 2], [1, 1]], [[0, 1], [2, 3]])
TWO = batch([[2, 1], [1, 9]], [[1, -1], [0, -1]])  # 6 + 0.5 nats; 4 + 1 bytes


def test_one_batch_by_hand() -> None:
    assert evaluate_bpb(model, [ONE], 1, TOKEN_BYTES) == pytest.approx(7.75 / (7 * math.log(2)))


def test_sums_first_and_divides_last() -> None:
    both = evaluate_bpb(model, [ONE, TWO], 0, TOKEN_BYTES)
    assert both == pytest.approx((7.75 + 6.5) / (12 * math.log(2)))
    mean = (evaluate_bpb(model, [ONE], 0, TOKEN_BYTES) + evaluate_bpb(model, [TWO], 0, TOKEN_BYTES)) / 2
    assert both != pytest.approx(mean, rel=1e-3)


def test_takes_as_many_batches_as_asked_and_leaves_the_rest() -> None:
    batches = iter([ONE, ONE, TWO])
    assert evaluate_bpb(model, batches, 2, TOKEN_BYTES) == pytest.approx(7.75 / (7 * math.log(2)))
    assert next(batches) is TWO


@pytest.mark.parametrize(("batches", "steps", "seen", "wanted"), [([ONE], 2, 4, 8), ([ONE, TWO], 2, 6, 8)])
def test_fewer_tokens_than_asked_is_an_error(
    batches: list[Batch], steps: int, seen: int, wanted: int
) -> None:
    with pytest.raises(
        UserError, match=rf"holds {seen} tokens \(\d+ bytes\), wanted are {wanted}: lower --eval_tokens"
    ):
        evaluate_bpb(model, batches, steps, TOKEN_BYTES)


@pytest.mark.parametrize("batches", [[], [batch([[1]], [[3]])], [batch([[1]], [[-1]])]])
def test_no_byte_at_all_is_an_error(batches: list[Batch]) -> None:
    with pytest.raises(UserError, match=r"\(0 bytes\)"):
        evaluate_bpb(model, batches, 0, TOKEN_BYTES)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_broken_loss_shows_where_it_counts_and_only_there(loss: float) -> None:
    def broken(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        return torch.where(inputs == 9, loss, model(inputs, targets, "none").view_as(inputs)).view(-1)

    inputs = torch.tensor([[1, 9], [1, 9]])
    uncounted = inputs, torch.tensor([[0, 3], [1, -1]])
    assert evaluate_bpb(broken, [uncounted], 0, TOKEN_BYTES) == pytest.approx(3.5 / (5 * math.log(2)))
    counted = inputs, torch.tensor([[0, 1], [1, 2]])
    result = evaluate_bpb(broken, [counted], 0, TOKEN_BYTES)
    assert result == loss or (math.isnan(result) and math.isnan(loss))


def test_the_table_of_the_chapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chapter = (Path(__file__).parents[1] / "lit" / "64-bits-per-byte.md").read_text(encoding="utf-8")
    monkeypatch.setenv("NANOCHAT_BASE_DIR", str(tmp_path))
    prepare_sotu()
    train, val = list(documents("sotu", "train")), list(documents("sotu", "val"))
    seen, text = "".join(train).encode(), "".join(val).encode()
    assert f"On the {len(text):,} bytes" in chapter

    def check(row: str, bits: float) -> None:
        assert f"| {row} | {bits / len(text):.3f} |" in chapter

    check("`gzip -9`", 8 * len(gzip.compress(text, 9)))
    check("`xz -9`", 8 * len(lzma.compress(text, preset=9)))
    check("`bzip2 -9`", 8 * len(bz2.compress(text, 9)))

    def bits(what: Counter[T], p: Callable[[T], float]) -> float:
        return -sum(count * math.log2(p(one)) for one, count in what.items())

    count = Counter(seen)
    check("how often each byte occurs", bits(Counter(text), lambda b: (count[b] + 1) / (len(seen) + 256)))

    tokenizer = Tokenizer.train(train, 4096)
    rows, other = tokenizer.encode(val), tokenizer.encode(train)
    check("the tokenizer of 4,096 tokens, all equally likely", 12 * sum(map(len, rows)))
    tokens = Counter(chain.from_iterable(other))
    pairs = Counter(chain.from_iterable(map(itertools.pairwise, other)))
    first = tokens - Counter(row[-1] for row in other)
    p = [(tokens[token] + 1) / (tokens.total() + 4087) for token in range(4087)]
    check("how often each token occurs", bits(Counter(chain.from_iterable(rows)), p.__getitem__))
    check(
        "how often each token follows the one before it",
        bits(
            Counter(chain.from_iterable(map(itertools.pairwise, rows))),
            lambda pair: (pairs[pair] + 50 * p[pair[1]]) / (first[pair[0]] + 50),
        ),
    )


def test_low_precision_losses_are_summed_in_higher() -> None:
    def coarse(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        return torch.full((targets.numel(),), 1.0, dtype=torch.bfloat16)

    many = torch.zeros(4, 1001, dtype=torch.int64), torch.zeros(4, 1001, dtype=torch.int64)
    assert evaluate_bpb(coarse, [many] * 3, 3, TOKEN_BYTES) == pytest.approx(1 / math.log(2), rel=1e-6)


def test_a_model_that_knows_nothing_has_log2_v_bits_per_token() -> None:
    """The chapter's reading of the number: with bytes as tokens and uniform bets, log2 265 bits per byte."""
    tokenizer = Tokenizer([bytes([byte]) for byte in range(256)])

    def ignorant(inputs: torch.Tensor, targets: torch.Tensor, loss_reduction: str) -> torch.Tensor:
        return torch.full((targets.numel(),), math.log(tokenizer.vocab_size))

    ids = torch.tensor([tokenizer.encode("Fellow-Citizens — ½", prepend=tokenizer.bos)])
    bpb = evaluate_bpb(ignorant, [(ids[:, :-1], ids[:, 1:])], 1, tokenizer.token_bytes(), Ranks())
    assert bpb == pytest.approx(math.log2(265))
