"""The numbers in answers to exercises for paper, computed. Those for a computer are sessions of the book."""

from __future__ import annotations

import math

import torch

from nanochat.loss import rows_per_chunk
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.step import Schedule, muon_momentum
from tests.test_book_numbers import bf16, meta, says


def softmax(*scores: float) -> list[float]:
    weights = [math.exp(score) for score in scores]
    return [weight / sum(weights) for weight in weights]


def weights_of(model: GPT) -> int:
    return sum(p.numel() for p in model.parameters())


def test_exercises_of_the_parts() -> None:
    config = GPTConfig()
    total, tables = weights_of(meta(config)), 2 * config.vocab_size * config.n_embd
    says(10, f"= {tables:,}$, and $12LC^2", f"= {total - tables:,}$, together {total:,}")
    says(10, f"The vocabulary has {100 * tables / total:.0f} %")
    saved = 2 * 768 * (768 - 128)
    says(
        10,
        f"= {saved:,}$ weights. A hidden",
        f"so {saved // (2 * 768)} more: {3072 + saved // (2 * 768):,} instead",
    )
    spared, block = 8192 * 256, 12 * 256**2
    says(10, f"= {spared:,}$ weights. A block has $12 C^2 = {block:,}$, so {spared / block:.2f} more")
    assert spared % block > 500_000  # "half a million weights left over"
    says(
        10,
        f"$\\cos 44 = {math.cos(44):.4f}$",
        f"$\\cos 1 = {math.cos(1):.4f}$",
        f"$\\cos 0.44 = {math.cos(0.44):.4f}$",
    )
    says(10, f"the sum is {math.cos(44) + math.cos(0.44):.4f} at 44", f"$\\cos 0.01 = {math.cos(0.01):.5f}$")
    assert max(range(1, 51), key=math.cos) == 44
    assert math.isclose(44 - 14 * math.pi, 0.018, abs_tol=5e-4)
    early, right = math.cos(bf16(257.0)), math.cos(257)
    says(10, f"Its cosine is {early:.2f} instead of {right:.2f}")
    assert 768**2 / (2 * 768 * 128) == 3  # "3 times as many"


def test_exercises_of_the_first_weights() -> None:
    for size in (4096, 8192, 50257):
        says(20, f"{math.log(size):.4f}")
    assert (bf16(1 - 0.003), bf16(1 + 0.003)) == (1 - 2**-8, 1)
    says(20, f"$2^{{-8}} = {2**-8:.4f}$ apart. 0.997 lies between {1 - 2**-8:.5f} and 1")
    above = 1 - torch.distributions.Normal(0.0, 16.0).cdf(torch.tensor(15.0)).item()
    assert 1 / 7 < above < 1 / 5  # "one in six"
    says(20, f"above {15 * math.tanh(1):.1f} behind the cap")


def test_exercises_of_the_forward_pass() -> None:
    leak = [sum(softmax(*scores)[: n + 1]) for n, scores in enumerate([(1, 1, 2**0.5), (1, -1, 0)])]
    first, second = softmax(1, -1, 0)[:2]
    says(30, f"keeps {leak[0]:.4f} of its weight", f"${first:.4f} + {second:.4f} = {leak[1]:.4f}$")
    for size, said in ((4, 0.539), (128, 0.989)):
        share = softmax(*(size**0.5 * math.cos(d - 1) for d in range(4)))[1]
        assert round(share, 3) == said
        says(30, f"{said}")
    says(30, f"that is {2 * math.cos(1):.4f}, 2, {2 * math.cos(1):.4f} and ${2 * math.cos(2):.4f}$")
    ratio = (1 / 0.99 - 1) / 8191
    says(30, f"= {ratio * 1e6:.3f} \\cdot 10^{{-6}}$ and $c = {-math.log(ratio) / 2:.2f}$")
    for eta in (0.1, 0.5, 1.5):
        assert math.isclose((3 + eta) ** 2 + (4 - eta) ** 2, 25 - 2 * eta + 2 * eta**2)


def test_exercises_of_optimization() -> None:
    rate = 0.004 * (768 / 1024) ** 0.5
    says(40, f"halves it: {rate:.6f}. As $1/C$ it would be {0.004 * 3**0.5 / 4:.6f}")
    flops = meta(GPTConfig(256, 8192, 2, 2, 2, 256)).estimate_flops()
    says(40, f"= {flops:,}$ operations a token, so {100e9 / flops:,.0f} tokens a second")
    says(40, f"= {5 * (64 + 128)} C^3$, instead of $90 C^3$: {960 / 90:.1f} times")
    says(40, f"= {0.05 + 0.95 * 0.05:.4f}$")
    for rows, said in ((2, 2**-0.5), (3, 3**-0.5)):
        says(40, f"{said:.4f}")
        assert rows**-0.5 == said


