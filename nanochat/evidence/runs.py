"""From a declaration to a record: tune every arm, compare it on fresh seeds, keep each trial as it ends."""

from __future__ import annotations

import functools
import hashlib
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from nanochat.common import base_dir, write_atomically
from nanochat.evidence.declared import BPB, Axis, Comparison, Experiment, Rules
from nanochat.evidence.freshness import reach
from nanochat.evidence.settings import Setting
from nanochat.evidence.texts import read_text
from nanochat.evidence.trials import Outcome, clock, time_decoding, train
from nanochat.machine import this_machine
from nanochat.records import FORMAT, moment

BOOK = "the book's"
TRAIN, DECODE = "train", "time_decoding"


@dataclass(frozen=True)
class Trial:
    """One setting with one seed; for the time of decoding two settings, in turns."""

    kind: str
    settings: tuple[Setting, ...]
    seed: int
    device: str

    def identity(self) -> dict[str, Any]:
        """All that decides the outcome: settings, seed, code, text, PyTorch and machine."""
        return {
            "kind": self.kind,
            "settings": [asdict(setting) for setting in self.settings],
            "seed": self.seed,
            **surroundings(self.device),
            "code": code_of(self.kind),
            "text": text_of(self.settings[0]) if self.kind == TRAIN else "",
        }

    def path(self) -> Path:
        """Where the outcome is kept."""
        text = json.dumps(self.identity(), sort_keys=True)
        return base_dir() / "evidence" / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.json"

    def kept(self) -> Outcome | None:
        """The outcome, if it is kept. A file that cannot be read counts as none."""
        try:
            found = json.loads(self.path().read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        whole = isinstance(found, dict) and found.get("identity") == self.identity()
        return dict(found["outcome"]) if whole else None

    def keep(self, outcome: Outcome) -> None:
        """Keep the outcome, whole or not at all."""
        write_atomically(self.path(), json.dumps({"identity": self.identity(), "outcome": outcome}) + "\n")


@functools.cache
def surroundings(device: str) -> dict[str, Any]:
    """The machine and the PyTorch that a trial runs on."""
    here = this_machine(torch.device(device))
    return {"device": here.device, "kind of machine": here.kind, "torch": torch.__version__}


@functools.cache
def code_of(kind: str) -> dict[str, str]:
    """The definitions that trials of a kind can reach, with their checksums."""
    return reach(("nanochat.evidence.trials", kind))


def text_of(setting: Setting) -> str:
    """What the text of a setting is known by."""
    return read_text(setting.data, setting.vocab_size).fingerprint


def work(trial: Trial) -> Outcome:
    """Run a trial; on a CPU with one thread, so that it repeats and does not disturb its neighbour.

    The outcome is stamped with the moment at which it began and the seconds that all of it took.
    """
    if trial.device == "cpu":
        torch.set_num_threads(1)
    device, setting = torch.device(trial.device), trial.settings[0]
    text = read_text(setting.data, setting.vocab_size) if trial.kind == TRAIN else None
    began, start = moment(time.time()), clock(device)
    if text is None:
        outcome = time_decoding(trial.settings, trial.seed, device)
    else:
        outcome = train(setting, trial.seed, text, device)
    return outcome | {"began": began, "took": clock(device) - start}


def end_with_the_parent() -> None:
    """In a process that runs trials: end as soon as the one that began it is gone, killed ones included."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class Laboratory(Protocol):
    """Where trials are run, or only counted."""

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """The outcomes of these trials, in their order."""
        ...


class OutOfTime(Exception):
    """The budget is spent; what has ended is kept."""


@dataclass
class Bench:
    """Runs what is not kept, several trials at a time, until a moment."""

    workers: int = 1
    until: float | None = None  # on time.monotonic's clock; None: as long as it takes
    say: Any = None  # called with a line after each trial
    pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Keep each outcome as soon as it is there. Raises OutOfTime before a trial that is too late."""
        found = {trial: trial.kept() for trial in dict.fromkeys(trials)}
        missing = [trial for trial, outcome in found.items() if outcome is None]
        alone = [trial for trial in missing if trial.kind == DECODE]  # times want the machine for themselves
        shared = [trial for trial in missing if trial.kind == TRAIN]
        for trials_left, workers in ((shared, self.workers), (alone, 1)):
            found |= dict(self.finished(trials_left, workers))
        return [outcome for trial in trials if (outcome := found[trial]) is not None]

    def finished(self, trials: list[Trial], workers: int) -> Iterator[tuple[Trial, Outcome]]:
        """Run trials, and hand out each when it has ended and is kept."""
        waiting: dict[Future[Outcome], Trial] = {}
        left = list(trials)
        while left or waiting:
            while left and len(waiting) < workers and not self.late():
                trial = left.pop(0)
                if workers == 1:
                    yield self.done(trial, work(trial))
                else:
                    waiting[self.processes().submit(work, trial)] = trial
            if waiting:
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield self.done(waiting.pop(future), future.result())
            elif left and self.late():
                raise OutOfTime

    def late(self) -> bool:
        """Whether no further trial may begin."""
        return self.until is not None and time.monotonic() >= self.until

    def processes(self) -> ProcessPoolExecutor:
        """The processes that trials run in, begun when they are first needed."""
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.workers, context, initializer=end_with_the_parent)
        return self.pool

    def done(self, trial: Trial, outcome: Outcome) -> tuple[Trial, Outcome]:
        """Keep an outcome and say so."""
        trial.keep(outcome)
        if self.say is not None:
            self.say(trial, outcome)
        return trial, outcome


