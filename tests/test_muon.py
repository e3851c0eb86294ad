"""Muon against torch's own, and each of its properties on its own, in both formats that can be fast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from nanochat import machine
from nanochat.muon import NEWTON_SCHULZ, Muon, orthogonalize
from nanochat.normans_gpt import GPT, GPTConfig
from tests.bounds import moved, newton_schulz_error, unit_roundoff

pytestmark = pytest.mark.numerics

SHAPES = [(6, 6), (4, 12), (12, 4), (1, 5), (5, 1), (4, 12), (6, 6)]
FORMATS = [torch.float32, torch.bfloat16]
EPSILON = 1e-7  # ours is added to the norm of a matrix, torch's is its least value


@pytest.fixture(params=FORMATS, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """The format to orthogonalize in: the matrices here are so small that an emulated one costs nothing."""
    found: torch.dtype = request.param
    return found


@pytest.fixture
def torchs_format(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch's Muon, which knows bfloat16 alone, compute in dtype: its conversion becomes a copy."""
    if dtype == torch.float32:
        monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)


def matrices(seed: int = 0, shapes: list[tuple[int, int]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p)


def trained(
    optimizers: Callable[..., torch.optim.Optimizer], apart: bool = False, **settings: Any
) -> list[Tensor]:
    """How far each matrix has moved after five steps of one optimizer or, apart, of one for each matrix."""
    params = matrices()
    of_them = [optimizers([p], **settings) for p in params] if apart else [optimizers(params, **settings)]
    for step in range(5):
        give_gradients(params, 100 + step)
        for optimizer in of_them:
            optimizer.step()
    return [(p - start).detach() for p, start in zip(params, matrices(), strict=True)]


class Shaken(Muon):
    """Muon whose every direction is off by a relative amount, up or down."""

    def __init__(self, params: Any, relative: float, seed: int, **settings: Any) -> None:
        super().__init__(params, ns_dtype=torch.float64, **settings)
        self.relative, self.rng = relative, torch.Generator().manual_seed(seed)

    def _momentum(self, p: Tensor, group: dict[str, Any]) -> Tensor:
        direction = super()._momentum(p, group).double()
        signs = torch.randint(2, direction.shape, generator=self.rng) * 2 - 1
        return direction * (1 + self.relative * signs)


def training_error(dtype: torch.dtype, **settings: Any) -> list[float]:
    """How far each matrix may be off after `trained`, in the norm, when dtype rounds in every step.

    The training is done in float64 with each direction off by what rounding is worth, and watched.
    """
    relative = newton_schulz_error(12, dtype) + EPSILON
    still = trained(Shaken, relative=0.0, seed=0, **settings)
    draws = [trained(Shaken, relative=relative, seed=seed, **settings) for seed in range(3)]
    return [max(float((draw[i] - still[i]).norm()) for draw in draws) for i in range(len(still))]


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.85, 0.95])
@pytest.mark.usefixtures("torchs_format")
def test_five_steps_equal_torchs_muon(nesterov: bool, momentum: float, dtype: torch.dtype) -> None:
    settings: dict[str, Any] = {"lr": 0.02, "momentum": momentum, "nesterov": nesterov}
    ours = trained(Muon, ns_dtype=dtype, **settings)
    theirs = trained(torch.optim.Muon, weight_decay=0.0, **settings)
    for a, b, bound in zip(ours, theirs, training_error(dtype, **settings), strict=True):
        assert (a - b).norm() <= bound
        if dtype == torch.float32:
            assert bound < 1e-3 * b.norm(), "a mistake must be larger"


@pytest.mark.parametrize("mistake", [{"momentum": 0.9}, {"nesterov": False}, {"ns_steps": 4}], ids=str)
def test_mistakes_are_larger_than_any_rounding(mistake: dict[str, Any]) -> None:
    bounds = training_error(torch.float32)
    for a, b, bound in zip(
        trained(Muon, ns_dtype=torch.float32),
        trained(Muon, ns_dtype=torch.float32, **mistake),
        bounds,
        strict=True,
    ):
        assert (a - b).norm() > 10 * bound