def test_exercises_of_generation() -> None:
    slow, fast = 100 * 1000 + 100 * 99 // 2, 1000 + 99
    says(50, f"= {slow:,}$, and $1000 + 99 = {fast:,}$, a {slow / fast:.0f}th")
    says(50, f"{math.exp(2):.3f}, {math.e:.3f} and 1 are divided by {math.exp(2) + math.e + 1:.3f}")
    for scores in ((2, 1, 0), (4, 2, 0)):
        says(50, ", ".join(f"{p:.3f}" for p in softmax(*scores)))
    says(50, " and ".join(f"{p:.3f}" for p in softmax(2, 1)), f"one in $2^{{31}}/4096 = {2**31 // 4096:,}$")


def test_exercises_of_the_loss() -> None:
    says(35, f"$4096 \\cdot 8192 \\cdot 4 = {4096 * 8192 * 4 / 1e6:.0f}$ MB")
    assert rows_per_chunk(4096, 8192, 4) == 2048
    for rows, said in ((512, "in all 68 MB"), (4096, "it keeps 71 MB")):
        assert f"{4 * (rows * 256 + 65536 * 256) / 1e6:.0f} MB" in said
        says(35, said)
    says(35, f"a copy is {4096 * 65536 * 4 / 1e6:,.0f} MB")


def test_exercises_of_decoding_and_of_bits() -> None:
    multiplied = weights_of(meta(GPTConfig(256, 8192, 2, 2, 2, 256))) - 8192 * 256
    says(51, f"= {multiplied:,}$ weights: {4 * multiplied / 1e6:.1f} MB in float32")
    says(51, f"so {40e9 / (4 * multiplied):,.0f} tokens a second", f"{40e9 / multiplied:,.0f}, in int8")
    says(
        51,
        f"int8 by $1/254 = {1 / 254:.4f}$",
        f"$2^{{-8}} = {2**-8:.4f}$",
        f"$4 + 16/32 = {4 + 16 / 32}$ bits",
    )
    says(64, f"$3.8/(\\ln 2 \\cdot 4.3) = {3.8 / (math.log(2) * 4.3):.2f}$", f"$13/4.8 = {13 / 4.8:.2f}$")


def test_exercises_of_the_tokenizer_and_the_loader() -> None:
    rows, body = 2 * 8192 * 256, 12 * 4 * 256**2
    says(62, f"$2VC = {rows:,}$, against {body:,}: {rows / body:.2f} times")
    says(63, f"{100 / 257:.2f} % and {100 / 9:.1f} %")
    full, rest = divmod(1000 - 1, 8)
    says(63, f"{1000 - 1} predictions", f"fill {full} sequences and {rest} places of one more")
    assert 8 - rest == 1
    text, places = 10 + 300 + 50, 4 * 256
    says(
        63, f"are {places:,} places for {text} tokens, {100 * text / places:.0f} %", f"has {text + 3} tokens"
    )
    says(63, f"{text + 2} predictions: one full row and {text + 2 - 256} places")
    tokens = 40_000 / 4.3
    says(
        63,
        f"is {tokens:,.0f} tokens or {tokens / 256:.0f} sequences",
        f"holds {1024 * 256 / tokens:.0f} speeches",
    )


def test_exercises_of_the_training_loop() -> None:
    says(66, f"$32 \\cdot 2048 = {32 * 2048:,}$ tokens a pass, so {524288 // 65536} passes")
    schedule = Schedule(warmup=0.1, warmdown=0.2, final=0.1)
    says(
        66, f"$(0 + 0.01)/0.1 = {schedule.multiplier(0, 0.01):g}$", f"= {schedule.multiplier(0.9, 0.01):.2f}$"
    )
    length = math.hypot(1.5, 0.2)
    says(66, f"of length {length:.3f}: clipped it is $({1.5 / length:.3f}, {0.2 / length:.3f})$")
    degrees = [math.degrees(math.atan2(y, x)) for x, y in ((1.5, 0.2), (0.5, 0.2))]
    says(66, f"{degrees[0]:.1f} degrees from", f"points {degrees[1]:.1f} degrees away")
    assert (1 / 2) / (1 / 5) == 2.5
    says(66, f"$20 \\cdot 5,767,168 / 4096 = {20 * 5767168 // 4096:,}$", f"= {muon_momentum(150):g}$")


def test_exercises_of_compiling() -> None:
    assert round(20 / (0.3 - 0.2)) == 200
    says(36, "so after 200 steps", f"$20 + 200 \\cdot 0.2 = {20 + 200 * 0.2:.0f}$ seconds")
    says(36, f"{2**27 // 4096:,} pages, or {2**27 // 2**21}")
