"""Explanations that the chapters give in words, computed: not only what a number is, but why it is that.

Each test computes what a sentence says and demands the sentence. A sentence that says the opposite fails it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nanochat.gpt import GPT as Reference
from nanochat.gpt import GPTConfig as ReferenceConfig
from nanochat.muon import orthogonalize
from nanochat.normans_gpt import GPT, SOFTCAP, CausalSelfAttention, GPTConfig, apply_rotary_emb, norm
from tests.test_book_numbers import LIT, bf16, says
from tests.test_loss import Watch

T, D = 32, 64


def tables(length: int, channels: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Cosine and sine of every angle, not rounded to bfloat16; (1, length, 1, channels / 2)."""
    pair = torch.arange(0, channels, 2, dtype=torch.float64)
    angle = torch.outer(torch.arange(length, dtype=torch.float64), 10000 ** (-pair / channels))
    return angle.cos().to(dtype)[None, :, None, :], angle.sin().to(dtype)[None, :, None, :]


def turned(x: Tensor) -> Tensor:
    """x (T, D), turned by its positions."""
    return apply_rotary_emb(x[None, :, None, :], *tables(x.size(0), x.size(1)))[0, :, 0]


def scores(q: Tensor, k: Tensor) -> Tensor:
    return q @ k.T / q.size(1) ** 0.5


def past(length: int) -> Tensor:
    return torch.ones(length, length, dtype=torch.bool).tril()


def weights(s: Tensor) -> Tensor:
    return s.masked_fill(~past(s.size(0)), -math.inf).softmax(-1)


def test_what_a_bias_can_do_in_attention() -> None:
    """Chapter 10: one on the keys shifts all scores of a query alike, unless they are turned."""
    torch.manual_seed(0)
    q, k = torch.randn(2, T, D, dtype=torch.float64)
    b = torch.randn(D, dtype=torch.float64)
    plain = weights(scores(q, k))
    assert (weights(scores(q, k + b)) - plain).abs().max() < 1e-12
    assert (weights(scores(q + b, k)) - plain).abs().max() > 0.1
    added = scores(q + b, k) - scores(q, k)
    torch.testing.assert_close(added, added[:1].expand(T, T))  # the same content, whoever asks
    says(
        10,
        "Only a bias $b_q$ on the queries counts there",
        "can prefer some content whoever asks. A bias on the keys cannot do that",
    )
    assert (
        weights(scores(turned(q), turned(k + b))) - weights(scores(turned(q), turned(k)))
    ).abs().max() > 0.1
    everywhere = torch.randn(D, dtype=torch.float64).expand(T, D)  # one query, asked from every position
    added = scores(turned(everywhere), turned(k + b)) - scores(turned(everywhere), turned(k))
    for distance in range(T):
        along = added.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))  # whatever the key holds
    assert added.diagonal(0)[0] - added.diagonal(-5)[0] != pytest.approx(0, abs=0.1)
    says(10, "a preference for some distances $n - m$ over others, which the query chooses")


