"""The chapter of prerequisites: what it works out by hand is what autograd and linalg say.

The sessions in it are typed in by test_shown.py; here are the numbers of its formulas, tables and answers.
"""

from __future__ import annotations

import math
import struct

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.test_book_numbers import says

WIDE = torch.float64


def wide(*rows: object) -> Tensor:
    """A float64 tensor that wants a gradient."""
    return torch.tensor(rows, dtype=WIDE, requires_grad=True)


def grad(t: Tensor) -> Tensor:
    """What backward() has left in it."""
    assert t.grad is not None
    return t.grad


def vector(t: Tensor, decimals: int = 4) -> str:
    """(0.6652, -0.7553): as the chapter writes vectors."""
    return "(" + ", ".join(f"{x:.{decimals}f}" for x in t.tolist()) + ")"


def matrix(t: Tensor, decimals: int = 0) -> str:
    """A matrix as the chapter writes it: a list of its rows."""
    rows = (", ".join(f"{x:.{decimals}f}" for x in row) for row in t.tolist())
    return "[" + ", ".join(f"[{row}]" for row in rows) + "]"


def test_a_derivative_is_what_a_nudge_tends_to() -> None:
    says(4, f"from 9 to {3.001**2:.6f}", f"by {(3.001**2 - 9) / 1e-3:.3f} times")
    w = wide(3.0)
    w.square().sum().backward()
    says(4, f"here {grad(w).item():.0f}, is the *derivative* of $f$ at 3")


@pytest.mark.parametrize(
    ("function", "derivative"),
    [
        (lambda w: 3 * w.sin(), lambda w: 3 * w.cos()),
        (lambda w: w.sin() + w.exp(), lambda w: w.cos() + w.exp()),
        (lambda w: w.sin() * w.exp(), lambda w: w.cos() * w.exp() + w.sin() * w.exp()),
        (lambda w: w.sin() ** 5, lambda w: 5 * w.sin() ** 4 * w.cos()),
        (lambda w: w.exp().sqrt(), lambda w: w.exp() / (2 * w.exp().sqrt())),
        (lambda w: 1 / w.exp(), lambda w: -w.exp() / w.exp() ** 2),
        (lambda w: w.sin().exp(), lambda w: w.sin().exp() * w.cos()),
        (lambda w: w.sin().log(), lambda w: w.cos() / w.sin()),
    ],
)
def test_the_table_of_derivatives(function, derivative) -> None:
    w = wide(0.7, 1.3)
    (found,) = torch.autograd.grad(function(w).sum(), w)
    torch.testing.assert_close(found, derivative(w).detach())


def test_a_gradient_has_one_rate_for_each_number() -> None:
    x = wide(1.0, 2.0)
    f = x[0] ** 2 * x[1]
    f.backward()
    says(4, rf"\frac{{\partial f}}{{\partial x}} = {vector(grad(x), 0)}")
    moved = (1.01**2 * 1.98) - f.item()
    says(4, r"$4 \cdot 0.01 + 1 \cdot (-0.02) = 0.02$", f"$1.01^2 \\cdot 1.98 - 2 = {moved:.6f}$")
    assert (grad(x) @ torch.tensor([0.01, -0.02], dtype=WIDE)).item() == pytest.approx(0.02)


def test_two_paths_add_up() -> None:
    w = wide(3.0)
    a, b = 2 * w, w + 1
    by_a, by_b, by_w = (g.item() for g in torch.autograd.grad((a * b).sum(), [a, b, w]))
    says(4, f"$a = {a.item():.0f}$, $b = {b.item():.0f}$ and $\\ell = {(a * b).item():.0f}$")
    says(4, f"$2 \\cdot {by_a:.0f} + 1 \\cdot {by_b:.0f} = {by_w:.0f}$", f"$4w + 2 = {by_w:.0f}$")


