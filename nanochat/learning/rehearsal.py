"""Train somebody's model a few steps, up to the first thing that is missing or wrong."""

from __future__ import annotations

import faulthandler
import importlib.util
import itertools
import json
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from nanochat import system
from nanochat.common import UserError, write_atomically
from nanochat.learning.arrival import import_watched, leave_the_compiler_out
from nanochat.learning.report import (
    ANSWER,
    BATCH,
    ENOUGH,
    PROMPT,
    SEED,
    SHAPE,
    STEPS_TO_TAKE,
    TEXT,
    Report,
    Wrong,
)
from nanochat.learning.second_rehearsal import rehearse_second
from nanochat.models import frames_in, gap_of, refuse_what_is_no_model
from nanochat.step import Stepper, empty_model

Trace = Callable[[ModuleType], AbstractContextManager[Any]]


def draw_batch(step: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets (BATCH, T) of one step: pieces of the text at random places."""
    data = torch.tensor(list(TEXT.encode()))
    rng = torch.Generator().manual_seed(step)
    T = SHAPE["sequence_len"]
    starts = torch.randint(len(data) - T, (BATCH,), generator=rng)
    pieces = torch.stack([data[start : start + T + 1] for start in starts.tolist()])
    return pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def build(m: ModuleType) -> Any:
    """A model as the training loop builds it, over memory in which nothing can be mistaken for a weight."""
    torch.manual_seed(SEED)
    model = empty_model(m, SHAPE, torch.device("cpu"))
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with torch.no_grad():
        for _, tensor in tensors:
            if tensor.is_floating_point():
                tensor.fill_(math.nan)
    model.init_weights()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.isnan().any():
            raise Wrong(f"{name} {tuple(tensor.shape)} has no values after GPT.init_weights")
    return model


def check_loss(loss: Any) -> Tensor:
    """The loss, if it is one number. Raises Wrong otherwise."""
    if not isinstance(loss, Tensor) or loss.ndim != 0:
        seen = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise Wrong(f"GPT.forward with targets should return one number, the mean loss, and returned {seen}")
    if not loss.isfinite():
        raise Wrong(f"the loss of the first batch is {loss.item()}")
    return loss


def check_gradients(model: Any) -> None:
    """Raise Wrong unless every parameter gets a gradient when no weight is zero; weights are put back."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters()}
    rng = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * (1 if p.ndim < 2 else p.shape[-1] ** -0.5))
    torch.autograd.backward(check_loss(model(*draw_batch(0))))
    for name, p in model.named_parameters():
        if p.grad is None or not p.grad.isfinite().all() or not p.grad.any():
            what = "nothing" if p.grad is None else "only zeros" if not p.grad.any() else "NaN or infinity"
            raise Wrong(f"the loss sends {what} back to {name}: something between them cuts the path")
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(kept[name])


def take_step(stepper: Stepper, step: int) -> float:
    """One optimizer step at constant rates; returns the loss before it, in nats."""
    outcome = stepper.step(iter([draw_batch(step)]))
    if not outcome.finite:
        raise Wrong(
            f"the loss of step {step} is {outcome.loss:g}, the length of its gradient {outcome.norm:g}"
        )
    return outcome.loss


def rehearse(m: ModuleType, report: Report, stage: Callable[[str], None], trace: Trace) -> None:
    """Train module m's model, telling `stage` what has been reached. Raises whatever the model raises.

    `trace` is entered until the first step has been taken.
    """
    with trace(m):
        model = build(m)
        stage("build")
        optimizers = model.setup_optimizers()
        model.estimate_flops()
        check_loss(model(*draw_batch(0)))
        stage("forward")
    check_gradients(model)
    stage("backward")
    stepper = Stepper(model, optimizers)
    report.losses.append(take_step(stepper, 0))
    stage("step")
    for step in range(1, STEPS_TO_TAKE):
        report.losses.append(take_step(stepper, step))
    first, last = report.losses[0], sum(report.losses[-5:]) / 5
    if not last < first - ENOUGH:
        raise Wrong(
            f"the loss went from {first:.3f} to {last:.3f} in {STEPS_TO_TAKE} steps; a model that "
            f"learns falls by more than {ENOUGH:g}"
        )
    stage("learn")
    compare_with_the_book(m, report)
    if report.agreement:
        stage("match")
    prompt = list(PROMPT.encode())
    tokens = list(itertools.islice(model.generate(prompt, ANSWER, temperature=0.0), ANSWER + 1))
    if len(tokens) != ANSWER or not all(type(t) is int and 0 <= t < 256 for t in tokens):
        raise Wrong(f"GPT.generate was asked for {ANSWER} tokens from 0 to 255, as ints, and gave {tokens}")
    report.text = bytes(tokens).decode(errors="replace")
    stage("generate")


