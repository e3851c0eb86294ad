"""Numbers that the chapters state about the model and the loss are computed here, and looked up in the text.

Each test computes a value, writes it the way the chapter does, and demands that the chapter says just that.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nanochat.loss import MOST_TILES, SMALLEST_CHUNK, SMALLEST_TILE, rows_per_chunk, rows_per_tile
from nanochat.normans_gpt import GPT, SOFTCAP, GPTConfig

LIT = Path(__file__).resolve().parents[1] / "lit"
V = 65536


@cache
def prose(chapter: int) -> str:
    """A chapter as one line, with LaTeX's thousands {,} and thin spaces made plain."""
    (path,) = LIT.glob(f"{chapter:02d}-*.md")
    text = path.read_text(encoding="utf-8").replace("{,}", ",").replace("\\,", " ").replace("−", "-")
    return re.sub(r"\s+", " ", text)


def says(chapter: int, *sentences: str) -> None:
    for sentence in sentences:
        assert sentence in prose(chapter), f"chapter {chapter} does not say: {sentence}"


def bf16(x: float) -> float:
    return torch.tensor(x).bfloat16().item()


def spacing(x: float) -> float:
    """From x to the next larger bfloat16."""
    bits = torch.tensor([x]).bfloat16().view(torch.int16)
    return (bits + 1).view(torch.bfloat16).item() - bf16(x)