def test_the_linear_layer_by_hand() -> None:
    X, W = wide([1, 0, 2], [0, 1, 1]), wide([1, 2, 0], [0, 1, -1])
    G, b = torch.tensor([[1, 0], [2, -1]], dtype=WIDE), torch.zeros(2, dtype=WIDE, requires_grad=True)
    Y = F.linear(X, W, b)
    Y.backward(G)
    for name, value in (("X", X), ("W", W), ("Y = X W^\\top", Y), ("G", G)):
        says(4, f"{name} = {matrix(value)}")
    says(4, f"G W = {matrix(grad(X))}")
    says(4, f"G^\\top X = {matrix(grad(W))}")
    says(4, f"$(1 + 2, 0 - 1) = {vector(grad(b), 0)}$")
    torch.testing.assert_close(grad(X), G @ W.detach())
    torch.testing.assert_close(grad(W), G.T @ X.detach())
    assert torch.linalg.matrix_rank(torch.randn(3, 5).T @ torch.randn(3, 9)) <= 3


def test_the_norm_by_hand() -> None:
    x, g = wide(3.0, 4.0), torch.tensor([1.0, 0.0], dtype=WIDE)
    y = F.rms_norm(x, (2,), eps=0.0)
    y.backward(g)
    r, mean = math.sqrt(12.5), (g * y).mean().item()
    says(4, f"$r = \\sqrt{{12.5}} = {r:.4f}$, and $y = {vector(y)}$", f"mean of $g_k y_k$ is {mean:.4f}")
    inside = g - y.detach() * mean
    one, other = (mean * component for component in y.tolist())
    says(4, f"$(1 - {one:.2f}, -{other:.2f}) = {vector(inside, 2)}$", f"it is ${vector(grad(x))}$")
    torch.testing.assert_close(grad(x), inside / r)
    assert (grad(x) @ x).item() == pytest.approx(0)
    says(4, f"$3 \\cdot {grad(x)[0]:.4f} - 4 \\cdot {-grad(x)[1]:.4f} = 0$")
    longer = (7 * x.detach()).requires_grad_()
    F.rms_norm(longer, (2,), eps=0.0).backward(g)
    torch.testing.assert_close(grad(longer), grad(x) / 7)  # exercise 8


def test_the_norm_in_general() -> None:
    rng = torch.Generator().manual_seed(0)
    x, g = (torch.randn(5, 8, generator=rng, dtype=WIDE) for _ in range(2))
    x.requires_grad_()
    y = F.rms_norm(x, (8,), eps=0.0)
    y.backward(g)
    r = x.square().mean(-1, keepdim=True).sqrt()
    torch.testing.assert_close(grad(x), ((g - y * (g * y).mean(-1, keepdim=True)) / r).detach())


def test_softmax_and_loss_by_hand() -> None:
    z = wide(2.0, 1.0, 0.0)
    loss = F.cross_entropy(z, torch.tensor(1))
    loss.backward()
    first, second, _ = z.exp().tolist()
    says(4, f"exponentials are {first:.4f}, {second:.4f} and 1, together {z.exp().sum().item():.4f}")
    p = z.softmax(0).detach()
    says(
        4,
        f"$p = {vector(p)}$",
        f"$-\\ln {p[1]:.4f} = {loss.item():.4f}$ and the gradient is ${vector(grad(z))}$",
    )
    torch.testing.assert_close(grad(z), p - F.one_hot(torch.tensor(1), 3))
    sure = wide(*(math.log(p) for p in (0.999, 0.0006, 0.0004)))
    F.cross_entropy(sure, torch.tensor(0)).backward()
    assert grad(sure).abs().max() <= 0.001 + 1e-12


def test_softmax_without_a_loss() -> None:
    rng = torch.Generator().manual_seed(0)
    z, g = (torch.randn(6, generator=rng, dtype=WIDE) for _ in range(2))
    z.requires_grad_()
    p = z.softmax(0)
    p.backward(g)
    torch.testing.assert_close(grad(z), (p * (g - (g * p).sum())).detach())


def test_what_was_stretched_is_summed() -> None:
    B, T, H, half = 2, 3, 4, 5
    rng = torch.Generator().manual_seed(0)
    x, g = (torch.randn(B, T, H, half, generator=rng, dtype=WIDE) for _ in range(2))
    cos = torch.randn(1, T, 1, half, generator=rng, dtype=WIDE, requires_grad=True)
    (x * cos).backward(g)
    torch.testing.assert_close(grad(cos), (x * g).sum((0, 2), keepdim=True))
    says(4, "Three guesses of shape $(3)$ and three truths of shape $(3, 1)$ have nine differences")