CLOSE = 0.00025  # nats by which losses may differ over the first steps when only rounding differs
COMPARED = 12


def train_afresh(m: ModuleType, steps: int, weights: dict[str, Tensor] | None = None) -> list[float]:
    """The losses of a new model, from its own initial weights or from these."""
    model = build(m)
    if weights is not None:
        model.load_state_dict(weights)
    stepper = Stepper(model, model.setup_optimizers())
    return [take_step(stepper, step) for step in range(steps)]


def compare_with_the_book(m: ModuleType, report: Report) -> None:
    """Fill in the report's book_losses and, if the two agree, its agreement."""
    from nanochat import normans_gpt as book

    report.book_losses = train_afresh(book, STEPS_TO_TAKE)
    if report.losses == report.book_losses:
        report.agreement = "the same losses as the book's model, to the bit"
        return
    weights = build(book).state_dict()
    try:
        mine = train_afresh(m, COMPARED, weights)
    except RuntimeError as error:
        if "state_dict" not in str(error):
            raise
        return  # other names or shapes: no comparison, and the checks say which
    apart = max(abs(a - b) for a, b in zip(mine, train_afresh(book, COMPARED, weights), strict=True))
    if apart < CLOSE:
        report.agreement = f"from the same weights, losses within {apart:.1g} nats of the book's"


STAGE_LIMIT = 60.0  # seconds for one stage; two idle cores need about one for all of them
MEMORY_LIMIT = 8 * 2**30  # bytes


def put_into_words(error: BaseException) -> str:
    """What was raised; a loop that keeps its tensors runs out of memory before it runs out of time."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        gigabytes = MEMORY_LIMIT >> 30
        return f"out of memory ({gigabytes} GB): a loop that does not end, or a tensor far larger than meant"
    return f"{type(error).__name__}: {error}"


def rehearse_file(
    path: Path, trace: Trace, tell: Callable[[Report], None] = lambda report: None, second: bool = False
) -> Report:
    """Rehearse with a learner's file, in this process; `tell` is called at every stage. Never raises."""
    report, began = Report(), time.perf_counter()

    def stage(name: str) -> None:
        report.reached.append(name)
        report.seconds = round(time.perf_counter() - began, 3)
        tell(report)

    tell(report)
    try:
        if second:
            rehearse_second(import_watched(path), report, stage)
        else:
            refuse_what_is_no_model(path)
            rehearse(import_watched(path), report, stage, trace)
    except KeyboardInterrupt:
        raise
    except UserError as error:
        report.stopped, report.says = "unreadable", str(error)
    except Wrong as error:
        report.stopped, report.says = "wrong", str(error)
    except BaseException as error:
        gap = gap_of(error, path)
        report.stopped = "gap" if gap else "raised"
        report.says = str(error) if gap else put_into_words(error)
        report.frames = [(frame.function, frame.line) for frame in frames_in(error, path)]
    report.seconds, report.finished = round(time.perf_counter() - began, 3), True
    tell(report)
    return report


def no_trace(_: ModuleType) -> AbstractContextManager[Any]:
    """What is used in place of a trace when none is wanted."""
    return nullcontext()


def find_trace(wanted: bool) -> Trace:
    """nanochat.trace's, if it is wanted."""
    if not wanted or importlib.util.find_spec("nanochat.trace") is None:
        return no_trace
    found: Trace = importlib.import_module("nanochat.trace").trace
    return found


def main() -> None:
    """The child: rehearse the file named first, write reports to the file named second."""
    path, target, hang = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    leave_the_compiler_out()
    system.limit_memory(MEMORY_LIMIT)
    with hang.open("w") as notes:

        def tell(report: Report) -> None:
            write_atomically(target, json.dumps(asdict(report)))
            faulthandler.cancel_dump_traceback_later()
            if not report.finished:
                faulthandler.dump_traceback_later(float(sys.argv[4]), exit=True, file=notes)

        rehearse_file(path, find_trace("--trace" in sys.argv), tell, "--second" in sys.argv)
        sys.stdout.flush()
        os._exit(0)  # whatever threads the model has started do not matter any more


if __name__ == "__main__":
    main()