def test_a_batch_of_one_shape_equals_one_by_one(dtype: torch.dtype) -> None:
    together = trained(Muon, ns_dtype=dtype)
    apart = trained(Muon, apart=True, ns_dtype=dtype)
    for a, b, bound in zip(together, apart, training_error(dtype), strict=True):
        assert (a - b).norm() <= bound


def test_the_momentum_is_torchs() -> None:
    """A mean of two numbers: a difference, a product and a sum, each rounded once, in either library."""
    for nesterov in (True, False):
        ours, theirs = matrices(), matrices()
        muon = Muon(ours, momentum=0.85, nesterov=nesterov)
        oracle = torch.optim.Muon(theirs, momentum=0.85, nesterov=nesterov)
        for step in range(5):
            for params, optimizer in ((ours, muon), (theirs, oracle)):
                give_gradients(params, 100 + step)
                optimizer.step()
        for a, b in zip(ours, theirs, strict=True):
            buffers = muon.state[a]["momentum_buffer"], oracle.state[b]["momentum_buffer"]
            largest = float(buffers[1].abs().max()) + 4  # no gradient here is larger than 4
            torch.testing.assert_close(*buffers, atol=5 * 3 * unit_roundoff() * largest, rtol=0)


def orthogonalization_error(g: Tensor, dtype: torch.dtype) -> float:
    """How far a number of orthogonalize(g) may be off in dtype."""
    exact = g.double()
    relative = newton_schulz_error(max(g.shape), dtype)
    return moved([exact], lambda: [orthogonalize(exact, dtype=torch.float64)], relative)[0]


def test_the_format_is_the_one_asked_for_and_does_no_more_than_round(dtype: torch.dtype) -> None:
    for seed, shape in enumerate(SHAPES):
        g = torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
        result, exact = orthogonalize(g, dtype=dtype), orthogonalize(g.double(), dtype=torch.float64)
        assert result.dtype == dtype
        assert (result.double() - exact).abs().max() <= orthogonalization_error(g, dtype)


class Products(TorchDispatchMode):
    """Note the formats of all matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.formats: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(func) for name in ("mm", "bmm", "baddbmm", "addmm")):
            self.formats.add(next(t.dtype for t in args if isinstance(t, Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_without_a_choice_it_is_the_format_that_the_machine_multiplies(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An emulated product costs seventy of the other kind, so it must never come by default."""
    monkeypatch.setattr(machine, "multiplies_bfloat16", lambda device: has_bfloat16)
    model = GPT(GPTConfig(4, 8, 1, 1, 1, 8))
    model.init_weights()
    optimizers = model.setup_optimizers()
    model(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 4, dtype=torch.long)).backward()
    assert type(optimizers[1]) is Muon
    with Products() as products:
        for optimizer in optimizers:
            optimizer.step()
    assert products.formats == {torch.bfloat16 if has_bfloat16 else torch.float32}
    with Products() as products:
        orthogonalize(torch.ones(1, 2, 3))
    assert products.formats == {machine.fastest_format(torch.device("cpu"))}


