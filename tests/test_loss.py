"""The loss in chunks equals the loss of all logits at once, and never holds all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from nanochat import loss as loss_module
from nanochat.loss import leave_out, rows_per_chunk, rows_per_tile, softcapped_cross_entropy
from tests.bounds import moved, results_error, sum_error

pytestmark = pytest.mark.numerics

CAP = 15.0
N, C, V = 23, 6, 41
REDUCTIONS = ["mean", "sum", "none"]


def all_at_once(x: Tensor, weight: Tensor, targets: Tensor, softcap: float, reduction: str) -> Tensor:
    """The definition: every logit, then PyTorch's own loss."""
    logits = softcap * torch.tanh((x @ weight.t()) / softcap)
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction=reduction)


def problem(dtype: torch.dtype = torch.float64, spread: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    """x, weight and targets, a third of them -1; logits so wide that the cap matters."""
    torch.manual_seed(0)
    x = torch.randn(N, C, dtype=dtype, requires_grad=True)
    weight = (spread * torch.randn(V, C, dtype=dtype)).requires_grad_()
    targets = torch.randint(0, V, (N,)).masked_fill(torch.rand(N) < 0.3, -1)
    assert 0 < int((targets == -1).sum()) < N
    return x, weight, targets


def value_and_gradients(loss: Tensor, x: Tensor, weight: Tensor) -> list[Tensor]:
    """The loss and its gradients; "none" is weighed by unequal numbers first, so that each row counts."""
    scalar = loss if loss.ndim == 0 else loss @ torch.linspace(1, 2, N, dtype=loss.dtype)
    return [loss.detach(), *torch.autograd.grad(scalar, (x, weight))]


def run(x: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> list[Tensor]:
    """The loss by its definition, and its gradients."""
    return value_and_gradients(all_at_once(x, weight, targets, CAP, reduction), x, weight)


def losses_error(x: Tensor, weight: Tensor, targets: Tensor, reduction: str) -> list[float]:
    """How far the loss and its gradients may be off in float32: sums over N rows, C channels or V tokens."""
    return results_error([x, weight], lambda: run(x, weight, targets, reduction), terms=max(N, C, V))


@pytest.fixture(params=[1, 5, 23, 300])
def rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Chunks of one row, of some rows and a rest, of exactly all rows, of more than all."""
    rows: int = request.param
    monkeypatch.setattr(loss_module, "rows_per_chunk", lambda n_rows, vocab_size, itemsize: rows)
    return rows


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_values_and_gradients_are_those_of_the_definition(rows: int, reduction: str) -> None:
    x, weight, targets = problem()
    ours = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP, reduction), x, weight)
    torchs = value_and_gradients(all_at_once(x, weight, targets, CAP, reduction), x, weight)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_float32_agrees_with_float64(reduction: str) -> None:
    x, weight, targets = problem()
    exact = value_and_gradients(all_at_once(x, weight, targets, CAP, reduction), x, weight)
    x, weight = (t.detach().float().requires_grad_() for t in (x, weight))
    ours = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP, reduction), x, weight)
    bounds = losses_error(x, weight, targets, reduction)
    for a, b, bound in zip(ours, exact, bounds, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=0, atol=bound)
        assert bound < 1e-3 * b.abs().max(), "a mistake must be larger"


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradients_are_the_slopes_of_the_loss(reduction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "rows_per_chunk", lambda n_rows, vocab_size, itemsize: 2)
    x, weight, targets = problem()
    x, weight = (t[:5, :3].detach().requires_grad_() for t in (x, weight))
    targets = torch.tensor([4, -1, 0, 2, 2])

    def f(x: Tensor, weight: Tensor) -> Tensor:
        return softcapped_cross_entropy(x, weight, targets, CAP, reduction)

    assert torch.autograd.gradcheck(f, (x, weight))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_without_gradients_the_value_is_the_same_and_no_gradient_is_computed(
    reduction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight, targets = problem(torch.float32)
    expected = softcapped_cross_entropy(x, weight, targets, CAP, reduction).detach()
    bound = losses_error(x, weight, targets, reduction)[0]

    def refuse(*_: Any) -> None:
        raise AssertionError("an evaluation computed gradients")

    monkeypatch.setattr(loss_module, "_kernel", refuse)
    with torch.no_grad():
        value = softcapped_cross_entropy(x, weight, targets, CAP, reduction)
    torch.testing.assert_close(value, expected, rtol=0, atol=bound)
    value = softcapped_cross_entropy(x.detach(), weight.detach(), targets, CAP, reduction)
    torch.testing.assert_close(value, expected, rtol=0, atol=bound)


def test_only_one_side_may_want_gradients() -> None:
    x, weight, targets = problem()
    both = torch.autograd.grad(softcapped_cross_entropy(x, weight, targets, CAP), (x, weight))
    (dx,) = torch.autograd.grad(softcapped_cross_entropy(x, weight.detach(), targets, CAP), x)
    (dweight,) = torch.autograd.grad(softcapped_cross_entropy(x.detach(), weight, targets, CAP), weight)
    assert torch.equal(dx, both[0])
    assert torch.equal(dweight, both[1])


def test_backward_scales_by_what_comes_from_above() -> None:
    x, weight, targets = problem()
    once = torch.autograd.grad(softcapped_cross_entropy(x, weight, targets, CAP), (x, weight))
    thrice = torch.autograd.grad(-3 * softcapped_cross_entropy(x, weight, targets, CAP), (x, weight))
    for a, b in zip(once, thrice, strict=True):
        torch.testing.assert_close(-3 * a, b)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    x, weight, targets = problem()
    squared = softcapped_cross_entropy(x, weight, targets, CAP).square()  # so that its own slope has a graph
    (dx,) = torch.autograd.grad(squared, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.square().sum().backward()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_asked_gives_what_torch_gives(reduction: str) -> None:
    x, weight, _ = problem()
    targets = torch.full((N,), -1)
    ours = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP, reduction), x, weight)
    torchs = value_and_gradients(all_at_once(x, weight, targets, CAP, reduction), x, weight)
    for a, b in zip(ours, torchs, strict=True):
        torch.testing.assert_close(a, b, equal_nan=True)
    assert ours[0].isnan().all() == (reduction == "mean")


@pytest.mark.parametrize("wrong", [V, V + 7, -2, -100])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_target_that_is_no_token_is_refused(wrong: int, reduction: str) -> None:
    x, weight, targets = problem()
    targets[4] = wrong
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        softcapped_cross_entropy(x, weight, targets, CAP, reduction)


@pytest.mark.parametrize("size", [0, 1, N - 1, N + 1])
def test_each_row_needs_one_target(size: int) -> None:
    x, weight, _ = problem()
    with pytest.raises(ValueError, match=r"23 rows but targets of shape"):
        softcapped_cross_entropy(x, weight, torch.zeros(size, dtype=torch.long), CAP)


def test_an_unknown_reduction_is_refused() -> None:
    x, weight, targets = problem()
    with pytest.raises(ValueError, match='reduction is \'avg\'; use "mean", "sum" or "none"'):
        softcapped_cross_entropy(x, weight, targets, CAP, "avg")


def test_wide_logits_neither_overflow_nor_lose_the_loss() -> None:
    x, weight, targets = problem(torch.float32, spread=1e4)
    loss = softcapped_cross_entropy(x, weight, targets, CAP, "none")
    assert loss.isfinite().all()
    assert float(loss.detach().max()) < 2 * CAP + torch.tensor(float(V)).log()
    uncapped = softcapped_cross_entropy(x, weight, targets, 1e9, "mean")
    torch.testing.assert_close(uncapped, F.cross_entropy(x @ weight.t(), targets, ignore_index=-1))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_autocast_narrows_the_products_and_nothing_else(reduction: str) -> None:
    """In bf16 each factor is rounded and so is the product, as if x and weight were off by three roundings.

    The softmax is float32: from the same bf16 logits the loss must agree to float32's own precision.
    """
    x, weight, targets = problem(torch.float32, spread=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP, reduction), x, weight)
    exact = value_and_gradients(all_at_once(x, weight, targets, CAP, reduction), x, weight)
    assert [t.dtype for t in ours] == [torch.float32] * 3
    logits = (x.bfloat16() @ weight.bfloat16().t()).float()
    reference = F.cross_entropy(CAP * torch.tanh(logits / CAP), targets, ignore_index=-1, reduction=reduction)
    bound = losses_error(x, weight, targets, reduction)[0]
    torch.testing.assert_close(ours[0], reference.detach(), rtol=0, atol=bound)
    bounds = moved([x, weight], lambda: run(x, weight, targets, reduction), sum_error(3, torch.bfloat16))
    for a, b, bound in zip(ours, exact, bounds, strict=True):
        assert float((a - b).abs().max()) <= bound < 0.1 * float(b.abs().max())
    assert not torch.equal(ours[0], exact[0])  # or autocast was not honoured at all


def test_gradients_of_many_chunks_are_summed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row a chunk, all alike: summed in bf16 the weight's gradient would stop growing after 256 rows."""
    monkeypatch.setattr(loss_module, "rows_per_chunk", lambda n_rows, vocab_size, itemsize: 1)
    x = torch.ones(300, 2, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.zeros(4, 2, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        softcapped_cross_entropy(x, weight, torch.zeros(300, dtype=torch.long), CAP, "sum").backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, torch.tensor([[-225.0], [75.0], [75.0], [75.0]]).expand(4, 2))


def test_a_mean_over_bf16_rows_is_scaled_without_rounding_the_scale() -> None:
    """1/510 rounds to 0.00196838 in bf16, 0.4 % too much, in every gradient alike."""
    x = torch.zeros(510, 1, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.tensor([[1.5], [-1.5]], requires_grad=True)
    softcapped_cross_entropy(x, weight, torch.zeros(510, dtype=torch.long), CAP).backward()
    assert x.grad is not None
    exact = torch.tensor(-1.5 / 510).bfloat16()
    assert torch.equal(x.grad, exact.expand(510, 1))


def test_the_chunk_is_two_to_the_26_bytes_or_an_eighth() -> None:
    assert rows_per_chunk(512, 65536, itemsize=4) == 256
    assert rows_per_chunk(512, 65536, itemsize=2) == 512
    assert rows_per_chunk(8192, 65536, itemsize=2) == rows_per_chunk(8192, 65536, itemsize=4) == 1024
    assert rows_per_chunk(8193, 65536, itemsize=4) == 1025
    assert rows_per_chunk(1, 4096, itemsize=4) == 4096
    assert rows_per_chunk(3, 2**30, itemsize=4) == 1


def test_the_tile_is_two_to_the_24_logits_or_a_sixteenth() -> None:
    assert rows_per_tile(512, 65536) == 256
    assert rows_per_tile(8192, 65536) == 512
    assert rows_per_tile(8193, 65536) == 513
    assert rows_per_tile(3, 2**30) == 1


@pytest.mark.parametrize("tile", [1, 2, 3, 100])
def test_tiles_do_not_change_the_numbers(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, targets = problem(torch.float64)
    whole = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    monkeypatch.setattr(loss_module, "rows_per_tile", lambda chunk_rows, vocab_size: tile)
    tiled = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    torch.testing.assert_close(tiled, whole)


class Watch(TorchDispatchMode):
    """Record the largest tensor any operation makes, and the most bytes that live at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = self.largest_wide = self.peak = 0
        self.living: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else (out,):
            if isinstance(t, Tensor):
                self.largest = max(self.largest, t.numel())
                if t.dtype == torch.float32:
                    self.largest_wide = max(self.largest_wide, t.numel())
                storage = t.untyped_storage()
                self.living[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.living = {k: v for k, v in self.living.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(nbytes for _, nbytes in self.living.values()))
        return out


def watch(loss: Callable[[Tensor, Tensor, Tensor], Tensor], n: int, vocab: int) -> Watch:
    torch.manual_seed(0)
    x = torch.randn(n, 8, requires_grad=True)
    weight = torch.randn(vocab, 8, requires_grad=True)
    targets = torch.randint(0, vocab, (n,))
    seen = Watch()
    with seen:
        loss(x, weight, targets).backward()
    return seen


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_only_a_chunk_of_logits_ever_exists(
    reduction: str, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    n, vocab = 512, 1024
    monkeypatch.setattr(loss_module, "SMALLEST_TILE", vocab)  # so that there are 16 tiles of 4 rows
    monkeypatch.setattr(
        loss_module, "SMALLEST_CHUNK", 16 * vocab
    )  # less than an eighth, so that 64 rows count

    def ours(x: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return softcapped_cross_entropy(x, weight, targets, CAP, reduction).sum()

    seen = watch(ours, n, vocab)
    assert seen.largest == 64 * vocab  # the watch works, and nothing reaches n * vocab
    naive = watch(lambda x, w, t: all_at_once(x, w, t, CAP, reduction).sum(), n, vocab)
    assert naive.largest == n * vocab
    assert naive.peak == pytest.approx(4 * 4 * n * vocab, rel=0.02)  # four copies, as the chapter counts
    small = 4 * (n * 8 + vocab * 8) * 4  # what a few copies of x, the weight and their gradients take
    chunk = 4 * 64 * vocab
    copies = 1 + 2.25 / 16 if reduction != "none" else 4.25  # a checkpoint differentiates a whole chunk
    assert seen.peak < copies * chunk + small


def test_evaluation_holds_one_chunk_too() -> None:
    n, vocab = 512, 65536
    with torch.no_grad(), Watch() as seen:
        softcapped_cross_entropy(torch.randn(n, 2), torch.randn(vocab, 2), torch.zeros(n).long(), CAP)
    assert seen.largest == 2**24


def test_the_compiled_kernel_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "_kernel", loss_module.differentiate_tile)  # to be undone
    x, weight, targets = problem(torch.float32)
    plain = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    loss_module.compile_kernel()
    assert loss_module._kernel is not loss_module.differentiate_tile
    fused = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    for a, b, bound in zip(plain, fused, losses_error(x, weight, targets, "mean"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)


@pytest.mark.parametrize("asked", [0, 1, 8, 9, 39, 40])
def test_rows_that_are_not_asked_are_left_out_up_to_a_unit(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 40 rows: every row that is asked comes, in order, and at most four others."""
    monkeypatch.setattr(loss_module, "SMALLEST_TILE", 40 * V)
    x = torch.arange(40.0)[:, None]
    targets = torch.full((40,), -1)
    places = torch.randperm(40, generator=torch.Generator().manual_seed(1))[:asked].sort().values
    targets[places] = places
    rows, wanted = leave_out(x, targets, V)
    assert torch.equal(wanted[wanted != -1], places)
    assert torch.equal(rows[wanted != -1, 0].long(), places)
    assert asked <= len(rows) < max(asked, 1) + 5
    assert len(rows) % 5 == 0
    assert (rows is x and wanted is targets) == (asked > 35)


def test_the_kernel_meets_few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """An eighth of a tile and its multiples, whatever is asked of batches of several sizes."""
    sizes = set()
    monkeypatch.setattr(loss_module, "SMALLEST_TILE", 64 * V)
    monkeypatch.setattr(loss_module, "SMALLEST_CHUNK", 64 * V * 4)

    def kernel(logits: Tensor, *_: object) -> Tensor:
        sizes.add(len(logits))
        return logits.new_zeros(())

    monkeypatch.setattr(loss_module, "_kernel", kernel)
    x, weight = torch.randn(64, C, requires_grad=True), torch.randn(V, C)
    for rows in (64, 63, 62, 60):
        for asked in range(56):
            targets = torch.ones(rows, dtype=torch.int64)
            targets[asked:] = -1
            softcapped_cross_entropy(x[:rows], weight, targets, CAP, reduction="sum")
    assert sizes == {8, 16, 24, 32, 40, 48, 56}


def test_the_products_of_rows_that_are_not_asked_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three products for each row that stays, of 2·C·V operations: with 7 of 23 asked, nine rows stay."""
    monkeypatch.setattr(loss_module, "SMALLEST_TILE", 24 * V)
    x, weight, targets = problem()
    targets[:] = 1
    targets[7:] = -1
    work = []
    for wanted in (targets, targets.clamp(min=0)):
        with FlopCounterMode(display=False) as counter:
            softcapped_cross_entropy(x, weight, wanted, CAP, reduction="sum").backward()
        work.append(counter.get_total_flops())
    assert work == [3 * 2 * rows * weight.numel() for rows in (9, N)]


def test_leaving_rows_out_changes_no_number_by_more_than_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss_module, "SMALLEST_TILE", 24 * V)
    x, weight, targets = problem(torch.float32)
    targets[::2] = -1
    less = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    assert torch.equal(less[1][targets == -1], torch.zeros_like(less[1][targets == -1]))
    monkeypatch.setattr(loss_module, "leave_out", lambda x, targets, vocab_size: (x, targets))
    every = value_and_gradients(softcapped_cross_entropy(x, weight, targets, CAP), x, weight)
    for a, b, bound in zip(less, every, losses_error(x, weight, targets, "mean"), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=bound)
