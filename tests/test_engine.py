"""The cache and the engine, against the model without a cache, with weights that are not zero."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nanochat.engine import Engine, KVCache
from nanochat.normans_gpt import GPT, GPTConfig
from tests.bounds import clearance, logits_error
from tests.test_sampling import share_of_draws_that_differ

pytestmark = pytest.mark.numerics

VOCAB = 61
HEADS = [4, 2, 1]  # multi-head, grouped-query, multi-query


def lively(n_kv_head: int = 2) -> GPT:
    """A model whose every matrix matters, and whose likeliest tokens are far apart."""
    torch.manual_seed(5)
    model = GPT(GPTConfig(16, VOCAB, n_layer=2, n_head=4, n_kv_head=n_kv_head, n_embd=32))
    model.init_weights()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=1.0 if "wte" in name else 0.3)
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(1))


def new_cache(model: GPT, batch_size: int, seq_len: int) -> KVCache:
    config = model.config
    return KVCache(batch_size, config.n_kv_head, seq_len, config.head_dim, config.n_layer)


@pytest.mark.parametrize("n_kv_head", HEADS)
@pytest.mark.parametrize("chunks", [[12], [11, 1], [5, 7], [1] * 12, [4, 1, 3, 1, 1, 2]])
@torch.inference_mode()
def test_chunks_through_the_cache_give_the_logits_of_one_pass(n_kv_head: int, chunks: list[int]) -> None:
    model, x = lively(n_kv_head), ids(3, 12)
    cache = new_cache(model, 3, 12)
    seen, logits = 0, []
    for size in chunks:
        assert cache.get_pos() == seen
        logits.append(model(x[:, seen : seen + size], kv_cache=cache))
        seen += size
    assert cache.get_pos() == 12
    bound = logits_error(model, x)
    assert bound < 1e-3, "a mistake must be larger"
    torch.testing.assert_close(torch.cat(logits, dim=1), model(x), atol=bound, rtol=0)


@torch.inference_mode()
def test_last_only_is_the_last_of_all_with_and_without_a_cache() -> None:
    model, x = lively(), ids(2, 9)
    everything = model(x)
    assert model(x, last_only=True).shape == (2, 1, VOCAB)
    bound = logits_error(model, x)
    torch.testing.assert_close(model(x, last_only=True), everything[:, -1:], atol=bound, rtol=0)
    cache = new_cache(model, 2, 9)
    model(x[:, :4], kv_cache=cache, last_only=True)
    torch.testing.assert_close(
        model(x[:, 4:], kv_cache=cache, last_only=True), everything[:, -1:], atol=bound, rtol=0
    )


RAGGED = [[1, 2, 3], [4, 5, 6, 7, 8, 9, 10], [11], [1, 2, 3], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]


def written(model: GPT, prompt: list[int], count: int, **settings: Any) -> list[int]:
    """What the model writes without a cache, which every program must: no choice hangs on a rounding."""
    tokens = list(model.generate(prompt, count, **settings))
    read = torch.tensor([[*prompt, *tokens]])
    with torch.inference_mode():
        choices = model(read)[0, len(prompt) - 1 : -1]
    assert clearance(choices, tokens, **settings) > logits_error(model, read), "take another seed"
    return tokens


@pytest.mark.parametrize("n_kv_head", HEADS)
@pytest.mark.parametrize(("temperature", "top_k"), [(0.0, None), (1.0, None), (0.7, 5)])
def test_engine_and_plain_generate_agree_token_for_token(
    n_kv_head: int, temperature: float, top_k: int | None
) -> None:
    model = lively(n_kv_head)
    plain = written(model, [1, 2, 3], 24, temperature=temperature, top_k=top_k, seed=9)
    assert Engine(model).complete([[1, 2, 3]], 24, temperature, top_k, seed=9) == [plain]
    assert len(set(plain)) > 4


@torch.inference_mode()
def test_how_many_draws_the_cache_changes() -> None:
    """Chapter 50: of the order of one in a thousand, and of a few in a million among the likeliest fifty."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, 65536, n_layer=2, n_head=1, n_kv_head=1, n_embd=64))
    model.init_weights()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=1.0 if "wte" in name else 0.3)
    x = torch.randint(65536, (1, 12), generator=torch.Generator().manual_seed(1))
    cache = new_cache(model, 1, 12)
    found: dict[int | None, list[float]] = {None: [], 50: []}
    for t in range(12):
        cached, slow = model(x[:, t : t + 1], kv_cache=cache)[0, -1], model(x[:, : t + 1])[0, -1]
        for top_k, shares in found.items():
            shares.append(share_of_draws_that_differ(cached, slow, top_k))
            epsilon = (cached.double() - slow.double()).abs().max().item()
            assert shares[-1] <= ((top_k or 65536) - 1) * epsilon / 2 + 1e-12  # of the sum in float64
    assert 1e-4 < sum(found[None]) / 12 < 5e-3
    assert 1e-7 < sum(found[50]) / 12 < 2e-5


