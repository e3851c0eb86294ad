"""The tests that nanochat/evidence/declared.toml names: claims that no seed can make surer."""

from __future__ import annotations

import pytest
import torch

from nanochat.engine import KVCache
from nanochat.evidence.procedures import PROCEDURES
from nanochat.evidence.settings import Setting, shrunk, varied
from nanochat.evidence.variations import build
from tests.bounds import sum_error

TINY = shrunk(Setting())


def numbers(procedure: str, *changes: str, seed: int = 0) -> dict[str, float]:
    """What a procedure of the experiments measures for a tiny model with changes."""
    setting = varied(TINY, changes)
    return PROCEDURES[procedure](setting, seed, torch.device("cpu"))


def test_a_cache_has_bytes_in_proportion_to_its_heads() -> None:
    held = {}
    for heads in (1, 3):
        model = build(varied(TINY, [f"n_kv_head={heads}", "embedding_dtype=float32"]), 0)
        config = model.config
        cache = KVCache(2, config.n_kv_head, 8, config.head_dim, config.n_layer)
        with torch.inference_mode():
            model(torch.zeros(2, 5, dtype=torch.long), kv_cache=cache)
        assert cache.store is not None
        held[heads] = cache.store.nbytes
    assert held[3] == 3 * held[1]


def test_only_an_unsaved_buffer_moves_stays_and_loads_at_another_length() -> None:
    found = {}
    for tables in ("buffer", "saved buffer", "parameter", "attribute"):
        seen = numbers("hold the tables", f"tables={tables}", "steps=20")
        found[tables] = bool(seen["follows .to()"]), seen["table moved by"] == 0, bool(seen["loads at 2 T"])
    assert found == {
        "buffer": (True, True, True),
        "saved buffer": (True, True, False),
        "parameter": (True, False, False),
        "attribute": (False, True, True),
    }


def test_an_optimizer_moves_a_table_that_is_a_parameter() -> None:
    """By more than decay alone would: gradients reach it."""
    rate, decay, steps = 0.01, 0.1, 20
    moved = numbers("hold the tables", "tables=parameter", f"steps={steps}")["table moved by"]
    assert moved > 2 * (1 - (1 - rate * decay) ** steps)


@pytest.mark.parametrize("passes", [2, 4, 16])
@pytest.mark.numerics
def test_the_gradient_of_several_passes_is_that_of_one_batch(passes: int) -> None:
    """To the last digits of float64; under bf16 both are as far from it as rounding is."""
    seen = [numbers("compare accumulation", f"passes={passes}", seed=seed) for seed in range(3)]
    for one in seen:
        assert one["float64"] < 1e-12
        assert one["float32"] < sum_error(passes * TINY.batch_size * TINY.sequence_len)
    ratios = [one["bf16, passes over one batch"] for one in seen]
    assert sum(ratios) / len(ratios) < 1.05


@pytest.mark.parametrize("passes", [2, 4, 16])
@pytest.mark.numerics
def test_without_the_division_the_gradient_is_longer_by_the_number_of_passes(passes: int) -> None:
    longer = numbers("compare accumulation", f"passes={passes}")["not divided"]
    assert longer == pytest.approx(passes, rel=sum_error(passes * TINY.batch_size * TINY.sequence_len))


@pytest.mark.numerics
def test_bfloat16_tables_move_a_logit_by_less_than_a_thousandth() -> None:
    for seed in range(3):
        seen = numbers("measure rounding", "sequence_len=64", seed=seed)
        assert 0 < seen["logit error, first T"] < 1e-3
        assert 0 < seen["logit error, at 8 T"] <= seen["logit error, first T"]


def test_bfloat16_halves_the_bytes() -> None:
    half = numbers("measure rounding", "dtype=bfloat16", "embedding_dtype=bfloat16")
    whole = numbers("measure rounding", "embedding_dtype=float32", "table_dtype=float32")
    for name in ("embedding, bytes", "tables, bytes"):
        assert whole[name] == 2 * half[name]