def meta(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def test_chapter_10_sizes() -> None:
    model = meta(GPTConfig(512, V, 4, 2, 2, 256))
    n = sum(p.numel() for p in model.parameters())
    table = model.transformer.wte.weight.numel()
    says(10, f"storing them in every checkpoint ({2 * 10 * 2048 * 64 * 2 / 1e6:.1f} MB at $T = 2048$")
    says(10, f"${2 * table:,} + {n - 2 * table:,} = {n:,}$")
    says(10, f"{table / 1e6:.1f} million of {n / 1e6:.1f} million parameters")
    assert 0.9 < 2 * table / n < 0.92  # "nine tenths of it"
    cached = 2 * 12 * 2048 * 6 * 128
    says(10, f"{cached / 1e6:.1f} million numbers, {2 * cached / 1e6:.0f} MB in bf16")
    says(10, f"reads {64 * 2 * cached / 1e9:.1f} GB of cache")
    large = meta(GPTConfig(2048, V, 12, 6, 6, 768))
    every = sum(p.numel() for p in large.parameters())
    read = every - large.transformer.wte.weight.numel()
    says(10, f"Of the weights ({every / 1e6:.0f}M parameters", f"the step reads {read / 1e6:.0f}M")
    says(10, f"{2 * read / 1e6:.0f} MB in bf16, once for all users")
    says(10, f"that is {9 * 256:,} against {12 * 256**2:,}, or {100 * 9 * 256 / (12 * 256**2):.1f} %")
    assert pytest.approx(50) == 0.2 / 0.004  # "a learning rate fifty times the head's"


def test_chapter_10_tables_and_bfloat16() -> None:
    numbers = 10 * 2048 * 64
    says(10, f"{numbers / 1e6:.1f} million numbers, {2 * numbers / 1e6:.1f} MB in bf16 against")
    says(10, f"against {4 * numbers / 1e6:.1f} MB")
    assert spacing(5000.0) == 32
    assert 1 - bf16(1 - 2**-8) == 2**-8
    says(10, "between 4096 and 8192 its numbers are 32 apart", "Just below 1 its numbers are $2^{-8}$ apart")
    angle = torch.linspace(0, 2 * math.pi, 20001, dtype=torch.float64)
    cos, sin = (f(angle).bfloat16().double() for f in (torch.cos, torch.sin))
    worst = ((cos**2 + sin**2).sqrt() - 1).abs().max().item()
    assert 0.0025 < worst < 0.0035  # "by up to about 0.3 %"


def test_chapter_20_first_losses() -> None:
    says(20, f"For $V = 65,536$ that is {math.log(V):.4f} nats, for $V = 4096$ it is {math.log(4096):.4f}")
    torch.manual_seed(0)
    logits, targets = torch.randn(64, V), torch.randint(0, V, (64,))
    excess = F.cross_entropy(logits, targets).item() - math.log(V) + logits[range(64), targets].mean().item()
    assert excess == pytest.approx(0.5, abs=0.01)
    says(20, r"expected loss $\ln V + \tfrac12$")


def test_chapter_20_bfloat16_loses_short_steps() -> None:
    numbers = V * 1280
    says(20, f"is {8 * numbers / 1e6:.0f} MB instead of {16 * numbers / 1e6:,.0f} MB")
    assert spacing(1.0) == spacing(1.9) == 2**-7
    assert spacing(0.5) == 2**-8
    says(20, f"$2^{{-7}} = {2**-7:.4f}$ apart")
    w = torch.ones(1, dtype=torch.bfloat16)
    for _ in range(1000):
        w -= 0.0015
    assert w.item() == 1
    says(
        20,
        "Subtract 0.0015 from 1.0 in bf16 a thousand times and the result is 1.0, where it should be $-0.5$",
    )
    assert bf16(1 + 0.99 * 2**-8) == 1 == bf16(1 - 0.99 * 2**-9)
    assert bf16(1 + 1.01 * 2**-8) != 1 != bf16(1 - 1.01 * 2**-9)
    assert pytest.approx(50, rel=0.05) == 0.2 / 2**-8  # "fifty times that", and "below 2 % of the peak"
    for w0 in (0.126, 0.3, 0.9):
        assert bf16(bf16(w0) + 0.0003) == bf16(w0) == bf16(bf16(w0) - 0.0003)
    assert bf16(bf16(0.05) + 0.0003) != bf16(0.05)
    says(20, f"at least $2^{{-11}} = {2**-11:.5f}$", r"Every weight above $\tfrac18$")


def test_chapter_20_spreads() -> None:
    def sigma(fan_in: int, fan_out: int) -> float:
        return fan_in**-0.5 * min(1.0, (fan_out / fan_in) ** 0.5)

    for fan_in, fan_out in ((768, 768), (768, 3072), (768, 128), (3072, 768)):
        says(20, f"| {fan_in} → {fan_out} | {sigma(fan_in, fan_out):.4f} |")
    assert pytest.approx(2500) == 0.02**-2
    says(20, r"That is $1/\sqrt{2500}$", f"where $1/\\sqrt{{256}} = {256**-0.5:.4f}$")
    step = 0.2 * (768 / 256) ** 0.5
    says(20, f"$0.2\\sqrt{{768/256}} = {step:.2f}$", f"by about {math.degrees(math.atan(step)):.0f} degrees")


def test_chapter_20_types_that_do_not_meet() -> None:
    """Without autocast a bf16 stream meets fp32 weights in the first product, and that is an error."""
    model = GPT(GPTConfig(8, 16, 1, 1, 1, 4))
    model.init_weights()
    model.transformer.wte.to(dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        model(torch.zeros(1, 2, dtype=torch.long))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(torch.zeros(1, 2, dtype=torch.long))


def test_chapter_30_rotation() -> None:
    for t in (1, 2):
        says(
            30,
            f"| {t} | $({math.cos(t):.4f}, {-math.sin(t):.4f})$ | $({math.sin(t):.4f}, {math.cos(t):.4f})$ |",
        )
    says(30, f"the score is $\\cos 2 = {math.cos(2):.4f}$")
    slowest = 10000 ** (-126 / 128)
    says(
        30,
        f"$10000^{{-126/128}} = {slowest:.6f}$",
        f"about {round(2 * math.pi / slowest, -2):,.0f} positions",
    )
    assert pytest.approx(9, abs=0.1) == 1.2**12  # "nine times longer"


def test_chapter_30_attention_by_hand() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    w_k = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    q, k = (F.rms_norm(y, (2,)) for y in (x, x @ w_k.T))
    scores = q @ k.T / 2**0.5
    masked = scores.masked_fill(torch.ones(3, 3).triu(1).bool(), -math.inf)
    weights = masked.softmax(-1)
    y = weights @ x

    def plain(number: float) -> str:
        return f"{number:.4f}".rstrip("0").rstrip(".")

    for row in (1, 2):
        w, out = ([plain(number) for number in t[row].tolist()] for t in (weights, y))
        says(30, f"| query {row} | {' | '.join(w)} | $({', '.join(out)})$ |")
    e = [math.exp(s) for s in scores[2].tolist()]
    says(30, f"${e[0]:.4f}$, $1$ and ${e[2]:.4f}$, which sum to {sum(e):.4f}")
    e = [math.exp(s) for s in scores[1].tolist()]
    says(30, f"$e^1 = {e[0]:.4f}$ and $e^{{-1}} = {e[1]:.4f}$, which sum to {e[0] + e[1]:.4f}")
    leak = scores[0].softmax(-1)
    out = (leak @ x).tolist()
    says(30, f"a weight of {leak[0]:.4f} and returned $({out[0]:.4f}, {out[1]:.4f})$")


def test_chapter_30_qk_norm() -> None:
    for size in (128, 32, 16, 4):
        surest = 1 / (1 + 2047 * math.exp(-2 * size**0.5))
        digits = 7 if size == 128 else 3
        says(30, f"| {size} | ±{size**0.5:.2f} | {surest:.{digits}f} |")
    assert math.exp(11) == pytest.approx(60_000, rel=0.01)
    assert spacing(100.0) == 0.5
    says(30, f"about {round(6 * 2048**2 * 4 / 1e6):d} MB for one layer")


def test_chapter_30_bends() -> None:
    for name, f in (("relu", F.relu), ("GELU", F.gelu), ("relu²", lambda h: F.relu(h).square())):
        values = [float(f(torch.tensor(h, dtype=torch.float64))) for h in (-1.0, 0.1, 1.0, 2.0, 3.0)]
        row = re.search(
            rf"\| {name} \| [^|]* \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \| ([^|]*) \|", prose(30)
        )
        assert row is not None
        assert [float(cell) for cell in row.groups()] == pytest.approx(values, abs=6e-4)
    torch.manual_seed(0)
    h = F.relu(torch.randn(10**6, dtype=torch.float64))
    assert h.square().mean().item() == pytest.approx(0.5, abs=0.01)
    assert h.square().square().mean().sqrt().item() == pytest.approx(1.22, abs=0.02)
    assert h.square().mean().sqrt().item() == pytest.approx(0.71, abs=0.01)
    assert torch.tensor(256.0).half().square().isinf()
    says(
        30,
        "$\\sqrt{3/2} = 1.22$, against $\\sqrt{1/2} = 0.71$",
        "squares to 65,536, past float16's largest number, 65,504",
    )


def test_chapter_30_embedding_and_cap() -> None:
    says(30, f"scatters by $1/\\sqrt{{2C}}$, that is {100 / math.sqrt(2 * 256):.1f} % for $C = 256$")
    says(30, f"$0.2 \\cdot \\sqrt{{768/256}} = {0.2 * 3**0.5:.2f}$ on a weight of size 1")
    assert V / 512 == 128
    assert SOFTCAP == 15
    raw = [1, 5, 15, 30, 45]
    says(30, "| capped | " + " | ".join(f"{15 * math.tanh(z / 15):.4f}" for z in raw) + " |")
    says(30, "| slope | " + " | ".join(f"{1 - math.tanh(z / 15) ** 2:.4f}" for z in raw) + " |")
    worst = math.log1p((V - 1) * math.exp(30))
    smallest = math.exp(-30) / (V - 1)
    says(30, f"is ${smallest * 1e18:.1f} \\cdot 10^{{-18}}$ and a loss of {worst:.1f}")
    assert math.exp(-worst) == pytest.approx(smallest)
    says(30, f"a loss of ${math.log1p((V - 1) * math.exp(-30)) * 1e9:.1f} \\cdot 10^{{-9}}$")
    assert (15 - 14) / spacing(14.5) == 16


def test_chapter_35_bytes() -> None:
    logits = 512 * V
    says(35, f"$512 \\cdot 65,536 = {logits:,}$ numbers, {4 * logits / 1e6:.0f} MB in fp32")
    n = sum(p.numel() for p in meta(GPTConfig(512, V, 4, 2, 2, 256)).parameters())
    says(35, f"{n / 1e6:.1f} million numbers, {4 * n / 1e6:.0f} MB")
    says(35, f"four times $R V$ numbers: {4 * 4 * logits / 1e6:.0f} MB")
    copy = 4 * 32 * 2048 * V
    says(35, f"{copy / 1e9:.1f} GB for each copy and {4 * copy / 1e9:.0f} GB at the peak")
    rows = rows_per_chunk(32 * 2048, V, 4)
    says(35, f"{rows:,} rows, {4 * rows * V / 1e9:.1f} GB in fp32, an eighth")
    says(35, f"{SMALLEST_CHUNK / 1e6:.0f} MB: less is not worth the trouble", "$2^{26}$ bytes of raw logits")
    says(35, f"that is {rows_per_chunk(512, V, 4)} rows in fp32 and {rows_per_chunk(512, V, 2)} in bf16")
    says(35, f"at $V = 4096$ it is {rows_per_chunk(1, 4096, 4):,} rows and more")
    assert SMALLEST_CHUNK == 2**26
    assert 32 * 2048 * V * 4 / SMALLEST_CHUNK == 256
    says(35, "would make 256 chunks of it")
    held = rows + 2.25 * rows_per_tile(rows, V)
    says(35, f"is {4 * 32 * 2048 / held:.0f} times lower at the end")
    assert MOST_TILES == 16
    assert pytest.approx(1 / 7, abs=0.003) == 2.25 / MOST_TILES
    assert SMALLEST_TILE * 4 == SMALLEST_CHUNK


def test_chapter_35_arithmetic_and_rounding() -> None:
    flops = meta(GPTConfig(512, V, 4, 2, 2, 256)).estimate_flops()
    head = V * 256
    says(35, f"{flops / 1e6:.1f} million that a token costs", f"{100 * 2 * head / flops:.0f} % more work")
    says(35, f"$VC = {head / 1e6:.1f}$ million of the {(head + 12 * 4 * 256**2) / 1e6:.1f} million weights")
    assert spacing(11.0) == 1 / 16
    assert math.exp(1 / 32) == pytest.approx(1.03, abs=0.003)
    says(35, f"$1/510$, with two of 512 targets ignored, would become {bf16(1 / 510):.8f}")
    says(35, f"every gradient would be {100 * (510 * bf16(1 / 510) - 1):.1f} % too large")
    assert bf16(256.0 + 1) == 256
    says(35, f"$e^{{15}} = {math.exp(15) / 1e6:.1f} \\cdot 10^6$")