@pytest.mark.parametrize("max_tokens", [1, 3, 12])
def test_prompts_of_any_lengths_together_are_as_alone(max_tokens: int) -> None:
    model = lively()
    together = Engine(model).complete(RAGGED, max_tokens, seed=3)
    for i, prompt in enumerate(RAGGED):
        assert together[i] == written(model, prompt, max_tokens, seed=3 + i)
    assert together[0] != together[3] or max_tokens == 1  # one prompt, two seeds


def test_a_rows_text_does_not_depend_on_its_neighbours() -> None:
    model = lively()
    engine, first = Engine(model), written(model, [1, 2, 3], 10, seed=3)
    assert engine.complete([[1, 2, 3], [4, 5], [6]], 10, seed=3)[0] == first
    assert engine.complete([[1, 2, 3], [7, 8, 9, 10, 11]], 10, seed=3)[0] == first
    assert engine.complete([[1, 2, 3]], 10, seed=3)[0] == first
    assert engine.complete([[9], [1, 2, 3]], 10, seed=2)[1] == first


def count_tokens_fed(model: GPT) -> list[tuple[int, ...]]:
    """The shapes of all inputs the model is called with, from now on."""
    shapes: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(lambda _, args: shapes.append(tuple(args[0].shape)))
    return shapes


def test_one_prompt_is_read_once_for_all_its_samples() -> None:
    model = lively()
    shapes = count_tokens_fed(model)
    texts = Engine(model).complete([[1, 2, 3, 4]] * 3, 5, seed=1)
    assert shapes == [(1, 4)] + [(3, 1)] * 4  # and the last token is never fed
    assert texts == [written(model, [1, 2, 3, 4], 5, seed=seed) for seed in (1, 2, 3)]


def test_prompts_are_read_in_chunks_and_ended_rows_are_dropped() -> None:
    model = lively()
    shapes = count_tokens_fed(model)
    Engine(model).complete([[1, 2], [3] * 10], 3)
    # 2 of both; row 0 writes while row 1 reads on one by one; row 0 has ended: the rest of row 1 at once
    assert shapes == [(2, 2), (2, 1), (2, 1), (1, 6), (1, 1), (1, 1)]


def test_stop_tokens_end_a_row_and_are_not_given_out() -> None:
    model = lively()
    free = Engine(model).complete([[1, 2, 3], [4, 5, 6]], 16, temperature=0)
    stop = free[0][5]
    expected = [row[: row.index(stop)] if stop in row else row for row in free]
    assert Engine(model).complete([[1, 2, 3], [4, 5, 6]], 16, temperature=0, stop={stop}) == expected
    assert len(expected[0]) <= 5
    first = {row[0] for row in free}
    assert Engine(model).complete([[1, 2, 3], [4, 5, 6]], 16, temperature=0, stop=first) == [[], []]


def test_steps_have_a_place_for_every_prompt() -> None:
    steps = list(Engine(lively()).generate([[1], [2, 3, 4]], 2, temperature=0))
    assert [[token is not None for token in step] for step in steps] == [
        [True, False],
        [True, False],
        [False, True],
        [False, True],
    ]


def test_tokens_come_as_they_are_made() -> None:
    model = lively()
    shapes = count_tokens_fed(model)
    steps = Engine(model).generate([[1, 2]], 10)
    assert shapes == []
    next(steps)
    assert shapes == [(1, 2)]


@pytest.mark.parametrize(
    ("prompts", "max_tokens", "message"),
    [
        ([], 5, "0 prompts and max_tokens 5"),
        ([[1]], 0, "1 prompts and max_tokens 0"),
        ([[1], []], 5, "prompt 1 is empty; begin with"),
        ([[1, VOCAB]], 5, f"prompt 0 has tokens from 1 to {VOCAB}, the vocabulary 0 to {VOCAB - 1}; use"),
        ([[-1]], 5, "tokens from -1"),
        (
            [[1] * 100],
            62,
            "prompt 0 of 100 tokens and max_tokens 62 need 161 positions, .* have 160; shorten",
        ),
    ],
)
def test_impossible_requests_are_refused_at_once(
    prompts: list[list[int]], max_tokens: int, message: str
) -> None:
    engine = Engine(lively())
    with pytest.raises(ValueError, match=message):
        engine.generate(prompts, max_tokens)  # not iterated: the call itself refuses


def test_the_last_position_of_the_tables_can_be_used() -> None:
    assert len(Engine(lively()).complete([[1] * 100], 61, temperature=0)[0]) == 61


def test_plain_generate_refuses_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match="the prompt is empty"):
        next(lively().generate([], 3))


# The cache alone


def kv(batch: int = 2, heads: int = 3, positions: int = 1, head_dim: int = 4, seed: int = 0) -> Tensor:
    return torch.randn(batch, heads, positions, head_dim, generator=torch.Generator().manual_seed(seed))


