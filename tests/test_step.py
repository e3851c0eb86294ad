"""One optimizer step: what it computes, what it leaves alone, and that nobody else takes one."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from nanochat import normans_gpt
from nanochat.common import Ranks
from nanochat.muon import Muon
from nanochat.step import (
    Rates,
    Schedule,
    Stepper,
    accumulate_gradients,
    build_model,
    build_optimizers,
    muon_momentum,
)
from tests.bounds import results_error, sum_error

ROOT = Path(__file__).parents[1]
SHAPE = {"sequence_len": 16, "vocab_size": 64, "n_layer": 1, "n_head": 2, "n_kv_head": 2, "n_embd": 32}
CPU = torch.device("cpu")
Batch = tuple[torch.Tensor, torch.Tensor]


def batches(count: int, seed: int = 0) -> list[Batch]:
    """Made-up batches of 2 sequences."""
    rng = torch.Generator().manual_seed(seed)
    rows = [torch.randint(64, (2, 17), generator=rng) for _ in range(count)]
    return [(row[:, :-1], row[:, 1:].contiguous()) for row in rows]


def stepper(schedule: Schedule | None = None, **more: object) -> Stepper:
    """A small GPT of the book, whose every weight gets a gradient."""
    model = build_model(normans_gpt, SHAPE, CPU, 1, None)
    with torch.no_grad():
        for p in model.parameters():
            if not p.any():
                p.normal_(std=0.02)
    return Stepper(model, build_optimizers(model, Rates()), schedule, **more)  # type: ignore[arg-type]


def state(one: Stepper) -> list[torch.Tensor]:
    """Everything a step may change: weights, and what the optimizers remember."""
    held = [p.detach().clone() for p in one.model.parameters()]
    for optimizer in one.optimizers:
        for entries in optimizer.state.values():
            held += [value.clone() for value in entries.values() if isinstance(value, torch.Tensor)]
    return held


# --- accumulation ----------------------------------------


class Regression(nn.Module):
    """Mean squared error of a small network, in float64."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (self.net(x) - y).square().mean()


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.numerics
def test_accumulated_passes_are_one_large_batch(count: int) -> None:
    x, y = torch.randn(24, 6).double(), torch.randn(24, 3).double()
    whole, parts = Regression(), Regression()
    loss = whole(x, y)
    loss.backward()
    loss = loss.detach()
    pieces = iter(list(zip(x.chunk(count), y.chunk(count), strict=True)))
    mean = accumulate_gradients(parts, pieces, count)
    assert float(mean) == pytest.approx(float(loss), rel=sum_error(24))  # it is kept in float32

    def gradients() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(whole(x, y), list(whole.parameters()))

    bounds = results_error(whole.parameters(), gradients, terms=24 * 3, dtype=torch.float64)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=bounds.pop(0))


def test_unequal_passes_are_not() -> None:
    x, y = torch.randn(24, 6).double(), torch.randn(24, 3).double()
    whole, parts = Regression(), Regression()
    whole(x, y).backward()
    accumulate_gradients(parts, iter([(x[:4], y[:4]), (x[4:], y[4:])]), 2)
    worst = max(
        float((a.grad - b.grad).abs().max())  # type: ignore[operator]
        for a, b in zip(whole.parameters(), parts.parameters(), strict=True)
    )
    assert worst > 1e-3


# --- schedule and rates ----------------------------------------


def reference_multiplier(step: int, steps: int, schedule: Schedule) -> float:
    """The schedule as the reference states it, in steps."""
    warmup, warmdown = round(schedule.warmup * steps), round(schedule.warmdown * steps)
    if step < warmup:
        return (step + 1) / warmup
    if step <= steps - warmdown:
        return 1.0
    left = (steps - step) / warmdown
    return left + (1 - left) * schedule.final


@pytest.mark.parametrize("parts", [(0, 0.2, 0), (0.1, 0.4, 0.1), (0.5, 0.5, 0), (0, 0, 0)])
def test_the_learning_rate_follows_the_reference(parts: tuple[float, float, float]) -> None:
    schedule = Schedule(*parts)
    for step in range(101):
        ours = schedule.multiplier(step / 100, 1 / 100)
        assert ours == pytest.approx(reference_multiplier(step, 100, schedule), abs=1e-12), step


