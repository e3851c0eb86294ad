"""Muon against torch's own, and each of its properties on its own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from nanochat.muon import NEWTON_SCHULZ, Muon, orthogonalize

SHAPES = [(6, 6), (4, 12), (12, 4), (1, 5), (5, 1), (4, 12), (6, 6)]


# Another kernel may add a product's terms in another order. The iteration amplifies what bfloat16 then rounds
# otherwise: the whole update in float32 differs by 1 to 2 % as a rule, never 6 %. Mistakes make more.
ROUNDING = 0.06


def rounded_alike(a: Tensor, b: Tensor, start: Tensor) -> bool:
    """Whether a and b, moved from start, differ by rounding alone."""
    return float((a - b).detach().norm()) <= ROUNDING * float((b - start).detach().norm())


def matrices(seed: int = 0, shapes: list[tuple[int, int]] = SHAPES) -> list[nn.Parameter]:
    torch.manual_seed(seed)
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


def give_gradients(params: list[nn.Parameter], seed: int) -> None:
    torch.manual_seed(seed)
    for p in params:
        p.grad = torch.randn_like(p)


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.85, 0.95])
def test_five_steps_equal_torchs_muon(nesterov: bool, momentum: float) -> None:
    """Equal to the last bit where batched and single products round alike; see ROUNDING for elsewhere."""
    ours, theirs = matrices(), matrices()
    muon = Muon(ours, lr=0.02, momentum=momentum, nesterov=nesterov)
    oracle = torch.optim.Muon(theirs, lr=0.02, momentum=momentum, nesterov=nesterov, weight_decay=0.0)
    for step in range(5):
        for params, optimizer in ((ours, muon), (theirs, oracle)):
            give_gradients(params, 100 + step)
            optimizer.step()
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        assert rounded_alike(a, b, start)
        buffers = muon.state[a]["momentum_buffer"], oracle.state[b]["momentum_buffer"]
        torch.testing.assert_close(*buffers, atol=0, rtol=0)


def test_singular_values_land_near_one_and_vectors_stay() -> None:
    torch.manual_seed(1)
    for rows, columns in ((8, 8), (5, 20), (20, 5)):
        g = torch.randn(rows, columns)
        u, s, vh = torch.linalg.svd(g, full_matrices=False)
        result = orthogonalize(g[None])[0].float()
        moved = torch.diagonal(u.T @ result @ vh.T)  # the singular values, if the vectors are the same
        far = s / s.norm() > 0.02
        assert moved[far].min() > 0.6
        assert moved[far].max() < 1.3
        off_diagonal = u.T @ result @ vh.T - torch.diag(moved)
        assert off_diagonal.abs().max() < 0.05


def test_each_step_is_the_quintic_on_the_singular_values() -> None:
    """One step on a diagonal matrix is the polynomial on each number, up to bfloat16's rounding."""
    a, b, c = NEWTON_SCHULZ
    s = torch.tensor([0.9, 0.4, 0.1, 0.05])
    s = s / s.norm()
    result = torch.diagonal(orthogonalize(torch.diag(s)[None], steps=1)[0]).float()
    torch.testing.assert_close(result, a * s + b * s**3 + c * s**5, atol=0.01, rtol=0.01)


def test_the_scale_of_the_gradient_does_not_matter() -> None:
    g = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(orthogonalize(g), orthogonalize(g * 2**10))
    assert torch.equal(orthogonalize(torch.zeros(1, 3, 4)), torch.zeros(1, 3, 4, dtype=torch.bfloat16))


def test_a_tall_matrix_is_the_transpose_of_a_wide_one() -> None:
    g = torch.randn(1, 6, 9, generator=torch.Generator().manual_seed(0))
    assert orthogonalize(g.mT).shape == (1, 9, 6)
    assert torch.equal(orthogonalize(g.mT), orthogonalize(g).mT)
    largest_product = []
    with torch.profiler.profile(record_shapes=True) as profile:
        orthogonalize(g.mT)
    for event in profile.events():
        if event.name == "aten::bmm":
            largest_product.append(event.input_shapes[0])
    assert largest_product
    assert all(shape[1] == 6 for shape in largest_product)  # the smaller Gram matrix


def test_a_batch_of_one_shape_equals_one_by_one() -> None:
    together, apart = matrices(), matrices()
    batch = Muon(together)
    singles = [Muon([p]) for p in apart]
    for step in range(3):
        give_gradients(together, step)
        give_gradients(apart, step)
        batch.step()
        for optimizer in singles:
            optimizer.step()
    for a, b, start in zip(together, apart, matrices(), strict=True):
        assert rounded_alike(a, b, start)


def test_the_update_has_the_promised_size() -> None:
    """A wide matrix moves by lr at most in every direction, a tall one by lr * sqrt(rows / columns)."""
    for rows, columns in ((4, 16), (16, 4)):
        (p,) = matrices(shapes=[(rows, columns)])
        before = p.detach().clone()
        give_gradients([p], 3)
        Muon([p], lr=0.1).step()
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


def test_state_survives_saving() -> None:
    ours = matrices()
    optimizer = Muon(ours)
    give_gradients(ours, 0)
    optimizer.step()
    copies = [nn.Parameter(p.detach().clone()) for p in ours]
    resumed = Muon(copies)
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