def test_insert_returns_views_of_all_so_far_and_moves_on_at_the_last_layer() -> None:
    cache = KVCache(batch_size=2, num_heads=3, seq_len=5, head_dim=4, num_layers=2)
    k1, v1, k2, v2 = kv(positions=3, seed=1), kv(positions=3, seed=2), kv(seed=3), kv(seed=4)
    for layer in (0, 1):
        assert cache.get_pos() == 0
        k, v = cache.insert_kv(layer, k1 + layer, v1)
        assert torch.equal(k, k1 + layer)
        assert torch.equal(v, v1)
    assert cache.get_pos() == 3
    memory = cache.store
    k, v = cache.insert_kv(0, k2, v2)
    assert torch.equal(k, torch.cat((k1, k2), dim=2))
    assert torch.equal(v, torch.cat((v1, v2), dim=2))
    assert cache.get_pos() == 3
    assert cache.store is memory is not None
    assert k.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()  # a view, not a copy


def test_a_full_cache_says_so_and_keeps_what_it_has() -> None:
    cache = KVCache(2, 3, seq_len=5, head_dim=4, num_layers=1)
    cache.insert_kv(0, kv(positions=4), kv(positions=4))
    with pytest.raises(
        ValueError, match=r"2 positions after 4 make 6, .* room for 5; create it with seq_len=6"
    ):
        cache.insert_kv(0, kv(positions=2), kv(positions=2))
    assert cache.get_pos() == 4
    cache.insert_kv(0, kv(), kv())
    assert cache.get_pos() == 5
    with pytest.raises(ValueError, match="or reset"):
        cache.insert_kv(0, kv(), kv())


@pytest.mark.parametrize("wrong", [{"batch": 1}, {"heads": 1}, {"head_dim": 2}])
def test_keys_of_another_shape_are_refused(wrong: dict[str, int]) -> None:
    cache = KVCache(2, 3, 5, 4, 1)
    with pytest.raises(ValueError, match=r"takes \(2, 3, T, 4\)"):
        cache.insert_kv(0, kv(**wrong), kv(**wrong))
    with pytest.raises(ValueError, match=r"values \(2, 3, 2, 4\)"):
        cache.insert_kv(0, kv(), kv(positions=2))


def test_the_memory_has_the_values_dtype() -> None:
    cache = KVCache(2, 3, 5, 4, 1)
    k, v = cache.insert_kv(0, kv(), kv().bfloat16())
    assert k.dtype == v.dtype == torch.bfloat16


def filled(positions: int = 2, **sizes: int) -> KVCache:
    shape = {"batch_size": 1, "num_heads": 3, "seq_len": 4, "head_dim": 4, "num_layers": 1} | sizes
    cache = KVCache(**shape)
    for layer in range(shape["num_layers"]):
        x = kv(shape["batch_size"], shape["num_heads"], positions, shape["head_dim"])
        cache.insert_kv(layer, x, -x)
    return cache


def test_prefill_gives_every_row_a_copy() -> None:
    one, many = filled(), KVCache(3, 3, 9, 4, 1)
    many.prefill(one)
    assert many.get_pos() == 2
    assert one.store is not None
    assert many.store is not None
    for row in range(3):
        assert torch.equal(many.store[0, :, row, :, :2], one.store[0, :, 0, :, :2])
    one.store.zero_()
    assert many.store[0, :, :, :, :2].abs().min() > 0


def test_prefill_refuses_what_does_not_fit() -> None:
    for wrong in ({"num_heads": 2}, {"head_dim": 2}, {"num_layers": 2}, {"batch_size": 2}):
        with pytest.raises(ValueError, match="all but seq_len must be equal"):
            KVCache(3, 3, 9, 4, 1).prefill(filled(**wrong))
    with pytest.raises(ValueError, match=r"4 positions do not fit into 3; .* seq_len=4"):
        KVCache(3, 3, 3, 4, 1).prefill(filled(4))
    with pytest.raises(ValueError, match="other holds 2 positions and this one 2"):
        filled().prefill(filled())
    with pytest.raises(ValueError, match="other holds 0 positions"):
        KVCache(1, 3, 9, 4, 1).prefill(KVCache(1, 3, 9, 4, 1))


@torch.inference_mode()
def test_reset_makes_a_cache_as_good_as_new_in_the_same_memory() -> None:
    model = lively()
    cache = new_cache(model, 1, 8)
    model(ids(1, 8), kv_cache=cache)
    memory = cache.store
    cache.reset()
    assert cache.get_pos() == 0
    x = ids(2, 5)[1:]
    torch.testing.assert_close(model(x, kv_cache=cache), model(x), atol=logits_error(model, x), rtol=0)
    assert cache.store is memory


@torch.inference_mode()
def test_keep_selects_rows_in_order() -> None:
    model, x = lively(), ids(4, 7)
    cache = new_cache(model, 4, 7)
    model(x[:, :6], kv_cache=cache)
    cache.keep([3, 1])
    logits = model(x[[3, 1], 6:], kv_cache=cache)
    torch.testing.assert_close(logits, model(x)[[3, 1], 6:], atol=logits_error(model, x), rtol=0)
    assert cache.store is not None
    assert cache.store.size(2) == 2


def test_no_memory_before_the_first_insert_and_no_size_below_one() -> None:
    assert KVCache(1, 1, 10**9, 128, 100).store is None
    with pytest.raises(ValueError, match=r"seq_len 0.*at least 1"):
        KVCache(1, 1, 0, 4, 1)