def seeing_only(window: int) -> Callable[..., Tensor]:
    """Attention that reaches no further back than `window` positions, the own one included."""
    attend = F.scaled_dot_product_attention

    def near(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        length = q.size(2)
        return attend(q, k, v, attn_mask=past(length) & torch.ones(length, length).triu(1 - window).bool())

    return near


def error_of_rounded_tables(model: GPT, length: int) -> Tensor:
    """By position, how far the book's tables move a logit on average, against float32; (length,)."""
    ids = torch.randint(model.config.vocab_size, (1, length))
    with torch.no_grad():
        rounded = model(ids)
        model.cos, model.sin = tables(model.cos.size(1), model.config.head_dim, torch.float32)
        return (model(ids) - rounded).abs().mean(dim=-1)[0]


def test_attention_averages_the_error_of_rounded_tables_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chapter 94 on why far positions are better off: without more to average over they are not."""
    length, far = 64, 8 * 64

    def ratio() -> float:
        """The error at the end over the one around position `length`, mean of four models."""
        errors = []
        for seed in range(4):
            torch.manual_seed(seed)
            model = GPT(GPTConfig(length, 256, 2, 2, 2, 64))
            model.init_weights()
            for p in model.parameters():
                if not p.any():
                    torch.nn.init.normal_(p, std=0.05)
            errors.append(error_of_rounded_tables(model, far))
        error = torch.stack(errors).mean(dim=0)
        return float(error[-length // 2 :].mean() / error[length // 2 : length].mean())

    assert ratio() < 0.7
    monkeypatch.setattr(F, "scaled_dot_product_attention", seeing_only(length))
    assert 0.8 < ratio() < 1.25
    says(10, "at far positions less than at near ones, is shown by tests")


def travelled(steps: int, **how: Any) -> list[float]:
    """How far AdamW has moved a weight, in learning rates, after each step: one gradient, late, then none."""
    w = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    adamw = torch.optim.AdamW([w], lr=1.0, eps=1e-30, weight_decay=0.0, **how)
    w.grad = torch.zeros_like(w)
    adamw.step()
    adamw.state[w]["step"] += 20000
    way = []
    for step in range(steps):
        w.grad = torch.full_like(w, float(step == 0))
        adamw.step()
        way.append(-w.item())
    return way


def test_a_row_goes_on_moving_after_its_token() -> None:
    """Chapters 10, 20 and 30: a step without a gradient is no step without a movement."""
    way = travelled(100, betas=(0.8, 0.95))
    assert way[0] < 1 < way[9] < 0.9 * way[-1]
    assert way[19] > 0.98 * way[-1]
    assert way[-1] == pytest.approx(5, abs=0.1)
    says(10, "a batch of 512 tokens has one for at most 512 of the $V$ rows")
    says(
        20,
        "A weight that has had no gradient yet does not move",
        "(One that had some goes on for a while without",
    )
    says(30, "and goes on for some twenty steps after it", "moves its row by [five learning rates]")


def test_the_first_sizes_of_rows() -> None:
    torch.manual_seed(0)
    off = (torch.randn(65536, 256).square().mean(dim=1).sqrt() - 1).abs()
    assert off.square().mean().sqrt().item() == pytest.approx(0.044, abs=0.001)
    assert (off < 0.044).float().mean().item() == pytest.approx(2 / 3, abs=0.02)
    assert 0.99 < (off < 0.13).float().mean().item() < 1
    says(
        30,
        "that is 4.4 % for $C = 256$: two rows in three are closer to 1 than that",
        "nearly all closer than 13 %",
    )


@pytest.mark.parametrize("length", [1.0, 2.0, 10.0])
def test_what_turns_a_long_row_less(length: float) -> None:
    """Chapter 30: a row's gradient falls with its length; AdamW's step does not, but its turn does."""

    def step(size: float, optimizer: type[torch.optim.Optimizer], **how: Any) -> tuple[float, float, float]:
        """Lengths of the gradient and of the step, and the tangent of the turn."""
        torch.manual_seed(1)
        start = size * F.rms_norm(torch.randn(256, dtype=torch.float64), (256,))
        row = torch.nn.Parameter(start.clone())
        torch.nn.functional.linear(norm(row), torch.randn(1, 256, dtype=torch.float64)).sum().backward()
        assert row.grad is not None
        assert abs(float(row.grad @ start)) < 1e-6 * float(row.grad.norm() * start.norm())  # a right angle
        optimizer([row], **how).step()  # type: ignore[call-arg]
        moved = row.detach() - start
        along = float(moved @ start / start.norm())
        across = float((moved - along * start / start.norm()).norm())
        return float(row.grad.norm()), float(moved.norm()), across / (float(start.norm()) + along)

    how = {"lr": 0.001, "betas": (0.8, 0.95), "eps": 1e-20, "weight_decay": 0.0}
    gradient, moved, turn = step(length, torch.optim.AdamW, **how)
    one = step(1.0, torch.optim.AdamW, **how)
    assert gradient == pytest.approx(one[0] / length, rel=1e-6)
    assert moved == pytest.approx(one[1], rel=1e-6)
    assert turn == pytest.approx(one[2] / length, rel=1e-3)
    plain = step(length, torch.optim.SGD, lr=0.001)
    assert plain[2] == pytest.approx(step(1.0, torch.optim.SGD, lr=0.001)[2] / length**2, rel=1e-3)
    says(
        30,
        "Its step is as long for a long row as for a short one",
        "turns a row of twice the length half as far",
    )


def test_a_clipped_logit_may_come_back() -> None:
    """Chapter 30: it has no gradient of its own, and moves with the row and the stream that others move."""
    torch.manual_seed(0)
    stream = torch.nn.Parameter(norm(torch.randn(64, 8)))
    head = torch.nn.Parameter(0.3 * torch.randn(16, 8))
    with torch.no_grad():
        head[3] = 20 * stream[0] / stream[0].square().sum()  # logit 3 of row 0 is 20
    targets = torch.randint(4, 16, (64,))
    descent = torch.optim.SGD([stream, head], lr=0.05)
    for step in range(500):
        raw = stream @ head.T
        raw.retain_grad()
        F.cross_entropy(raw.clamp(-SOFTCAP, SOFTCAP), targets).backward()
        if step == 0:
            assert raw[0, 3].item() == pytest.approx(20)
            assert raw.grad is not None
            assert raw.grad[0, 3].item() == 0
        descent.step()
        descent.zero_grad()
    assert raw[0, 3].item() < SOFTCAP
    says(30, "a logit that got there gets no more gradient of its own. It may come back")


def test_what_the_norm_of_queries_and_keys_makes_true() -> None:
    """Chapter 30: their length, not their independence."""
    q = norm(7 * torch.randn(1000, 128, dtype=torch.float64))
    torch.testing.assert_close(q.square().mean(dim=1), torch.ones(1000, dtype=torch.float64))
    assert float(scores(q[:1], q[:1])) == pytest.approx(128**0.5)
    says(
        30,
        "one half of the assumption behind the factor becomes a fact",
        "the score is $\\sqrt{D}$ after the division",
    )


def test_bfloat16_scores_near_100() -> None:
    """Chapter 30: stored in bfloat16, 100 and 100.25 are one number; inside the function they are two."""
    q, k, v = torch.zeros(3, 1, 1, 2, 128).bfloat16().unbind()
    q, k[..., 0], v[0, 0, 1, 0] = q[:, :, :1], 100 / 32, 1
    q[..., 0], q[..., 1], k[0, 0, 1, 1] = 32, 1, 0.25
    assert (q.float() @ k.float().mT).flatten().tolist() == [100, 100.25]
    second = 1 / (1 + math.exp(-0.25))  # its weight, which is what v shows
    assert bf16(100.25) == 100
    assert ((q @ k.mT).softmax(-1) @ v)[0, 0, 0, 0].item() == 0.5
    inside = F.scaled_dot_product_attention(q, k, v, scale=1.0)[0, 0, 0, 0].item()
    assert inside == pytest.approx(second, abs=2**-8)
    assert inside > 0.55
    says(30, "keeps their scores in fp32. On a CPU it tells 100 from 100.25")


def test_a_saturated_head_gets_a_small_gradient_and_a_full_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chapter 30, without QK norm: the first of two heads has queries a hundred times as long."""
    torch.manual_seed(0)
    attention = CausalSelfAttention(GPTConfig(128, 16, 1, 2, 2, 64), 0)
    for p in attention.parameters():
        torch.nn.init.normal_(p, std=64**-0.5)
    sharp = slice(0, 32)
    with torch.no_grad():
        attention.c_q.weight[sharp] *= 100
    monkeypatch.setattr("nanochat.normans_gpt.norm", lambda x: x)
    y = attention(norm(torch.randn(8, 128, 64)), tables(128, 32, torch.float32))
    (y * torch.randn_like(y)).mean().backward()
    gradient = attention.c_q.weight.grad
    assert gradient is not None
    step = orthogonalize(gradient[None])[0].float()
    other = slice(32, 64)
    assert gradient[sharp].norm() < 0.5 * gradient[other].norm()
    assert step[sharp].norm() == pytest.approx(float(step[other].norm()), rel=0.1)
    says(30, "Muon's step is as long for a small gradient as for a large one")


def capped(z: Tensor) -> Tensor:
    return SOFTCAP * torch.tanh(z / SOFTCAP)


def test_what_each_rounding_of_logits_costs() -> None:
    """Chapters 30 and 35: raw logits are bfloat16 in mixed precision anyway; what comes after need not be."""
    z = torch.linspace(0, 60, 400_001, dtype=torch.float64)
    raw = z.bfloat16()
    first = (capped(raw.double()) - capped(z)).abs().max().item()
    both = (capped(raw.double()).bfloat16().double() - capped(z)).abs().max().item()
    says(35, f"a probability can be off by {100 * math.expm1(first):.1f} % for that alone")
    says(35, f"would be off by up to {both:.2f} and a probability by {100 * math.expm1(both):.0f} %")
    slope = 1 - torch.tanh(raw / SOFTCAP).double() ** 2
    wrong = (slope / (1 - torch.tanh(z / SOFTCAP) ** 2) - 1).abs()[(z - 30).abs() < 1].max().item()
    says(35, f"by some {100 * wrong:.0f} % at a raw logit of 30")
    every = torch.arange(2**15, dtype=torch.int16).view(torch.bfloat16)
    told_apart = capped(every[every.isfinite()].float()).unique()
    assert ((told_apart >= 14) & (told_apart < 15)).sum().item() == pytest.approx(285, abs=5)
    says(30, "computed in fp32, from raw logits that are bf16, it tells some 280 apart there")


def test_sums_of_bfloat16() -> None:
    """Chapter 35: PyTorch keeps them in float32, and rounding the total is harm enough."""
    assert torch.ones(1000, dtype=torch.bfloat16).sum().item() == 1000
    kept = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(1000):
        kept += 1
    assert kept.item() == 256
    totals = torch.linspace(1, 2, 100_001, dtype=torch.float64)
    worst = (totals.bfloat16().double() / totals).log().abs().max().item()
    says(35, f"moves the loss of the row by up to {worst:.3f}")
    assert (totals.bfloat16().double() / totals - 1).abs().max().item() == pytest.approx(2**-8, rel=0.01)
    says(35, "A relative error of up to $2^{-8}$ in each of its entries")


def test_memory_of_the_loss_as_printed() -> None:
    """Chapter 35 counts what the code on its page holds."""
    page = (LIT / "35-the-loss-in-chunks.md").read_text(encoding="utf-8")
    code = page.split("Written in the plainest way,\n\n```python\n")[1].split("```")[0]
    torch.manual_seed(0)
    names = {
        "torch": torch,
        "F": F,
        "x": torch.randn(512, 8, requires_grad=True),
        "weight": torch.randn(1024, 8, requires_grad=True),
        "targets": torch.randint(0, 1024, (512,)),
    }
    with Watch() as seen:
        exec(f"{code}\nplain_loss(x, weight, targets).backward()", names)
    assert seen.peak / (4 * 512 * 1024) == pytest.approx(4, rel=0.02)
    says(35, "the peak of this function and its backward pass is four times $R V$ numbers")


def test_memory_of_the_references_loss() -> None:
    """Chapter 70 counts four copies of its logits too; the library holds them in what it returns."""
    rows, vocabulary = 256, 4096
    torch.manual_seed(0)
    model = Reference(ReferenceConfig(rows, vocabulary, 1, 1, 1, 8))
    model.init_weights()
    ids = torch.randint(0, vocabulary, (1, rows))
    with Watch() as seen:
        model(ids, ids.roll(-1)).backward()
    assert seen.peak / (4 * rows * vocabulary) == pytest.approx(4, abs=0.2)
    says(70, "The reference adds four copies of the logits of one sequence")


def test_rows_of_the_nearest_orthogonal_matrix() -> None:
    """Chapter 40: up to C rows each is one long, whatever its gradient; beyond, they share C."""
    torch.manual_seed(0)
    C = 64
    for k in (8, 64, 100, 512):
        sizes = torch.logspace(-1.5, 1.5, k, dtype=torch.float64)[:, None]
        u, _, vh = torch.linalg.svd(sizes * torch.randn(k, C, dtype=torch.float64), full_matrices=False)
        lengths = (u @ vh).norm(dim=1)
        assert lengths.square().mean().sqrt().item() == pytest.approx(min(1, C / k) ** 0.5)
        assert (lengths.max() - lengths.min() < 1e-9) == (k <= C)
    says(40, "Up to $k = C$ rows, none of which depends on the others, that is exactly 1 for each")
    says(40, "a row's length is $\\sqrt{C/k}$ in root mean square", f"$0.95^{{100}} = {0.95**100:.3f}$")


def test_the_unit_roundoff_of_each_format() -> None:
    """The chapter on machines derives its bounds from half the distance to the next number above 1."""
    page = " ".join((LIT / "60b-this-machine.md").read_text(encoding="utf-8").split())
    assert math.log2(torch.finfo(torch.float32).eps / 2) == -24
    assert math.log2(torch.finfo(torch.bfloat16).eps / 2) == -8
    assert "($2^{-24}$ in float32, $2^{-8}$ in bfloat16)" in page