@dataclass
class Imagined:
    """Runs nothing: counts what would be run, if no grid had to be extended, or if all had to."""

    extended: bool = False
    asked: dict[Trial, None] = field(default_factory=dict)

    def run(self, trials: Sequence[Trial]) -> list[Outcome]:
        """Made-up outcomes: the best in the middle of what is asked for together, or at its end."""
        self.asked |= dict.fromkeys(trials)
        settings = list(dict.fromkeys(trial.settings for trial in trials))
        lowest = len(settings) - 1 if self.extended else len(settings) // 2
        low = -float(len(self.asked)) if self.extended else 0.0
        found = []
        for trial in trials:
            loss = low + abs(settings.index(trial.settings) - lowest)
            found.append({"losses": [loss, loss], "seconds": 1.0, "parameters": 0, "seen": {}})
            found[-1]["decoding, ms"] = [1.0, 1.0]
        return found


@dataclass(frozen=True)
class Tuned:
    """An arm at the best of its rates."""

    setting: Setting
    edge: bool  # whether a best rate is still an edge of its extended grid
    seconds: float  # of the training steps, median of the tuning runs at the best rates
    tried: list[dict[str, Any]]  # for each axis: fields, values and mean losses


class Examination:
    """One experiment on one device: what is run, in which order, and what is recorded of it."""

    def __init__(self, one: Experiment, rules: Rules, device: str, bench: Laboratory) -> None:
        """Nothing runs yet."""
        self.one, self.rules, self.device, self.bench = one, rules, device, bench
        self.began = moment(time.time())  # of the earliest trial, also of one that was kept before

    def ask(self, trials: Sequence[Trial]) -> list[Outcome]:
        """What the bench says of these trials."""
        outcomes = self.bench.run(trials)
        self.began = min([self.began, *(outcome["began"] for outcome in outcomes if "began" in outcome)])
        return outcomes

    def trials(self, setting: Setting, seeds: Sequence[int]) -> list[Outcome]:
        """The outcomes of a setting, seed by seed."""
        return self.ask([Trial(TRAIN, (setting,), seed, self.device) for seed in seeds])

    def losses(self, settings: Sequence[Setting], seeds: Sequence[int]) -> list[float]:
        """The mean loss of each setting over seeds and speeches; infinite if a run diverged."""
        asked = [Trial(TRAIN, (setting,), seed, self.device) for setting in settings for seed in seeds]
        outcomes, count = self.ask(asked), len(seeds)
        means = [mean_loss(outcome) for outcome in outcomes]
        return [sum(means[at : at + count]) / count for at in range(0, len(means), count)]

    def search(
        self, values: Sequence[float], make: Any, seeds: Sequence[int]
    ) -> tuple[list[float], list[float], bool]:
        """Tried values in rising order, their losses, and whether the best is an edge of the whole grid."""
        tried = dict(zip(values, self.losses([make(value) for value in values], seeds), strict=True))
        for _ in range(self.rules.extensions):
            grid = sorted(tried)
            best = min(grid, key=lambda value: tried[value])
            if best not in (grid[0], grid[-1]):
                break
            further = grid[0] ** 2 / grid[1] if best == grid[0] else grid[-1] ** 2 / grid[-2]
            tried |= dict(zip([further], self.losses([make(further)], seeds), strict=True))
        grid = sorted(tried)
        best = min(grid, key=lambda value: tried[value])
        return grid, [tried[value] for value in grid], best in (grid[0], grid[-1])

    def tune(self, setting: Setting, axes: Sequence[Axis]) -> Tuned:
        """The setting with the best values along each axis, one axis after the other."""
        at_edge, tried, seeds = False, [], self.rules.tuning_seeds
        for axis in axes:
            make = functools.partial(along, setting, axis)
            grid, losses, edge = self.search(axis.values, make, seeds)
            tried.append({"fields": list(axis.fields), "values": grid, "losses": [known(x) for x in losses]})
            setting, at_edge = make(grid[losses.index(min(losses))]), at_edge or edge
        seconds = sorted(outcome["seconds"] for outcome in self.trials(setting, seeds))
        return Tuned(setting, at_edge, seconds[len(seconds) // 2], tried)

    def measure(self) -> dict[str, Any]:
        """Everything of each size."""
        return {size: self.at_size(size) for size in self.one.sizes}

    def record(self) -> dict[str, Any]:
        """What is measured at each size; no verdict, for that depends on the other experiments too."""
        sizes = self.measure()
        kinds = {DECODE for each in self.one.comparisons if each.quantity not in (BPB, "exponent")} | {TRAIN}
        texts = {setting.data: setting for setting in (self.book(size) for size in self.one.sizes)}
        return {
            "format": FORMAT,
            "experiment": self.one.name,
            "declaration": self.one.checksum,
            "declared": self.rules.declared,
            "started": self.began,
            "ended": moment(time.time()),
            **surroundings(self.device),
            "text": sorted(text_of(setting) for setting in texts.values()),
            "code": {name: value for kind in sorted(kinds) for name, value in code_of(kind).items()},
            "seeds": list(self.rules.fresh_seeds),
            "sizes": sizes,
        }

    def book(self, size: str, **changes: Any) -> Setting:
        """The book's model at a size."""
        return self.rules.setting(size, self.device, self.one.base | changes)

    def at_size(self, size: str) -> dict[str, Any]:
        """Everything of one size: arms, control, comparisons."""
        if self.one.sweep is not None:
            return self.sweep(size, self.one.sweep)
        compared = self.one.compared(size)
        names = dict.fromkeys(each.arm for each in compared)
        tuned = {BOOK: self.tune(self.book(size), self.rules.axes)}
        for name in names:
            arm = self.one.arm(name)
            tuned[name] = self.tune(self.book(size, **arm.changes), arm.axes)
        found: dict[str, Any] = {"arms": {name: described(each) for name, each in tuned.items()}}
        if any(each.quantity == BPB for each in compared):
            found["control"] = self.control(tuned[BOOK])
        found["comparisons"] = [self.compare(each, tuned[BOOK], tuned[each.arm]) for each in compared]
        return found

    def control(self, book: Tuned) -> dict[str, Any]:
        """The book's model with more steps, against itself."""
        longer = replace(book.setting, steps=round(book.setting.steps * self.rules.control_steps))
        return {"steps": [longer.steps, book.setting.steps], **self.differences(longer, book.setting)}

    def differences(self, arm: Setting, book: Setting) -> dict[str, Any]:
        """Of each fresh seed and speech: the arm's loss minus the book's; none if a run diverged."""
        pairs = [self.trials(setting, self.rules.fresh_seeds) for setting in (arm, book)]
        lost = [sum(outcome["losses"] is None for outcome in outcomes) for outcomes in pairs]
        means = [
            None if gone else known(sum(map(mean_loss, o)) / len(o))
            for gone, o in zip(lost, pairs, strict=True)
        ]
        values = [
            [round(a - b, 7) for a, b in zip(one["losses"], other["losses"], strict=True)]
            for one, other in zip(*pairs, strict=True)
            if not any(lost)
        ]
        return {"values": values, "diverged": lost, "losses": means}

    def compare(self, compared: Comparison, book: Tuned, arm: Tuned) -> dict[str, Any]:
        """One comparison of a size, as it is recorded."""
        about = {"about": compared.about, "edge": book.edge or arm.edge}
        if compared.quantity != BPB:
            trials = [
                Trial(DECODE, (book.setting, arm.setting), seed, self.device)
                for seed in self.rules.fresh_seeds
            ]
            times = [outcome[compared.quantity] for outcome in self.ask(trials)]
            return about | {"values": [[round(other / one - 1, 6)] for one, other in times]}
        sides = [faster(each.setting, compared.times) for each in (arm, book)]
        if compared.equal == "time":
            steps = max(1, round(sides[0].steps * book.seconds / arm.seconds))
            sides[0] = replace(sides[0], steps=steps)
        steps_of = [setting.steps for setting in sides]
        return about | {"steps": steps_of, **self.differences(sides[0], sides[1])}

    def sweep(self, size: str, axis: Axis) -> dict[str, Any]:
        """Losses over multiples of the rates at each width, on fresh seeds, and whether a best is an edge."""
        seeds, widths, edge = self.rules.fresh_seeds, {}, False
        for width in self.one.widths:
            narrow = self.book(size, n_embd=width, n_head=max(1, width // 32))
            make = functools.partial(times, narrow, axis)
            grid, losses, at_edge = self.search(axis.values, make, seeds)
            each = [[known(mean_loss(o)) for o in self.trials(make(value), seeds)] for value in grid]
            edge = edge or at_edge
            widths[str(width)] = {
                "values": grid,
                "losses": [known(loss) for loss in losses],
                "by seed": each,
                "edge": at_edge,
            }
        return {
            "widths": widths,
            "comparisons": [{"about": c.about, "edge": edge} for c in self.one.compared(size)],
        }


def mean_loss(outcome: Outcome) -> float:
    """The mean over the speeches, each counted once; infinite for a run that diverged."""
    losses = outcome["losses"]
    return sum(losses) / len(losses) if losses else float("inf")


def known(loss: float) -> float | None:
    """A loss for a record, in which a diverged run is None."""
    return round(loss, 7) if loss < float("inf") else None


def along(setting: Setting, axis: Axis, value: float) -> Setting:
    """The setting with this value in the fields of an axis."""
    values: dict[str, Any] = dict.fromkeys(axis.fields, value)
    return replace(setting, **values)


def times(setting: Setting, axis: Axis, factor: float) -> Setting:
    """The setting with the fields of an axis multiplied."""
    return faster(setting, dict.fromkeys(axis.fields, factor))


def faster(setting: Setting, factors: dict[str, float]) -> Setting:
    """The setting with some of its rates multiplied."""
    values = {name: factor * getattr(setting, name) for name, factor in factors.items()}
    return replace(setting, **values)


def described(tuned: Tuned) -> dict[str, Any]:
    """What a record says of a tuned arm."""
    fields = [name for axis in tuned.tried for name in axis["fields"]]
    rates = {name: getattr(tuned.setting, name) for name in fields}
    return {"rates": rates, "edge": tuned.edge, "seconds": round(tuned.seconds, 2), "tried": tuned.tried}