def test_singular_values_land_near_one_and_vectors_stay(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    for rows, columns in ((8, 8), (5, 20), (20, 5)):
        g = torch.randn(rows, columns)
        u, s, vh = torch.linalg.svd(g, full_matrices=False)
        result = orthogonalize(g[None], dtype=dtype)[0].float()
        values = torch.diagonal(u.T @ result @ vh.T)  # the singular values, if the vectors are the same
        far = s / s.norm() > 0.02
        assert values[far].min() > 0.6
        assert values[far].max() < 1.3
        off_diagonal = u.T @ result @ vh.T - torch.diag(values)
        assert off_diagonal.abs().max() < 0.05


def test_each_step_is_the_quintic_on_the_singular_values(dtype: torch.dtype) -> None:
    """One step on a diagonal matrix is the polynomial on each number, up to the rounding of the format."""
    a, b, c = NEWTON_SCHULZ
    s = torch.tensor([0.9, 0.4, 0.1, 0.05], dtype=torch.float64)
    s = s / s.norm()
    result = torch.diagonal(orthogonalize(torch.diag(s)[None], steps=1, dtype=dtype)[0]).double()
    # Off by what a step rounds, and by the rounding of s and of its norm; the slope is at most a.
    bound = newton_schulz_error(4, dtype, steps=1) + a * 2 * unit_roundoff(dtype)
    torch.testing.assert_close(result, a * s + b * s**3 + c * s**5, atol=bound, rtol=0)


def test_the_scale_of_the_gradient_does_not_matter(dtype: torch.dtype) -> None:
    """The same operations on numbers times a power of two, which changes no rounding; epsilon vanishes."""
    g = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    assert g.norm() > 4  # half a step of float32 is there more than epsilon
    assert torch.equal(orthogonalize(g, dtype=dtype), orthogonalize(g * 2**10, dtype=dtype))
    zeros = torch.zeros(1, 3, 4)
    assert torch.equal(orthogonalize(zeros, dtype=dtype), zeros.to(dtype))


def test_a_tall_matrix_is_the_transpose_of_a_wide_one(dtype: torch.dtype) -> None:
    g = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    tall, wide = orthogonalize(g.mT, dtype=dtype), orthogonalize(g, dtype=dtype)
    assert tall.shape == (1, 9, 6)
    assert (tall.mT - wide).abs().max() <= orthogonalization_error(g, dtype)
    largest_product = []
    with torch.profiler.profile(record_shapes=True) as profile:
        orthogonalize(g.mT, dtype=dtype)
    for event in profile.events():
        if event.name == "aten::bmm":
            largest_product.append(event.input_shapes[0])
    assert largest_product
    assert all(shape[1] == 6 for shape in largest_product)  # the smaller Gram matrix


def test_the_update_has_the_promised_size(dtype: torch.dtype) -> None:
    """A wide matrix moves by lr at most in every direction, a tall one by lr * sqrt(rows / columns)."""
    for rows, columns in ((4, 16), (16, 4)):
        (p,) = matrices(shapes=[(rows, columns)])
        before = p.detach().clone()
        give_gradients([p], 3)
        Muon([p], lr=0.1, ns_dtype=dtype).step()
        moved = torch.linalg.svdvals(before - p.detach()) / (0.1 * max(1, rows / columns) ** 0.5)
        assert 0.6 < moved.min() <= moved.max() < 1.3


def test_parameters_without_gradient_stay_and_cost_no_state() -> None:
    moving, frozen = matrices(shapes=[(3, 4), (3, 4)])
    optimizer = Muon([moving, frozen])
    give_gradients([moving], 0)
    before = frozen.detach().clone()
    optimizer.step()
    assert torch.equal(frozen, before)
    assert frozen not in optimizer.state
    assert set(optimizer.state[moving]) == {"momentum_buffer"}
    assert optimizer.state[moving]["momentum_buffer"].dtype == torch.float32


def test_state_survives_saving(dtype: torch.dtype) -> None:
    ours = matrices()
    optimizer = Muon(ours, ns_dtype=dtype)
    give_gradients(ours, 0)
    optimizer.step()
    copies = [nn.Parameter(p.detach().clone()) for p in ours]
    resumed = Muon(copies, ns_dtype=dtype)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for params, o in ((ours, optimizer), (copies, resumed)):
        give_gradients(params, 1)
        o.step()
    for a, b in zip(ours, copies, strict=True):
        assert torch.equal(a, b)


def test_the_momentum_of_the_group_is_read_at_each_step() -> None:
    (p,) = matrices(shapes=[(3, 3)])
    optimizer = Muon([p], momentum=0.95)
    optimizer.param_groups[0]["momentum"] = 0.5
    give_gradients([p], 0)
    assert p.grad is not None
    optimizer.step()
    assert torch.equal(optimizer.state[p]["momentum_buffer"], 0.5 * p.grad)


def test_a_closure_is_called_once_with_gradients_on() -> None:
    (p,) = matrices(shapes=[(3, 3)])
    optimizer = Muon([p])
    calls: list[Tensor] = []

    def closure() -> float:
        loss = p.square().sum()
        loss.backward()
        calls.append(loss)
        return float(loss.detach())

    assert optimizer.step(closure) == float(calls[0].detach())
    assert len(calls) == 1


@pytest.mark.parametrize("shape", [(5,), (2, 3, 4), ()])
def test_what_is_no_matrix_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is no matrix; give it to AdamW"):
        Muon([nn.Parameter(torch.zeros(shape))])