def test_strides() -> None:
    t = torch.zeros(2, 3, 4)
    says(4, f"${t.stride()}$ and ${t.transpose(1, 2).stride()}$")
    assert t.view(2, 12).shape == (2, 12)
    with pytest.raises(RuntimeError, match="view"):
        t.transpose(1, 2).view(2, 12)
    table = torch.arange(6).view(2, 3)
    says(
        4, f"has the strides ${table.stride()}$", f"order {', '.join(map(str, table.T.reshape(6).tolist()))}"
    )
    with pytest.raises(RuntimeError, match="view"):
        table.T.view(6)
    says(4, "`view` refuses then, and `reshape` makes a copy")
    y = torch.zeros(2, 3, 4, 5).transpose(1, 2)  # question 5
    with pytest.raises(RuntimeError, match="view"):
        y.view(2, 4, 15)


def bits(x: float) -> str:
    """Sign, exponent and fraction of a bfloat16, as 0 and 1."""
    (word,) = struct.unpack(">I", struct.pack(">f", torch.tensor(x).bfloat16().item()))
    assert word & 0xFFFF == 0, "a bfloat16 is a float32 whose last 16 bits are 0"
    return f"{word >> 16:016b}"


@pytest.mark.parametrize(
    ("dtype", "row"),
    [
        (
            torch.float64,
            "| float64 | 11 bits | 52 bits | $1 + 2.2 \\cdot 10^{-16}$ | $1.8 \\cdot 10^{308}$ |",
        ),
        (torch.float32, "| float32 (fp32) | 8 | 23 | $1 + 1.2 \\cdot 10^{-7}$ | $3.4 \\cdot 10^{38}$ |"),
        (torch.float16, "| float16 | 5 | 10 | $1 + 0.00098$ | 65,504 |"),
        (torch.bfloat16, "| bfloat16 (bf16) | 8 | 7 | $1 + 0.0078$ | $3.4 \\cdot 10^{38}$ |"),
    ],
)
def test_the_table_of_formats(dtype: torch.dtype, row: str) -> None:
    says(4, row)
    info = torch.finfo(dtype)
    exponent, fraction = (int(cell.split()[0]) for cell in row.split(" | ")[1:3])
    assert 1 + exponent + fraction == info.bits
    assert info.eps == 2.0**-fraction
    assert info.max == (2 - info.eps) * 2.0 ** (2 ** (exponent - 1) - 1)
    step, largest = row.removesuffix(" |").split(" | ")[3:]
    assert power_of_ten(step.removeprefix("$1 + ")) == pytest.approx(math.log10(info.eps), abs=0.01)
    assert power_of_ten(largest.removeprefix("$")) == pytest.approx(math.log10(info.max), abs=0.01)


def power_of_ten(text: str) -> float:
    """The logarithm of a number as LaTeX has it: float64's largest, rounded upwards, is no float64."""
    mantissa, _, exponent = text.rstrip("$").replace(",", "").partition(" \\cdot 10^{")
    return math.log10(float(mantissa)) + float(exponent.rstrip("}") or 0)


def test_numbers_of_few_bits() -> None:
    sign, exponent, fraction = bits(0.1)[0], int(bits(0.1)[1:9], 2) - 127, int(bits(0.1)[9:], 2)
    assert (sign, exponent, fraction) == ("0", -4, 77)
    says(4, f"$2^{{-4}} (1 + 77/128) = {2.0**-4 * (1 + 77 / 128)}$", f"$0.6 \\cdot 128 = {0.6 * 128:.1f}$")
    assert int(bits(0.3)[9:], 2) == 26
    says(4, f"$(1 + 26/128)/4 = {(1 + 26 / 128) / 4}$")
    assert torch.tensor(0.3).bfloat16().item() == (1 + 26 / 128) / 4
    assert torch.tensor(1001.0).bfloat16().item() == 1000
    for start, step in ((1.0, 2**-7), (2.0, 2**-6), (256.0, 2.0), (512.0, 4.0)):
        here = torch.tensor(start).bfloat16()
        assert torch.nextafter(here, torch.tensor(math.inf).bfloat16()).item() - start == step
    tiny = torch.tensor([2.9e-8, 3.1e-8]).half()
    assert tiny.tolist() == [0.0, 2.0**-24]
    assert torch.tensor([math.exp(88.7), math.exp(88.8)]).isinf().tolist() == [False, True]
    assert torch.tensor(12.0).bfloat16().item() + 2 / 32 == torch.tensor(12.0625).bfloat16().item()


