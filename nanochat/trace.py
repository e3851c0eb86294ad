"""Watch a model's functions being called, with shapes and dtypes, from outside the model's code."""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, FrameType, ModuleType
from typing import Any

import torch
from torch import Tensor

from nanochat.common import print0


def describe(name: str, value: Any, statistics: bool = False) -> list[str]:
    """Lines about one argument or result; none for what would not help."""
    if isinstance(value, Tensor):
        line = f"{name}.shape: {value.shape} {str(value.dtype).removeprefix('torch.')}"
        if statistics and value.numel() and not value.is_meta:
            numbers = value.detach().double()
            std = numbers.std(correction=0)
            line += f" mean {numbers.mean():.4g} std {std:.4g} max {numbers.abs().max():.4g}"
        return [line]
    if isinstance(value, tuple | list) and any(isinstance(part, Tensor) for part in value):
        return [line for i, part in enumerate(value) for line in describe(f"{name}[{i}]", part, statistics)]
    plain = value is None or isinstance(value, bool | int | float | str | torch.dtype | torch.device)
    if plain or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return [f"{name}: {value}"]
    if isinstance(value, tuple | list) and all(isinstance(part, int | float | str) for part in value):
        shown = ", ".join(str(part) for part in value[:8])
        return [f"{name}: [{shown}{', …' if len(value) > 8 else ''}] ({len(value)})"]
    return []


@dataclass
class Call:
    """One call of a model's function: its depth below the first, what it was given, what came back."""

    name: str
    depth: int
    given: dict[str, Any]
    result: Any = None
    returned: bool = False


@dataclass
class Trace:
    """The calls so far, in the order in which they began."""

    files: frozenset[str]
    out: Callable[[str], object] | None
    statistics: bool
    keep: bool
    calls: list[Call] = field(default_factory=list)
    _open: dict[int, Call] = field(default_factory=dict)  # by id of the frame, while it lives
    _started: set[int] = field(default_factory=set)  # generators that have been called before
    _known: dict[CodeType, bool] = field(default_factory=dict)

    def __call__(self, frame: FrameType, event: str, value: Any) -> None:
        """What the interpreter calls at every call and return."""
        if event == "call" and self.is_ours(frame.f_code):
            self.enter(frame)
        elif event == "return" and id(frame) in self._open:
            self.leave(frame, value)

    def is_ours(self, code: CodeType) -> bool:
        """Whether this code is a named function of a file that is watched."""
        if code not in self._known:
            named = not code.co_name.startswith("<")
            self._known[code] = named and os.path.realpath(code.co_filename) in self.files
        return self._known[code]

    def enter(self, frame: FrameType) -> None:
        code, depth = frame.f_code, len(self._open)
        generator = bool(code.co_flags & inspect.CO_GENERATOR)
        if generator and id(frame) in self._started:
            self.say(depth, f"{code.co_qualname}() resumed")
            self._open[id(frame)] = Call(code.co_qualname, depth, {})
            return
        if not is_a_function(frame):
            return
        if generator:
            self._started.add(id(frame))
        arguments = inspect.getargvalues(frame)
        given = {name: frame.f_locals[name] for name in arguments.args if name != "self"}
        call = Call(code.co_qualname, depth, frozen(given) if self.keep else {})
        self._open[id(frame)] = call
        if self.keep:
            self.calls.append(call)
        self.say(depth, f"{call.name}() called")
        for name, argument in given.items():
            for line in describe(name, argument, self.statistics):
                self.say(depth + 1, line)

    def leave(self, frame: FrameType, value: Any) -> None:
        call = self._open.pop(id(frame))
        generator = bool(frame.f_code.co_flags & inspect.CO_GENERATOR)
        if value is None:  # it has no result, or an exception is on its way
            if generator:
                self._started.discard(id(frame))
            return
        if self.keep:
            call.result, call.returned = frozen(value), True
        for line in describe("yields" if generator else "returns", value, self.statistics):
            self.say(call.depth + 1, line)

    def say(self, depth: int, text: str) -> None:
        if self.out is not None:
            self.out(f"[DEBUG] {'  ' * depth}{text}")


def is_a_function(frame: FrameType) -> bool:
    """Whether the frame runs a function, not the body of a class or of the file."""
    return bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED)


