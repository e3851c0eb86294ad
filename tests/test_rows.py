"""Continuous batching: a row's text is the same alone and among others, whenever they join and leave."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat import rows as rows_module
from nanochat.decoding import for_decoding
from nanochat.engine import Engine
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.rows import CHUNK, Batch, Row, RowKeys, RowsCache, can_share, feed, row_cache

pytestmark = pytest.mark.numerics

LENGTH = 64


def random_model(seed: int = 0, kv_heads: int = 1, sequence_len: int = LENGTH) -> GPT:
    """A model whose weights are all random, so that every position matters to every score."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(sequence_len, vocab_size=300, n_layer=2, n_head=2, n_kv_head=kv_heads, n_embd=32))
    model.init_weights()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=weight.size(-1) ** -0.5)
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    return model


def random_row(rng: random.Random, **changes: object) -> Row:
    prompt = [rng.randrange(300) for _ in range(rng.randint(1, 30))]
    settings: dict[str, object] = {
        "max_tokens": rng.randint(1, LENGTH - len(prompt)),
        "temperature": rng.choice([0.0, 0.7, 1.0, 1.5]),
        "top_k": rng.choice([None, 1, 5, 50]),
        "seed": rng.randrange(1000),
        "stop": frozenset(rng.sample(range(300), 3)),
    }
    return Row(prompt, **(settings | changes))  # type: ignore[arg-type]


def run(batch: Batch, arrivals: Sequence[tuple[int, Row]]) -> dict[Row, str]:
    """Add each row at its step, go on until all have ended; returns why each did."""
    ends: dict[Row, str] = {}
    texts: dict[Row, list[int]] = {row: [] for _, row in arrivals}
    left, step = sorted(arrivals, key=lambda arrival: arrival[0]), 0
    while left or len(batch):
        while left and left[0][0] <= step:
            batch.add(left.pop(0)[1])
        for row, tokens, end in batch.step():
            texts[row] += tokens
            if end:
                assert row not in ends
                ends[row] = end
        step += 1
    for row, tokens in texts.items():
        assert list(row.prompt) + tokens == row.sequence
    return ends


def alone(model: GPT, row: Row) -> list[int]:
    """What the engine of chapter 50 writes for this row."""
    return Engine(model).complete(
        [row.prompt], row.max_tokens, row.temperature, row.top_k, row.seed, row.stop, insert=row.insert
    )[0]


