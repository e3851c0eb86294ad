"""The bounds hold, are no larger than they need be, and are needed: two orders of the same sum do differ."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from nanochat.normans_gpt import GPT, GPTConfig
from tests.bounds import clearance, logits_error, results_error, sum_error, unit_roundoff

pytestmark = pytest.mark.numerics

V, T = 31, 12


def a_model(seed: int = 0) -> GPT:
    """A model in which every weight speaks."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(T, V, n_layer=3, n_head=2, n_kv_head=1, n_embd=24))
    model.init_weights()
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=1.5 * weight.size(-1) ** -0.5)
    return model


def in_another_order(model: GPT) -> GPT:
    """The same function, with the channels of stream and MLPs permuted, and so all sums."""
    other = a_model()
    rng = torch.Generator().manual_seed(1)
    stream, hidden = torch.randperm(24, generator=rng), torch.randperm(96, generator=rng)
    state = {name: weight.clone() for name, weight in model.state_dict().items()}
    for name, weight in state.items():
        if name.endswith("mlp.c_fc.weight"):
            weight = weight[hidden]
        if name.endswith("mlp.c_proj.weight"):
            weight = weight[:, hidden]
        else:
            weight = weight if name.endswith("attn.c_proj.weight") else weight[:, stream]
        state[name] = weight[stream] if "c_proj" in name else weight
    other.load_state_dict(state)
    return other


def inputs(seed: int = 2) -> Tensor:
    return torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("terms", [2, 16, 256])
def test_a_sum_in_any_order_is_within_its_bound(terms: int, dtype: torch.dtype) -> None:
    """Added one by one in dtype, which is the order with the most roundings on the way."""
    rng = torch.Generator().manual_seed(terms)
    x, y = torch.randn(2, 400, terms, generator=rng).to(dtype)
    products = x * y
    exact = (x.double() * y.double()).sum(dim=1)
    sizes = (x.double() * y.double()).abs().sum(dim=1)
    for columns in (products, products.flip(1)):
        total = columns[:, 0]
        for column in columns.unbind(1)[1:]:
            total = total + column
        worst = float(((total.double() - exact).abs() / sizes).max())
        assert 0 < worst <= sum_error(terms, dtype)


def test_a_rounding_is_half_a_step() -> None:
    for dtype, bits in ((torch.float64, 53), (torch.float32, 24), (torch.bfloat16, 8)):
        assert unit_roundoff(dtype) == 2.0**-bits
        halfway = torch.tensor(1 + 2.0**-bits, dtype=torch.float64)
        assert float(halfway.to(dtype)) in (1, 1 + 2 * 2.0**-bits)


@pytest.mark.parametrize("seed", range(4))
def test_two_orders_of_all_sums_differ_and_by_less_than_the_bound(seed: int) -> None:
    """Equality would hold for neither of two machines' orders; a tenth of the bound does for both."""
    model, idx = a_model(seed), inputs(seed)
    other = in_another_order(model)
    bound = logits_error(model, idx)
    with torch.no_grad():
        difference = float((other(idx) - model(idx)).abs().max())
        exact = float((other.double()(idx) - a_model(seed).double()(idx)).abs().max())
    assert exact < 1e-10, "it is the same function"
    assert 0 < difference <= bound < 1e-3


def test_gradients_in_two_orders_differ_and_by_less_than_their_bounds() -> None:
    model, idx, targets = a_model(), inputs(), inputs(3)
    other = in_another_order(model)

    def run(model: GPT) -> list[Tensor]:
        loss = model(idx, targets)
        return [
            loss.detach(),
            *torch.autograd.grad(loss, [model.lm_head.weight, model.transformer.wte.weight]),
        ]

    bounds = results_error(model.parameters(), lambda: run(model), terms=max(V, idx.numel()))
    stream = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    mine, theirs = run(model), run(other)
    for place, bound in enumerate(bounds):
        expected = mine[place] if place == 0 else mine[place][:, stream]
        difference = float((theirs[place] - expected).abs().max())
        assert difference <= bound < 1e-3 * float(expected.abs().max())
        assert difference > 0 or place == 0


def test_weights_are_put_back() -> None:
    model = a_model()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    logits_error(model, inputs())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_the_clearance_is_how_far_logits_may_move() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]], dtype=torch.float64)
    assert clearance(logits, [1], temperature=0) == clearance(logits, [1], temperature=0, top_k=1) == 0.5
    draw = random.Random(42).getrandbits(31) / 2**31

    def choice(edge: int, move: float) -> int:
        """The token drawn when the logits up to edge have moved one way and those behind it the other."""
        moved = logits[0] + move * torch.where(torch.arange(4) <= edge, 1.0, -1.0)
        return int((moved.softmax(dim=-1).cumsum(dim=-1) <= draw).sum())

    drawn = choice(0, 0.0)
    space = clearance(logits, [drawn])
    assert all(choice(edge, sign * 0.99 * space) == drawn for edge in range(3) for sign in (1, -1))
    assert any(choice(edge, sign * 1.01 * space) != drawn for edge in range(3) for sign in (1, -1))
    assert clearance(logits, [drawn], top_k=3) <= 0.5
