"""How many trials are left, and how long they will take here: counted and reckoned, nothing is run."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from nanochat.common import base_dir
from nanochat.evidence.declared import Experiment, Rules
from nanochat.evidence.runs import TRAIN, Examination, Imagined, Trial, surroundings
from nanochat.evidence.settings import Setting
from nanochat.evidence.texts import at_hand
from nanochat.evidence.variations import VariedGPT, usual_start
from nanochat.machine import this_machine

ASSUMED = {"cpu": 20e9, "cuda": 5e12}  # operations a second of one process, until a trial has been timed
EMULATED = 5  # how many times as long a product in bf16 takes where the hardware has none
HELD_BACK = 200_000  # tokens that a trial is judged by; a forward pass is a third of a step
DECODING = 12  # steps that take about as long as timing the decoding of two models


@dataclass(frozen=True)
class Plan:
    """What is left to run of one experiment: trials and seconds, without and with every grid extended."""

    one: Experiment
    trials: tuple[int, int]
    seconds: tuple[float, float]


def make_plans(chosen: Sequence[Experiment], rules: Rules, device: str) -> tuple[list[Plan], str]:
    """Plans in the order given, no trial counted twice, and what their times rest on."""
    pace = Pace(device)
    seen: tuple[set[Trial], set[Trial]] = (set(), set())
    plans = []
    for one in chosen:
        trials, seconds = [], []
        for known, extended in zip(seen, (False, True), strict=True):
            bench = Imagined(extended)
            Examination(one, rules, device, bench).measure()
            new = [trial for trial in bench.asked if trial not in known and not is_kept(trial)]
            known |= set(new)
            trials.append(len(new))
            seconds.append(sum(map(pace.seconds, new)))
        plans.append(Plan(one, (trials[0], trials[1]), (seconds[0], seconds[1])))
    return plans, pace.rests_on()


def is_kept(trial: Trial) -> bool:
    """Whether a trial's outcome is there, as far as can be seen without preparing a corpus."""
    setting = trial.settings[0]
    readable = trial.kind != TRAIN or at_hand(setting.data, setting.vocab_size)
    return readable and trial.kept() is not None


def operations(trial: Trial) -> float:
    """Floating-point operations of a trial, near enough for a plan."""
    setting = trial.settings[0]
    tokens = setting.sequence_len * setting.batch_size * setting.passes
    tokens = setting.steps * tokens + HELD_BACK // 3 if trial.kind == TRAIN else DECODING * tokens
    return float(tokens * flops_a_token(usual_start(setting)))


@functools.cache
def flops_a_token(usual: Setting) -> int:
    """Operations to train the book's model of these sizes on one token; the model is made and counted."""
    return VariedGPT(usual).estimate_flops()


class Pace:
    """Operations a second of a trial on this machine, from those that are kept."""

    def __init__(self, device: str) -> None:
        """Read what is kept."""
        self.device, self.timed = device, list(timed(device))
        self.known: dict[Setting, float] = {}

    def seconds(self, trial: Trial) -> float:
        """What a trial will take."""
        setting = trial.settings[0]
        sizes = of_size(setting)
        if sizes not in self.known:
            alike = [speed for other, speed in self.timed if of_size(other) == sizes]
            others = [speed for other, speed in self.timed if other.dtype == setting.dtype]
            # Of other sizes the fastest: what slows small models down is not there in larger ones.
            self.known[sizes] = median(alike) if alike else max(others, default=self.assumed(setting))
        return operations(trial) / self.known[sizes]

    def assumed(self, setting: Setting) -> float:
        """The speed of a kind of trial of which none has been timed."""
        slow = setting.dtype == "bfloat16" and not this_machine(torch.device(self.device)).bfloat16
        return ASSUMED[self.device] / (EMULATED if slow else 1)

    def rests_on(self) -> str:
        """In words, what the times rest on."""
        if self.timed:
            return f"reckoned from what {len(self.timed)} kept trials took here"
        speed = ASSUMED[self.device] / 1e9
        return (
            f"reckoned for an assumed {speed:g} billion operations a second in each process: no trial is kept"
        )


def of_size(setting: Setting) -> Setting:
    """What two settings have in common whose models are of one size and multiply in the same format."""
    usual = usual_start(setting)
    return Setting(
        usual.n_layer, usual.n_embd, usual.n_head, vocab_size=usual.vocab_size, dtype=setting.dtype
    )


def timed(device: str) -> Iterator[tuple[Setting, float]]:
    """Of each trial kept from this device: its setting, and its operations a second."""
    here = surroundings(device)
    for path in (base_dir() / "evidence").glob("*.json"):
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            identity, took = kept["identity"], float(kept["outcome"]["took"])
            trial = Trial(identity["kind"], (Setting(**identity["settings"][0]),), 0, device)
        except (OSError, ValueError, KeyError, TypeError):
            continue  # of an older program, or cut off: it will be run again
        if trial.kind == TRAIN and took > 0 and here.items() <= identity.items():
            yield trial.settings[0], operations(trial) / took


def in_words(plans: Sequence[Plan], rests_on: str, device: str, workers: int) -> str:
    """The plans as lines: what will be run, and how long it will take."""
    lines = [f"on {this_machine(torch.device(device)).line()}; {workers} at a time, as they run alone:"]
    for one in plans:
        trials = between(*map(str, one.trials))
        lines.append(f"{one.one.name:24} {trials:>14} trials  {hours(one.seconds, workers):>16}")
    low, high = (sum(plan.seconds[side] for plan in plans) for side in (0, 1))
    lines.append(f"{'together':24} {'':21}  {hours((low, high), workers):>16}")
    lines.append("the larger number is for grids that are all extended as far as is allowed;")
    return "\n".join([*lines, rests_on])


def between(low: str, high: str) -> str:
    """One text or a range."""
    return low if low == high else f"{low} to {high}"


def hours(seconds: tuple[float, float], workers: int) -> str:
    """A range of times, in minutes if it ends within the hour."""
    unit, name = (3600, "hours") if seconds[1] / workers >= 3600 else (60, "minutes")
    low, high = (f"{part / workers / unit:.1f}" for part in seconds)
    return f"{between(low, high)} {name}"