@pytest.mark.parametrize("twin", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_a_rows_text_is_the_same_alone_and_among_others(kv_heads: int, twin: bool) -> None:
    model = random_model(kv_heads, kv_heads)
    decoding = for_decoding(model) if twin else model
    rng = random.Random(kv_heads)
    rows = [random_row(rng) for _ in range(60)]
    batch = Batch(decoding, capacity=7, seq_len=LENGTH)
    assert batch.together
    ends = run(batch, [(rng.randrange(150), row) for row in rows])
    for row in rows:
        written = row.sequence[len(row.prompt) :]
        assert written == alone(decoding, row)
        assert ends[row] == ("length" if len(written) == row.max_tokens else "stop")
    assert batch.live == []
    assert batch.stepping.cache.lengths == []


def test_rows_do_share_steps() -> None:
    """Sixteen rows together take as many steps as one, beside reading sixteen prompts."""
    model, passes = random_model(), []
    model.register_forward_pre_hook(lambda module, args: passes.append(tuple(args[0].shape)))
    batch = Batch(model, capacity=16, seq_len=LENGTH)
    passes.clear()
    # The hook is the model's, and the twin that steps has its hooks too.
    run(batch, [(0, Row([n], max_tokens=20)) for n in range(16)])
    assert sorted(set(passes)) == [(1, 1), (16, 1)]
    assert passes.count((16, 1)) == 19


def test_tokens_that_are_put_in_are_read_and_nobody_else_notices() -> None:
    model = random_model(3)

    def insert(sequence: Sequence[int]) -> list[int]:
        return [7, sequence[-1], 8] if sequence[-1] % 5 == 0 else []

    rng = random.Random(5)
    rows = [random_row(rng, insert=insert if n % 2 else None) for n in range(30)]
    run(Batch(model, capacity=5, seq_len=LENGTH), [(rng.randrange(40), row) for row in rows])
    for row in rows:
        assert row.sequence[len(row.prompt) :] == alone(model, row)
    assert any(7 in row.sequence[len(row.prompt) :] for row in rows[1::2])


def test_a_row_that_is_dropped_leaves_the_others_as_they_were() -> None:
    model, rng = random_model(4), random.Random(4)
    rows = [random_row(rng, stop=frozenset()) for _ in range(20)]
    batch = Batch(model, capacity=4, seq_len=LENGTH)
    for row in rows:
        batch.add(row)
    to_drop = rows[::3]
    for step in range(10_000):
        if not len(batch):
            break
        if step % 4 == 0 and to_drop:
            batch.drop(to_drop.pop(0))
        batch.step()
    assert (len(batch), to_drop) == (0, [])
    batch.drop(rows[1])  # long finished: nothing to forget
    for row in rows:
        if len(row.sequence) == row.full:
            assert row.sequence[len(row.prompt) :] == alone(model, row)
    assert sum(len(row.sequence) == row.full for row in rows) >= 13


def test_a_long_prompt_is_read_in_chunks_while_others_write() -> None:
    model = random_model(sequence_len=4 * CHUNK)
    batch = Batch(model, capacity=2, seq_len=4 * CHUNK)
    short, long = Row([1, 2], 100), Row([n % 300 for n in range(3 * CHUNK + 5)], 3)
    batch.add(short)
    batch.step()
    batch.add(long)
    written = len(short.sequence)
    while long.read < len(long.prompt):
        before = long.read
        batch.step()
        assert long.read - before <= CHUNK
    assert len(short.sequence) == written + 4
    while len(batch):
        batch.step()
    for row in (short, long):
        assert row.sequence[len(row.prompt) :] == alone(model, row)


def test_a_model_that_multiplies_its_keys_by_hand_is_stepped_row_by_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = F.scaled_dot_product_attention

    def by_hand(q: Tensor, k: Tensor, v: Tensor, **settings: Any) -> Tensor:
        if q.size(2) > 1:
            return plain(q, k, v, **settings)
        return (q @ k.transpose(2, 3) / q.size(-1) ** 0.5).softmax(-1) @ v

    monkeypatch.setattr(rows_module.F, "scaled_dot_product_attention", by_hand)
    model = random_model(kv_heads=2)
    assert not can_share(model)
    rng = random.Random(1)
    rows = [random_row(rng) for _ in range(10)]
    batch = Batch(model, capacity=3, seq_len=LENGTH)
    assert not batch.together
    run(batch, [(n, row) for n, row in enumerate(rows)])
    for row in rows:
        assert row.sequence[len(row.prompt) :] == alone(model, row)


def test_the_trial_sees_a_wrong_mask_and_a_wrong_position(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model()
    assert can_share(model)
    right = RowsCache.open_step

    def everything_is_visible(self: RowsCache) -> Tensor:
        at = right(self)
        self.visible = torch.ones_like(self.visible)
        return at

    monkeypatch.setattr(RowsCache, "open_step", everything_is_visible)
    assert not can_share(model)
    monkeypatch.setattr(RowsCache, "open_step", lambda self: right(self).clamp(max=2))
    assert not can_share(model)


def test_keys_of_rows_refuse_what_is_not_attention() -> None:
    keys = torch.zeros(1, 1, 2, 4).as_subclass(RowKeys)
    assert (keys.size(2), keys.shape) == (2, (1, 1, 2, 4))
    for wrong in (lambda: keys + 1, lambda: keys.transpose(2, 3), lambda: torch.cat([keys, keys])):
        with pytest.raises(NotImplementedError, match="rows of different lengths can be given to attention"):
            wrong()


@pytest.mark.parametrize(("prompt", "tokens"), [([], 3), ([1], 0), ([1] * LENGTH, 1), ([300], 1), ([-1], 1)])
def test_a_row_that_cannot_be_computed_is_refused(prompt: list[int], tokens: int) -> None:
    batch = Batch(random_model(), capacity=2, seq_len=LENGTH)
    with pytest.raises(ValueError, match=r"row|token"):
        batch.add(Row(prompt, tokens))
    assert len(batch) == 0


def test_memory_that_no_row_has_written_is_not_read() -> None:
    """A place that is masked is multiplied by 0, and 0 times NaN would be NaN."""
    model = random_model()
    cache = RowsCache(capacity=2, seq_len=LENGTH)
    for prompt in ([1] * 20, [2] * 3):
        one = row_cache(model, LENGTH)
        with torch.inference_mode():
            feed(model, prompt, one)
        cache.join(one)
    cache.leave(0)
    assert cache.lengths == [3]
    assert cache.store is not None
    assert cache.store.isfinite().all()
