"""Run an experiment's missing trials and make its record."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import torch

from nanochat.evidence.experiments import Experiment
from nanochat.evidence.freshness import digests, fragments_run
from nanochat.evidence.procedures import PROCEDURES, TOGETHER
from nanochat.evidence.records import store_trial, stored_trial
from nanochat.evidence.report import conclude
from nanochat.evidence.settings import Setting, shrunk
from nanochat.evidence.trials import Text
from nanochat.provenance import read_book
from nanochat.records import FORMAT, describe_machine


@dataclass(frozen=True)
class Job:
    """One procedure with one seed, on one setting or on several in turns."""

    procedure: str
    settings: tuple[tuple[str, Setting], ...]  # several only for a procedure that takes turns
    seed: int
    device: str

    def together(self) -> bool:
        """Whether the procedure takes all variations at once."""
        return self.procedure in TOGETHER

    def identity(self) -> dict[str, Any]:
        """All that decides the outcome. Names of variations do not, unless they take turns."""
        settings = [[name if self.together() else "", asdict(setting)] for name, setting in self.settings]
        return {
            "procedure": self.procedure,
            "settings": settings,
            "seed": self.seed,
            "device": self.device,
            "code": code_of(self),
            "text": sorted({text_of(setting) for _, setting in self.settings}),
        }

    def run(self) -> dict[str, Any]:
        """The outcome of each setting, by the variation's name."""
        device = torch.device(self.device)
        if self.together():
            return TOGETHER[self.procedure](dict(self.settings), self.seed, device)
        ((name, setting),) = self.settings
        return {name: PROCEDURES[self.procedure](setting, self.seed, device)}


@functools.cache
def traced(procedure: str, settings: tuple[tuple[str, Setting], ...]) -> tuple[tuple[str, str], ...]:
    """The fragments that a procedure runs for these settings, with their checksums."""
    return tuple(digests(read_book(), fragments_run(Job(procedure, settings, 0, "cpu").run)).items())


def code_of(job: Job) -> dict[str, str]:
    """The fragments that a job involves, found by running it at a tiny size."""
    return dict(traced(job.procedure, tuple((name, shrunk(setting)) for name, setting in job.settings)))


@functools.cache
def text_of_size(data: str, vocab_size: int, batch_size: int, sequence_len: int) -> str:
    """A checksum of the text that runs of this size read."""
    setting = Setting(data=data, vocab_size=vocab_size, batch_size=batch_size, sequence_len=sequence_len)
    return Text(setting, torch.device("cpu")).fingerprint()


def text_of(setting: Setting) -> str:
    """A checksum of the text that a setting reads."""
    return text_of_size(setting.data, setting.vocab_size, setting.batch_size, setting.sequence_len)


def jobs_of(one: Experiment, seeds: int, device: str, first: int = 0) -> list[Job]:
    """All that an experiment runs, seed by seed from `first` on, so that a cut-off run has whole seeds."""
    settings = one.settings(large=device == "cuda")
    jobs = []
    for seed in range(first, first + seeds):
        for procedure in one.procedures:
            jobs += [Job(procedure, (("", setting),), seed, device) for setting in settings.values()]
        jobs += [Job(procedure, tuple(settings.items()), seed, device) for procedure in one.together]
    return jobs


def work(job: Job) -> dict[str, Any]:
    """Run a job in a process of its own, with one thread."""
    if job.device == "cpu":
        torch.set_num_threads(1)
    return job.run()


def run_jobs(jobs: list[Job], workers: int, title: str, anew: bool = False) -> dict[Job, dict[str, Any]]:
    """The outcomes of all jobs: those kept from before, and the others, each kept as soon as it is there."""
    from tqdm import tqdm

    identities = {job: job.identity() for job in dict.fromkeys(jobs)}
    outcomes = {}
    for job, identity in identities.items():
        if not anew and (known := stored_trial(identity)) is not None:
            outcomes[job] = known
    missing = [job for job in identities if job not in outcomes]
    # Timings last and alone: while they run, nothing else of ours does.
    alone = [job for job in missing if job.together()]
    shared = [job for job in missing if not job.together()]
    with tqdm(total=len(identities), initial=len(outcomes), desc=title, unit="trial") as bar:
        for job, outcome in finished(shared, workers):
            outcomes[job] = outcome
            store_trial(identities[job], outcome)
            bar.update()
        for job, outcome in finished(alone, 1):
            outcomes[job] = outcome
            store_trial(identities[job], outcome)
            bar.update()
    return outcomes


def finished(jobs: list[Job], workers: int) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run jobs, and hand out each when it has finished."""
    if workers <= 1 or len(jobs) <= 1:
        for job in jobs:
            yield job, work(job)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        waiting = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def complete(
    one: Experiment,
    device: str,
    seeds: int = 0,
    workers: int = 1,
    *,
    anew: bool = False,
    command: str = "",
    first: int = 0,
) -> dict[str, Any]:
    """Run what is missing of an experiment and return its record; writes the trials, not the record."""
    numbers = range(first, first + (seeds or one.seeds))
    large = device == "cuda"
    jobs = jobs_of(one, len(numbers), device, first)
    outcomes = run_jobs(jobs, workers, one.name, anew)
    trials: dict[str, dict[str, Any]] = {
        name: {str(seed): {"numbers": {}, "curves": {}} for seed in numbers} for name in one.variations
    }
    settings = one.settings(large)
    for job in jobs:
        for given, outcome in outcomes[job].items():
            for name in [given] if given else [n for n, s in settings.items() if s == job.settings[0][1]]:
                mine = trials[name][str(job.seed)]
                mine["numbers"] |= outcome["numbers"]
                mine["curves"] |= outcome["curves"]
    record = {
        "format": FORMAT,
        "experiment": one.name,
        "command": command or f"python -m scripts.experiment {one.name}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(device),
        "seeds": list(numbers),
        "configuration": one.configuration(large),
        "text": sorted({text_of(setting) for setting in settings.values()}),
        "code": digests(read_book(), {name for job in jobs for name in code_of(job)}),
        "trials": trials,
    }
    return record | conclude(one, record)


def machine(device: str) -> dict[str, Any]:
    """What the numbers were measured on."""
    described = describe_machine(device)
    versions = {name: described["versions"][name] for name in ("python", "torch")}
    return described | versions | {"threads of a trial": 1 if device == "cpu" else None}
