"""How several processes stay together: common numbers, common errors, and signals that all of them obey."""

from __future__ import annotations

import faulthandler
import math
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import torch

from nanochat.common import Ranks, UserError
from nanochat.step import Batch

Made = TypeVar("Made")
LOOK_EVERY = 0.5  # seconds between two looks at what the other processes say
GRACE = {"nccl": 10.0, "gloo": 120.0}  # seconds for the main thread to end when another process has failed


def largest(values: list[float], ranks: Ranks, device: torch.device) -> list[float]:
    """Of each number the largest over all processes, so that all decide alike."""
    if ranks.world_size == 1:
        return values
    together = torch.tensor(values, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(together, torch.distributed.ReduceOp.MAX)
    return [float(value) for value in together]


def from_the_first(make: Callable[[], Made], ranks: Ranks) -> Made:
    """What `make` gives in the first process, in all of them."""
    made: list[Any] = [make() if ranks.first else None]
    if ranks.world_size > 1:
        torch.distributed.broadcast_object_list(made)
    return made[0]  # type: ignore[no-any-return]


class Signals:
    """While active, Ctrl-C, SIGTERM and SIGHUP are a wish that the run grants; the second is not caught."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.received = 0
        self.moves = 0  # how often the main thread has come by, while a run goes on
        self.failure = ""  # what another process has said in failing
        self.ending = threading.Event()  # set when this process is about to end by itself
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP"):
                number = getattr(signal, name, None)  # Windows has no SIGHUP
                if number is not None and signal.getsignal(number) != signal.SIG_IGN:
                    self.previous[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back; of several processes none takes SIGTERM from here on."""
        self.moves = 0
        self.step_aside()
        if self.ranks.world_size > 1 and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def step_aside(self) -> None:
        """From here on signals have the effect they had before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def receive(self, number: int, frame: object) -> None:
        """The handler: remember the signal, say so, and step aside for a second one."""
        self.received = number
        self.step_aside()
        if self.ranks.first:
            name = signal.Signals(number).name
            with suppress(OSError):  # the terminal may be what has gone
                os.write(2, f"\n{name}: finishing this step, then saving (once more: end now)\n".encode())

    def leave_if_asked(self, alone: bool = True) -> None:
        """Raise Interrupted if a signal came; one process of several may only where all do, with alone=False.

        Raises OtherFailed if another process has failed.
        """
        self.moves += 1
        if self.failure:
            raise OtherFailed(self.failure)
        if self.received and (self.ranks.world_size == 1 or not alone):
            raise Interrupted

    def watch(self, batches: Iterator[Batch], alone: bool = True) -> Iterator[Batch]:
        """Pass batches on until a signal comes."""
        for batch in batches:
            self.leave_if_asked(alone)
            yield batch


class Interrupted(Exception):
    """Raised where stopping is safe: weights and optimizers are those of the step's beginning."""


class OtherFailed(UserError):
    """Another process failed; the text is what it said."""


class Companions:
    """While active, what ends one process ends all of them, at the latest after GRACE, with its message."""

    def __init__(self, ranks: Ranks, signals: Signals, patience: float = math.inf) -> None:
        """patience: seconds in which none of the processes may ask for a batch or a token."""
        self.ranks, self.signals, self.patience = ranks, signals, patience
        self.over = threading.Event()
        self.store: Any = None
        self.grace = 0.0
        self.moves, self.count, self.since = 0, 0, 0.0  # own, of all, and when the last of these was seen

    def __enter__(self) -> Companions:
        if self.ranks.world_size > 1:
            self.grace = GRACE[torch.distributed.get_backend()]
            store: Any = torch.distributed.distributed_c10d._get_default_store()
            self.store = store.clone()  # a connection of its own
            threading.Thread(target=self.listen, name="companions", daemon=True).start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Tell the others of an error, or raise theirs in place of what it has caused here."""
        self.signals.ending.set()
        try:
            if self.store is None or error is None or isinstance(error, SystemExit):
                return
            caused = isinstance(error, RuntimeError)  # perhaps an exchange that another process has left
            message = self.failure(wait=2.0 if caused else 0.0)
            if not message:
                said = str(error).strip() or type(error).__name__
                self.store.set("nanochat/failure", f"process {self.ranks.rank}: {said}")
            elif caused:
                raise OtherFailed(message) from error
        finally:
            self.over.set()

    def failure(self, wait: float = 0.0) -> str:
        """What another process has said in failing, within so many seconds; "" for nothing."""
        until = time.monotonic() + wait
        with suppress(RuntimeError):  # the store's process has ended
            while True:
                if self.store.check(["nanochat/failure"]):
                    return str(self.store.get("nanochat/failure").decode())
                if time.monotonic() >= until:
                    break
                time.sleep(0.1)
        return ""

    def listen(self) -> None:
        """In a thread: pass signals on, and end this process when another has failed or none moves."""
        told = False
        with suppress(RuntimeError):
            while not self.over.wait(LOOK_EVERY):
                if self.signals.received and not told:
                    self.store.set("nanochat/signal", str(self.signals.received))
                    told = True
                elif not told and self.store.check(["nanochat/signal"]):
                    self.signals.received = int(self.store.get("nanochat/signal"))
                    told = True
                self.end_if_none_moves()
                if message := self.failure():
                    self.signals.failure = message
                    if not self.signals.ending.wait(self.grace):
                        self.end(message)
                    return

    def end_if_none_moves(self) -> None:
        """Count in the store that this process has moved; end it, with its places, when all stand still."""
        moves, before = self.signals.moves, self.moves
        count = self.store.add("nanochat/moves", int(moves not in (0, before)))
        if count != self.count or not moves:
            self.since = time.monotonic()
        self.moves, self.count = moves, count
        if time.monotonic() - self.since > self.patience:
            said = f"no process has moved for {self.patience:g} s (--patience)"
            self.store.set("nanochat/still", said)
        if self.store.check(["nanochat/still"]):
            said = self.store.get("nanochat/still").decode()
            self.end(f"{said}; process {self.ranks.rank} stands here:\n{places_of_threads()}")

    def end(self, message: str) -> None:
        """End this process from the thread, when the others had time to look into the store as well."""
        with suppress(OSError):
            os.write(2, f"error: {message}\n".encode())
        time.sleep(4 * LOOK_EVERY)
        os._exit(2)


def places_of_threads() -> str:
    """The calls that each thread of this process is in, the innermost first."""
    with tempfile.TemporaryFile() as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


@contextmanager
def one_fate(ranks: Ranks, signals: Signals) -> Iterator[None]:
    """Around work without exchanges: what fails, or is interrupted, in one process raises in all of them."""
    error: Exception | None = None
    try:
        yield
    except Exception as raised:
        error = raised
    if ranks.world_size > 1:
        own = "" if error is None else "stop" if isinstance(error, Interrupted) else f"error {error}"
        said: list[Any] = [None] * ranks.world_size
        torch.distributed.all_gather_object(said, (own, signals.received))
        signals.received = signals.received or max(number for _, number in said)
        wrong = [f"process {rank}: {text[6:]}" for rank, (text, _) in enumerate(said) if text[:5] == "error"]
        if error is None and wrong:
            raise UserError(wrong[0])
        if error is None and any(text == "stop" for text, _ in said):
            raise Interrupted
    if error is not None:
        raise error
