"""Compare programs by letting them take turns, each in a process of its own, and keep what they report."""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from nanochat import system
from nanochat.common import peak_memory_bytes, pick_device
from nanochat.machine import use_own_cores

if TYPE_CHECKING:
    import torch

NO_MEMORY = "out of memory"
Work = tuple[dict[str, Any], Callable[..., dict[str, Any]]]  # facts, and what does one repetition
Preparation = Callable[["torch.device"], Work]


def serve(connection: Connection, prepare: Preparation, device_type: str) -> None:
    """The life of a child process: prepare, then one repetition for every order, at last the peak."""
    try:
        device = pick_device(device_type)
        facts, turn = prepare(device)
        forget_peak(device)
        connection.send(facts)
        while (order := connection.recv()) is not None:
            connection.send(turn(*order))
        connection.send(peak_memory_bytes(device))
    except KeyboardInterrupt:
        pass
    except Exception as error:
        kind, lines = type(error).__name__, str(error).splitlines()
        connection.send(NO_MEMORY if "OutOfMemory" in kind else f"{kind}: {lines[0] if lines else ''}")


def set_up_as_training_does(device: torch.device, reuse: bool = True) -> None:
    """Make the settings that training makes, or all but the reuse of freed memory."""
    import torch

    from nanochat.workplace import prepare_memory

    torch.set_float32_matmul_precision("high")
    use_own_cores()
    prepare_memory(device, reuse)


def forget_peak(device: torch.device) -> None:
    """Let the peak of memory begin at what is held now, where the system allows it."""
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    system.forget_peak()


def held_memory_bytes(device: torch.device) -> int:
    """What is held now: by tensors on CUDA, elsewhere by the process; 0 where the system does not tell."""
    import torch

    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    return system.process_bytes()


class Child:
    """The parent's side of one process."""

    def __init__(self, prepare: Preparation, device_type: str) -> None:
        """Start the process and wait until it has prepared itself; prepare must be importable."""
        context = multiprocessing.get_context("spawn")
        self.failed, self.peak = "", 0
        self.turns: list[dict[str, Any]] = []
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, prepare, device_type), daemon=True)
        self.process.start()
        other.close()
        self.facts: dict[str, Any] = self.receive() or {}

    def receive(self) -> Any:
        """What the process sends next; None, with the reason in `failed`, if it fails."""
        try:
            answer = self.connection.recv()
        except EOFError:
            self.process.join()
            killed = self.process.exitcode == -9  # what Linux does to the largest process when memory ends
            answer = NO_MEMORY if killed else f"the process ended with status {self.process.exitcode}"
        if not isinstance(answer, str):
            return answer
        self.failed = answer
        return None

    def take_turn(self, *order: Any) -> dict[str, Any]:
        """One repetition, of whatever the order says; nothing from a process that has failed."""
        if not self.failed:
            self.connection.send(order)
            if answer := self.receive():
                self.turns.append(answer)
                return dict(answer)
        return {}

    def stop(self) -> None:
        """End the process, keeping its peak."""
        if not self.failed:
            self.connection.send(None)
            self.peak = self.receive() or 0
        self.process.join(timeout=10)
        self.process.kill()


def say(line: str) -> None:
    """Tell on the terminal what is going on, apart from the results."""
    print(line, file=sys.stderr, flush=True)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) < 2:
        return dict.fromkeys(("median", "low", "high"), values[0])
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": median, "low": low, "high": high}


def load_line(load: Sequence[float]) -> str:
    """What was running on the machine before, of the averages that the system tells, if it does."""
    return f"Load of the machine before: {f'{load[0]:.1f}' if load else 'unknown'}"


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    digits = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, aligned for a terminal: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = []
    for first, *others in (header, rule, *rows):
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([first.ljust(widths[0]), *cells])} |")
    return "\n".join(lines)