def test_muons_momentum_rises_for_300_steps() -> None:
    assert [muon_momentum(step) for step in (0, 150, 300, 5000)] == pytest.approx([0.85, 0.9, 0.95, 0.95])


def test_the_schedule_reaches_every_group_and_none_leaves_them_alone() -> None:
    one = stepper(Schedule(warmdown=1.0))
    kept = [group["initial_lr"] for optimizer in one.optimizers for group in optimizer.param_groups]
    outcome = one.step(iter(batches(1)), step=150, done=0.75, one_step=0.01)
    assert outcome.rate == 0.25
    groups = [group for optimizer in one.optimizers for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == [0.25 * rate for rate in kept]
    assert [group["momentum"] for group in groups if "momentum" in group] == [pytest.approx(0.9)]
    plain = stepper()
    plain.step(iter(batches(1)), step=150, done=0.75, one_step=0.01)
    groups = [group for optimizer in plain.optimizers for group in optimizer.param_groups]
    assert [group["lr"] for group in groups] == kept
    assert [group["momentum"] for group in groups if "momentum" in group] == [0.95]


def test_a_group_that_forgot_its_rate_keeps_the_one_it_has() -> None:
    weight = nn.Parameter(torch.ones(2, 2))
    descent = torch.optim.SGD([weight], lr=0.5)

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return weight.sum()

    one = Stepper(Loss(), [descent], Schedule(warmdown=1.0), clip=0)
    for done in (0.5, 0.5, 0.9):
        one.step(iter([(weight, weight)]), done=done)
    assert descent.param_groups[0]["lr"] == pytest.approx(0.05)


def test_rates_reach_the_optimizers() -> None:
    model = build_model(normans_gpt, SHAPE, CPU, 1, None)
    adamw, muon = build_optimizers(model, Rates(0.5, 0.3, 0.1, 0.25, "bfloat16"))
    factor = (32 / 768) ** -0.5
    assert [group["lr"] for group in adamw.param_groups] == [0.1 * factor, 0.3 * factor]
    assert {group["weight_decay"] for group in adamw.param_groups} == {0.25}
    assert isinstance(muon, Muon)
    assert (muon.param_groups[0]["lr"], muon.ns_dtype) == (0.5, torch.bfloat16)


def test_a_seed_gives_the_weights() -> None:
    one, same, other = (build_model(normans_gpt, SHAPE, CPU, seed, None) for seed in (1, 1, 2))
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not a.any() or not torch.equal(a, c)


def test_without_autocast_there_is_one_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """init_weights leaves the embedding in bfloat16 on CUDA; here it is made to."""
    usual = normans_gpt.GPT.init_weights

    def as_on_cuda(model: normans_gpt.GPT) -> None:
        usual(model)
        model.transformer.wte.bfloat16()

    monkeypatch.setattr(normans_gpt.GPT, "init_weights", as_on_cuda)
    left = build_model(normans_gpt, SHAPE, CPU, 1, torch.bfloat16)
    assert left.transformer.wte.weight.dtype == torch.bfloat16
    model = build_model(normans_gpt, SHAPE, CPU, 1, None)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert torch.equal(model.transformer.wte.weight, left.transformer.wte.weight.float())
    assert Stepper(model, build_optimizers(model, Rates())).step(iter(batches(1))).finite


# --- the step ----------------------------------------


def test_the_gradient_is_shortened_after_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def look(one: Stepper, rate: float, step: int) -> None:
        grads = [p.grad.norm() for p in one.model.parameters() if p.grad is not None]
        seen.append(float(torch.stack(grads).norm()))

    monkeypatch.setattr(Stepper, "update", look)
    outcome = stepper(clip=0.01).step(iter(batches(4)), passes=4)
    assert outcome.norm > 0.02
    assert seen.pop() == pytest.approx(0.01, rel=1e-3)
    outcome = stepper(clip=0).step(iter(batches(4)), passes=4)
    assert seen.pop() == pytest.approx(outcome.norm, rel=1e-3)


def test_the_parts_of_a_step_can_be_timed() -> None:
    names: list[str] = []

    @contextmanager
    def part(name: str) -> Iterator[None]:
        names.append(name)
        yield

    stepper(part=part).step(iter(batches(2)), passes=2)
    assert names == [*["forward", "backward"] * 2, "clipping", "AdamW", "Muon"]


class Broken(torch.autograd.Function):
    """Passes a number on, and sends back NaN."""

    @staticmethod
    def forward(context: object, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(context: object, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return gradient * math.nan


class Ill(nn.Module):
    """A model whose loss, or the gradient of a finite loss, can be made no number."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.ill = model, ""

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss: torch.Tensor = self.model(inputs, targets)
        if self.ill == "gradient":
            return Broken.apply(loss)  # type: ignore[no-any-return, no-untyped-call]
        return loss * math.inf if self.ill == "loss" else loss


@pytest.mark.parametrize("ill", ["loss", "gradient"])
def test_a_step_without_numbers_changes_nothing(ill: str) -> None:
    one = stepper(Schedule())
    one.model = model = Ill(one.model)
    assert one.step(iter(batches(1))).finite
    before = state(one)
    model.ill = ill
    outcome = one.step(iter(batches(1, seed=2)), step=1)
    assert not outcome.finite
    assert math.isfinite(outcome.loss) == (ill == "gradient")
    for a, b in zip(before, state(one), strict=True):
        assert torch.equal(a, b)
    assert all(p.grad is None for p in model.parameters())
    model.ill = ""
    assert one.step(iter(batches(1, seed=2)), step=2).finite
    assert not all(torch.equal(a, b) for a, b in zip(before, state(one), strict=True))


@pytest.mark.parametrize(
    ("theirs", "finite"), [((3.0, 0.0), True), ((3.0, 1.0), False), ((math.nan, 1.0), False)]
)
def test_another_ranks_objection_counts(
    theirs: tuple[float, float], finite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda both: both.add_(torch.tensor(theirs)))
    one = Stepper(nn.Linear(1, 1), [], ranks=Ranks(0, 0, 2))
    mean, verdict = one.agree(torch.tensor(1.0), finite=True)
    assert verdict == finite
    assert mean == 2.0 or math.isnan(theirs[0])
    assert not one.agree(torch.tensor(1.0), finite=False)[1]


# --- the only one ----------------------------------------

GRADIENTS = {"backward", "accumulate_gradients"}
THE_STEP = {"nanochat/step.py:Stepper"}


def steps_of_their_own(source: str) -> list[str]:
    """The functions and classes at the top of a module that compute gradients and step an optimizer as well.

    An optimizer's `step` is called without arguments, a Stepper's with its batches.
    """
    found = []
    for top in ast.parse(source).body:
        if not isinstance(top, ast.FunctionDef | ast.ClassDef):
            continue
        calls = [node for node in ast.walk(top) if isinstance(node, ast.Call)]
        named = [(getattr(call.func, "attr", getattr(call.func, "id", "")), call) for call in calls]
        if any(name in GRADIENTS for name, _ in named) and any(
            name == "step" and not call.args and not call.keywords for name, call in named
        ):
            found.append(top.name)
    return found


COPIES = (
    "def train(model, optimizers):\n model(1, 2).backward()\n for o in optimizers:\n  o.step()\n",
    "def train(model, o):\n def inner():\n  torch.autograd.backward(model(1))\n inner()\n o.step()\n",
    "class T:\n def a(self):\n  accumulate_gradients(self.m, b, 1)\n def b(self):\n  self.o.step()\n",
)


def test_nobody_else_takes_a_step() -> None:
    for copy in COPIES:
        assert len(steps_of_their_own(copy)) == 1
    assert not steps_of_their_own("def f(s, b):\n loss(b).backward()\n s.step(b)\n")
    files = [path for folder in ("nanochat", "scripts", "tools") for path in (ROOT / folder).rglob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}:{name}"
        for path in files
        for name in steps_of_their_own(path.read_text(encoding="utf-8"))
    }
    assert found == THE_STEP