def frozen(value: Any) -> Any:
    """The value as it is now: tensors copied, tuples, lists and dictionaries opened."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {key: frozen(part) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return [frozen(part) for part in value]
    return value


@contextmanager
def trace(
    *modules: ModuleType,
    out: Callable[[str], object] | None = print0,
    statistics: bool = False,
    keep: bool = False,
) -> Iterator[Trace]:
    """Report every call of a function written in these modules' files, in this thread, inside the block.

    Lines go to `out` (None: nowhere). statistics adds mean, standard deviation and largest magnitude of each
    tensor. keep collects the calls, with copies of their tensors, for first_difference().
    """
    files = frozenset(os.path.realpath(module.__file__) for module in modules if module.__file__)
    watching = Trace(files, out, statistics, keep)
    before = sys.getprofile()
    sys.setprofile(watching)
    try:
        yield watching
    finally:
        sys.setprofile(before)


def tensors_of(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside a value, with the path that leads to it."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from tensors_of(f"{name}.{key}" if name else str(key), part)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            yield from tensors_of(f"{name}[{i}]", part)


def moments_of(trace: Trace, common: set[str]) -> list[tuple[str, list[tuple[str, Tensor]]]]:
    """What happened, in order: each call with its arguments' tensors and each return with its result's.

    Results come after everything that was called in between, so the calls are turned back into a walk.
    """
    moments: list[tuple[str, list[tuple[str, Tensor]]]] = []
    waiting: list[Call] = []

    def close(depth: int) -> None:
        while waiting and waiting[-1].depth >= depth:
            call = waiting.pop()
            if call.name in common and call.returned:
                moments.append((f"{call.name} returns", list(tensors_of("result", call.result))))

    for call in trace.calls:
        close(call.depth)
        waiting.append(call)
        if call.name in common:
            moments.append((f"{call.name} is called", list(tensors_of("", call.given))))
    close(0)
    return moments


@dataclass(frozen=True)
class Difference:
    """The first place at which two traces part: in which call, which tensor, and how."""

    where: str
    tensor: str
    how: str
    agreed: int = 0  # tensors compared before it, all alike
    pair: tuple[Tensor, Tensor] | None = None  # this model's and the expected one

    def __str__(self) -> str:
        return f"{self.where}: {self.tensor} {self.how}" if self.tensor else f"{self.where}: {self.how}"


def first_difference(mine: Trace, expected: Trace, tolerance: float = 1e-5) -> Difference | None:
    """The first tensor in which `mine` differs from `expected`, or None. Both need keep=True."""
    common = {call.name for call in mine.calls} & {call.name for call in expected.calls}
    ours, theirs = moments_of(mine, common), moments_of(expected, common)
    counts: dict[str, int] = {}
    agreed = 0
    for (where, tensors), (other, others) in zip(ours, theirs, strict=False):
        if where != other:
            return Difference(where, "", f"comes where the expected model has: {other}", agreed)
        counts[where] = counts.get(where, 0) + 1
        place = f"{where} (time {counts[where]})"
        for (name, x), (_, y) in zip(tensors, others, strict=False):
            if how := unlike(x, y, tolerance):
                return Difference(place, name, how, agreed, (x, y))
            agreed += 1
        if len(tensors) != len(others):
            return Difference(place, "", f"has {len(tensors)} tensors, expected {len(others)}", agreed)
    if len(ours) != len(theirs):
        shorter, longer = sorted((ours, theirs), key=len)
        side = "the expected model" if shorter is ours else "this model"
        return Difference(longer[len(shorter)][0], "", f"happens in {side} only", agreed)
    return None


def unlike(x: Tensor, y: Tensor, tolerance: float) -> str:
    """How x differs from y, or nothing."""
    if x.shape != y.shape:
        return f"has shape {tuple(x.shape)}, expected {tuple(y.shape)}"
    if x.dtype != y.dtype:
        return f"is {x.dtype}, expected {y.dtype}"
    a, b = x.double(), y.double()
    if x.is_meta or torch.equal(a, b):
        return ""
    error = (a - b).abs().masked_fill(a.isnan() & b.isnan(), 0.0).nan_to_num(torch.inf)
    scale = b.nan_to_num(0.0).abs().max().item()
    if error.max().item() <= tolerance * max(scale, 1e-30):
        return ""
    index = tuple(int(i) for i in torch.unravel_index(error.argmax(), error.shape))
    return (
        f"differs by {error.max().item():.3g}, most at {list(index)}: "
        f"{a[index].item():.6g}, expected {b[index].item():.6g} (the largest expected is {scale:.3g})"
    )
