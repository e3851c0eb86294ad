"""GPT.estimate_flops against the reference's numbers and a count of what torch really multiplies."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from nanochat.normans_gpt import GPT, GPTConfig


def of_depth(depth: int, sequence_len: int = 2048, vocab_size: int = 65536) -> GPT:
    heads = max(1, -(-64 * depth // 128))
    with torch.device("meta"):
        return GPT(GPTConfig(sequence_len, vocab_size, depth, heads, heads, 64 * depth))


@pytest.mark.parametrize(
    ("depth", "sequence_len", "exactly", "rounded"),
    [
        (4, 2048, 144_703_488, "1.447e+08"),
        (4, 512, 125_829_120, "1.258e+08"),
        (12, 2048, 1_038_090_240, "1.0381e+09"),
        (20, 2048, 3_491_758_080, "3.4918e+09"),
    ],
)
def test_the_numbers_of_the_book(depth: int, sequence_len: int, exactly: int, rounded: str) -> None:
    flops = of_depth(depth, sequence_len).estimate_flops()
    assert flops == exactly
    assert type(flops) is int
    assert f"{flops:.{len(rounded) - 6}e}" == rounded


def test_shared_heads_count_as_the_smaller_matrices_they_are() -> None:
    full = GPT(GPTConfig(8, 32, 2, 4, 4, 32)).estimate_flops()
    shared = GPT(GPTConfig(8, 32, 2, 4, 1, 32)).estimate_flops()
    assert full - shared == 6 * 2 * 2 * (32 - 8) * 32  # layers, k and v, rows saved, columns


def test_a_counter_of_real_products_agrees() -> None:
    """Forward: 2 per weight and 4 C T per layer, attention computed in full as the convention has it."""
    model = GPT(GPTConfig(sequence_len=16, vocab_size=64, n_layer=2, n_head=2, n_kv_head=2, n_embd=32))
    model.init_weights()
    idx = torch.zeros(1, 16, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model(idx)
    assert counter.get_total_flops() * 3 == model.estimate_flops() * 16
