"""The numbers that chapters 40 and 50 state, computed again and looked up in their text."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from torch import nn

from nanochat.engine import Engine
from nanochat.muon import NEWTON_SCHULZ
from nanochat.normans_gpt import GPT, GPTConfig

LIT = Path(__file__).parent.parent / "lit"
OPTIMIZATION = " ".join((LIT / "40-optimization.md").read_text(encoding="utf-8").split())
GENERATION = " ".join((LIT / "50-generation.md").read_text(encoding="utf-8").split())
PROMPTS = " ".join((LIT / "50b-many-prompts.md").read_text(encoding="utf-8").split())
V = 65536


def of_depth(depth: int, T: int) -> GPT:
    heads = max(1, -(-64 * depth // 128))
    with torch.device("meta"):
        return GPT(GPTConfig(T, V, depth, heads, heads, 64 * depth))


def p(s: float) -> float:
    a, b, c = NEWTON_SCHULZ
    return a * s + b * s**3 + c * s**5


def five(s: float) -> list[float]:
    values = [s]
    for _ in range(5):
        values.append(p(values[-1]))
    return values


def steps_to(s: float, target: float, polynomial: list[float]) -> int:
    count = 0
    while s < target:
        s = sum(c * s ** (2 * i + 1) for i, c in enumerate(polynomial))
        count += 1
    return count


def test_the_table_of_singular_values() -> None:
    rows = re.findall(r"\| (\d\.\d+) \| ((?:\d\.\d{3} \| ){4}\d\.\d{3}) \|", OPTIMIZATION)
    assert len(rows) == 8
    for start, moved in rows:
        assert moved.split(" | ") == [f"{s:.3f}" for s in five(float(start))[1:]]


def test_where_singular_values_land() -> None:
    a, b, c = NEWTON_SCHULZ
    assert f"({a},\\ {b:.4f},\\ {c})" in OPTIMIZATION
    assert f"3.4445^5 = {a**5:.0f}$" in OPTIMIZATION
    assert f"p(1) = {p(1):.3f}" in OPTIMIZATION
    assert f"at 1.3 it is already {p(1.3):.2f}, and at 2 it is {p(2):.1f}" in OPTIMIZATION
    ends = [five(0.002 + 0.998 * i / 20000)[-1] for i in range(20001)]
    assert 0.68 < min(ends) < max(ends) < 1.21
    assert "every start between 0.002 and 1 is between 0.68 and 1.21" in OPTIMIZATION
    assert f"a start of 0.001 has only come to {five(0.001)[-1]:.2f}" in OPTIMIZATION
    cubic, quintic = steps_to(0.01, 0.7, [1.5, -0.5]), steps_to(0.01, 0.7, [15 / 8, -10 / 8, 3 / 8])
    assert f"the cubic takes {cubic} steps and the quintic {quintic}" in OPTIMIZATION
    assert f"$1/\\sqrt{{256}} = {1 / math.sqrt(256)}$" in OPTIMIZATION


def test_how_far_one_gradient_moves_an_embedding_row() -> None:
    """By the formula, and by AdamW itself, so late that bias correction is over."""
    for betas, said_how, said in (((0.8, 0.95), "that is", "4.99"), ((0.9, 0.999), "it is", "31.8")):
        b1, b2 = betas
        total = (1 - b1) / math.sqrt(1 - b2) / (1 - b1 / math.sqrt(b2))
        assert f"{total:.3g}" == said
        assert f"With $({b1}, {b2})$ {said_how} {said}" in OPTIMIZATION
        w = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        adamw = torch.optim.AdamW([w], lr=1.0, betas=betas, eps=1e-30, weight_decay=0.0)
        w.grad = torch.zeros_like(w)
        adamw.step()
        adamw.state[w]["step"] += 20000  # late in training
        before = w.item()
        for t in range(150):
            w.grad = torch.ones_like(w) if t == 0 else torch.zeros_like(w)
            adamw.step()
        assert math.isclose(before - w.item(), total, rel_tol=5e-3)


def test_small_gradients_count() -> None:
    for eps, said in ((1e-8, "0.09"), (1e-10, "0.91")):
        assert f"{1e-9 / (1e-9 + eps):.2f}" == said
        assert f"${said} \\eta$" in OPTIMIZATION


def test_the_table_of_learning_rates() -> None:
    for width, factor in ((256, "1.732"), (768, "1"), (1280, "0.7746")):
        with torch.device("meta"):
            model = GPT(GPTConfig(n_embd=width, n_head=2, n_kv_head=2, n_layer=1, vocab_size=8))
        head, wte = (group["lr"] for group in model.setup_optimizers()[0].param_groups)
        assert f"{wte / 0.2:.4g}" == factor
        assert f"| {width} | {factor} | {wte:.4g} | {head:.4g} | {768 / width:.1f} |" in OPTIMIZATION
    scale = (1280 / 768) ** -0.5
    assert f"gives the head {100 * (scale / 0.6 - 1):.0f} % more" in OPTIMIZATION
    assert f"the embedding {100 * (1 - scale):.0f} % less" in OPTIMIZATION


def orthogonalizing(rows: int, columns: int) -> int:
    m, n = sorted((rows, columns))
    return 5 * (4 * m * m * n + 2 * m**3)


def test_what_orthogonalizing_costs() -> None:
    C = 256
    assert orthogonalizing(C, C) == 30 * C**3
    assert orthogonalizing(4 * C, C) == orthogonalizing(C, 4 * C) == 90 * C**3
    for depth, T, tokens, said in (
        (20, 2048, 524288, "0.69 %"),
        (12, 2048, 524288, "0.30 %"),
        (4, 512, 512, "31 %"),
    ):
        model = of_depth(depth, T)
        muon = sum(orthogonalizing(*p.shape) for p in model.transformer.h.parameters())
        assert muon == 300 * depth * (64 * depth) ** 3
        share = 100 * muon / (model.estimate_flops() * tokens)
        assert f"{share:.2f} %" == said or f"{share:.0f} %" == said
        assert said in OPTIMIZATION
    assert f"it is {muon / 1e9:.1f} GFLOP beside {model.estimate_flops() * 512 / 1e9:.1f}" in OPTIMIZATION
    assert f"{orthogonalizing(V, C) / 1e9:.0f} GFLOP" in OPTIMIZATION
    assert f"= {orthogonalizing(V, C) / 1e9:.0f} GFLOP." in OPTIMIZATION
    assert f"is {model.estimate_flops() * 512 / 1e9:.0f} GFLOP" in OPTIMIZATION
    shapes = [p.shape for p in model.transformer.h.parameters()]
    assert f"depth 4 has {len(shapes)} matrices" in OPTIMIZATION
    assert f"they make {len(shapes) * 15} products" in OPTIMIZATION
    assert f"{len(set(shapes)) * 15} products" in OPTIMIZATION


def test_the_table_of_flops() -> None:
    for depth, T in ((4, 512), (4, 2048), (12, 2048), (20, 2048)):
        flops = of_depth(depth, T).estimate_flops()
        head, attention = 6 * V * 64 * depth / flops, 12 * depth * 64 * depth * T / flops
        digits = 3 if depth == 4 else 4
        line = (
            f"| {depth} | {T} | {flops / 10 ** int(math.log10(flops)):.{digits}f}e{int(math.log10(flops))} |"
        )
        assert f"{line} {100 * head:.0f} % | {100 * attention:.0f} % |" in OPTIMIZATION
    too_high = 1 / (1 - attention / 2) - 1  # of the work that is left, half of attention being masked
    assert f"and the count is {100 * too_high:.1f} % higher than the work" in OPTIMIZATION
    assert f"in all {of_depth(4, 2048).estimate_flops():,}." in OPTIMIZATION
    assert "119,537,664" in OPTIMIZATION
    assert 6 * (36_700_160 - 16_777_216) == 119_537_664


def test_positions_and_work_of_generation() -> None:
    prompt, new = 64, 128
    slow = sum(prompt + i for i in range(new))
    fast = prompt + new - 1
    model = of_depth(4, 512)
    blocks = sum(p.numel() for p in model.transformer.h.parameters())
    head = model.lm_head.weight.numel()
    assert f"that is {slow:,} positions" in GENERATION
    assert f"${prompt} + {new - 1} = {fast}$" in GENERATION
    assert f"{slow / fast:.0f} times fewer" in GENERATION
    assert f"holds {100 * head / (blocks + head):.0f} % of all weights that multiply" in GENERATION
    for name, through, scored in (("all logits", slow, slow), ("`last_only`", slow, new)):
        work = 2 * (through * blocks + scored * head) / 1e9
        assert f"| no cache, {name} | {through:,} | {scored:,} | {work:.0f} |" in GENERATION
    work = 2 * (fast * blocks + new * head) / 1e9
    assert f"| cache and `last_only` | {fast} | {new} | {work:.1f} |" in GENERATION
    read = 4 * (blocks + head)
    assert f"{(blocks + head) / 1e6:.1f} million of them" in GENERATION
    assert f"{read / 1e6:.1f} MB in fp32" in GENERATION
    assert f"at most {22e9 / read:.0f} tokens a second, or {2 * 22e9 / read:.0f} in bf16" in GENERATION
    assert f"512 positions {2 * 4 * 512 * 256 * 4 / 1e6:.1f} MB in fp32" in GENERATION


def test_passes_of_ragged_prompts() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, 32, 1, 1, 1, 8))
    model.init_weights()
    torch.nn.init.normal_(model.lm_head.weight)
    passes: list[int] = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    Engine(model).complete([[1 + n % 3] * n for n in range(5, 13)], 64)
    assert f"take {8 * 64} passes in groups, and {len(passes)} here" in PROMPTS


def test_small_claims_of_generation() -> None:
    assert round(1 / (60_000 * 1e-6)) == 17
    assert "one draw in seventeen" in GENERATION
    assert "numbers between 8 and 16 are $1/16$ apart" in GENERATION
    assert torch.nextafter(torch.tensor(8.0).bfloat16(), torch.tensor(9.0).bfloat16()).item() == 8 + 1 / 16
    assert 2**31 * (2**31 * 1.0001) < 2**63