def test_singular_values_by_hand() -> None:
    A = torch.tensor([[3.0, 0.0], [4.0, 5.0]], dtype=WIDE)
    first, second = torch.linalg.svdvals(A).tolist()
    says(4, f"$\\sqrt{{90/2}} = \\sqrt{{45}} = {first:.4f}$", f"$\\sqrt{{10/2}} = \\sqrt5 = {second:.4f}$")
    v = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=WIDE) / math.sqrt(2)  # rows
    u = torch.tensor([[1.0, 3.0], [3.0, -1.0]], dtype=WIDE) / math.sqrt(10)
    torch.testing.assert_close(v @ A.T, torch.tensor([[first], [second]], dtype=WIDE) * u)
    torch.testing.assert_close(first * u[0].outer(v[0]) + second * u[1].outer(v[1]), A)
    frobenius = torch.linalg.matrix_norm(A).item()
    says(4, f"$\\lVert A \\rVert_2 = \\sigma_1 = {first:.4f}$", f"= \\sqrt{{50}} = {frobenius:.4f}$")
    U, _, Vt = torch.linalg.svd(A)
    turn = U @ Vt
    torch.testing.assert_close(turn, u.T @ v)
    torch.testing.assert_close(turn.T @ turn, torch.eye(2, dtype=WIDE))
    says(4, matrix(turn, 4))
    degrees = math.degrees(math.atan2(turn[1, 0].item(), turn[0, 0].item()))
    says(4, f"a turn by {degrees:.2f} degrees")
    assert math.tan(math.radians(degrees)) == pytest.approx(0.5)


def test_singular_values_of_the_exercise() -> None:
    B = torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    U, S, Vt = torch.linalg.svd(B)
    assert S.tolist() == [2, 1]
    torch.testing.assert_close(U @ Vt, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    one = torch.linalg.svdvals(torch.tensor([1.0, 2.0]).outer(torch.tensor([3.0, 4.0])))
    says(4, f"\\sqrt5 \\cdot 5 = {one[0].item():.4f}$")
    assert one[1].item() == pytest.approx(0, abs=1e-5)


def test_a_sum_of_noise() -> None:
    """The variance of 40,000 sums of 128 terms; its own deviation is 128 · √(2/40,000), 0.7 %."""
    says(4, f"$\\sqrt{{128}} = {math.sqrt(128):.1f}$")
    rng = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 40_000, 128, generator=rng)
    assert (q * k).sum(1).var().item() == pytest.approx(128, rel=0.05)


def test_the_remaining_exercises() -> None:
    u = wide(-1.0, 0.0, 2.0)
    u.relu().square().sum().backward()
    says(4, f"$2 \\mathrm{{relu}}(u)$: {grad(u)[0]:.0f}, {grad(u)[1]:.0f} and {grad(u)[2]:.0f}.")
    z = wide(0.0, 15.0, 30.0)
    (15 * (z / 15).tanh()).sum().backward()
    says(4, f"$1 - 0.7616^2 = {grad(z)[1]:.4f}$", f"$1 - 0.9640^2 = {grad(z)[2]:.4f}$")
    for start, rates in (((1.0, 0.0), (0.0, -1.0)), ((0.0, 0.0), (0.0, 0.0))):
        a, b = (torch.tensor(x, dtype=WIDE, requires_grad=True) for x in start)
        found = torch.autograd.grad(0.5 * (a * b - 1) ** 2, (a, b))
        assert tuple(g.item() for g in found) == rates
    rng = torch.Generator().manual_seed(0)
    G = torch.randn(3, 4, generator=rng, dtype=WIDE)
    U, S, Vt = torch.linalg.svd(G, full_matrices=False)
    assert (G * (U @ Vt)).sum().item() == pytest.approx(S.sum().item())
    for step in torch.randn(50, 3, 4, generator=rng, dtype=WIDE):
        same_size = step / torch.linalg.matrix_norm(step)
        assert (G * same_size).sum() <= torch.linalg.matrix_norm(G)
        assert (G * step / torch.linalg.matrix_norm(step, 2)).sum() <= S.sum()
