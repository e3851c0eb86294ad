"""Train variations of a plan, as long as a stated machine could in a stated time, and keep what came out."""

from __future__ import annotations

import contextlib
import datetime
import json
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from nanochat.common import UserError, pick_device, run_program, write_atomically
from nanochat.flags import flag, parse_flags
from nanochat.machine import FORMATS
from nanochat.plans import PLANS, Plan
from nanochat.turns import say, table

SHOWN = 12  # rows of a table in a chapter
NO_CHANGE = ("name", "from_pace", "num_iterations")  # what of a plan does not change a trial


@dataclass(frozen=True)
class SearchConfig:
    """The flags of scripts.search_plans."""

    plan: str = flag("small", "the plan to vary", choices=tuple(PLANS))
    vary: str = flag("", "variations, joined by ';', each a list of NAME=VALUE; empty: the plan itself")
    seconds: float = flag(225.0, "training time to imitate")
    pace: float = flag(80e9, "FLOP/s of training steps to imitate; a variation may have its own")
    seeds: int = flag(1, "trials of each variation, with seeds 42, 43, …")
    eval_tokens: int = flag(-1, "validation tokens that judge; -1: all of them")
    compile: str = flag("false", "compile the blocks", choices=("true", "false"))
    device_type: str = flag("cpu", "where the trials run", choices=("cuda", "cpu"))
    jobs: int = flag(1, "trials at the same time")
    out: str = flag("", "file for the record (without: results/plans-PLAN.json)")
    show: str = flag("", "print the table of a record; train nothing")

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UserError(f"--jobs={self.jobs}: must be at least 1")


def variations(config: SearchConfig) -> list[dict[str, Any]]:
    """What each variation changes. Raises UserError for a name no plan has, or a value that is no number."""
    usual = asdict(PLANS[config.plan])
    kinds: dict[str, Callable[[str], Any]] = {
        name: type(value) for name, value in usual.items() if not isinstance(value, str)
    }
    kinds |= {"pace": float, "muon_dtype": format_of_muon}
    found = []
    for text in config.vary.split(";"):
        changes: dict[str, Any] = {}
        for part in text.split():
            name, _, value = part.partition("=")
            if name not in kinds:
                raise UserError(f"--vary: a plan has no {name!r}; it has {', '.join(kinds)}")
            try:
                changes[name] = kinds[name](value)
            except ValueError:
                wanted = "auto, bfloat16 or float32" if name == "muon_dtype" else f"a number, as in {name}=2"
                raise UserError(f"--vary: {part!r} needs {wanted}") from None
        found.append(changes)
    return found


def format_of_muon(text: str) -> str:
    """The text, if it names a format in which Muon can work; otherwise ValueError."""
    if text not in FORMATS:
        raise ValueError(text)
    return text


def identities(config: SearchConfig) -> list[dict[str, Any]]:
    """All that decides what each trial computes."""
    apart = ("pace", "muon_dtype")  # no part of a plan
    shared = {name: getattr(config, name) for name in ("seconds", "eval_tokens", "compile", "device_type")}
    return [
        {
            "plan": asdict(plan),
            "pace": changes.get("pace", config.pace),
            "muon_dtype": changes.get("muon_dtype", "auto"),
            "seed": 42 + seed,
            **shared,
        }
        for changes in variations(config)
        for plan in [replace(PLANS[config.plan], **{k: v for k, v in changes.items() if k not in apart})]
        for seed in range(config.seeds)
    ]


def run_trial(identity: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate one trial; its record."""
    import torch

    from nanochat.machine import this_machine
    from nanochat.run import train
    from nanochat.train_config import TrainConfig, open_tokenizer

    plan = Plan(**identity["plan"])
    steps = round(identity["seconds"] * identity["pace"] / plan.flops_per_token() / plan.total_batch_size)
    chosen = {**plan.flags(), "num_iterations": max(1, steps), "seed": identity["seed"]}
    config = TrainConfig(
        **chosen,
        eval_every=0,
        core_metric_every=-1,
        sample_every=-1,
        save_every=-1,
        log_every=500,
        device_type=identity["device_type"],
        compile=identity["compile"],
        muon_dtype=identity["muon_dtype"],
        eval_tokens=identity["eval_tokens"],
    )
    with contextlib.redirect_stdout(sys.stderr):
        result = train(config, open_tokenizer(config))
    return {
        "identity": identity,
        "steps": result.steps,
        "tokens": result.tokens,
        "parameters": result.parameters,
        "bpb": result.val_bpb,
        "machine": asdict(this_machine(pick_device(identity["device_type"]))),
        "torch": torch.__version__,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def run_trials(identities: list[dict[str, Any]], jobs: int) -> Iterator[dict[str, Any]]:
    """The records of these trials, each as soon as it is there; every trial in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, max_tasks_per_child=1) as processes:
        for future in as_completed([processes.submit(run_trial, identity) for identity in identities]):
            yield future.result()


def read_trials(path: Path) -> list[dict[str, Any]]:
    """The trials of a record. Raises UserError if it is none."""
    try:
        return list(json.loads(path.read_text(encoding="utf-8"))["trials"])
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path} is no record of this program ({type(error).__name__}: {error})") from error


def tables(record: dict[str, Any]) -> str:
    """The table of a record, as a chapter shows it: its best rows, and how many there are."""
    best, every = trials_table(record["trials"], SHOWN), len(record["trials"])
    return best if every <= SHOWN else f"{best}\nThe best {SHOWN} of {every} trials.\n"


def trials_table(trials: list[dict[str, Any]], most: int = -1) -> str:
    """A row a trial, the best first: in what it differs from the plan of its name, and its bits per byte.

    most: at most so many rows; -1: all of them.
    """
    rows = []
    for trial in sorted(trials, key=lambda trial: float(trial["bpb"]))[: most if most >= 0 else None]:
        identity = trial["identity"]
        usual = asdict(PLANS[identity["plan"]["name"]])
        changed = [f"{k}={v:g}" for k, v in identity["plan"].items() if k not in NO_CHANGE and v != usual[k]]
        if identity.get("muon_dtype", "auto") != "auto":
            changed.append(f"muon_dtype={identity['muon_dtype']}")
        rows.append(
            [
                " ".join(changed) or "as planned",
                f"{identity['seconds']:g}",
                f"{identity['pace'] / 1e9:.0f}",
                str(identity["seed"]),
                f"{trial['steps']:,}",
                f"{trial['tokens'] / 1e6:.2f}",
                f"{trial['bpb']:.4f}",
            ]
        )
    header = ["differs in", "seconds", "GFLOP/s", "seed", "steps", "M tokens", "bits per byte"]
    return table(header, rows)


def main() -> None:
    """Run what is missing, in order, and show the table."""
    config = parse_flags(SearchConfig, sys.argv[1:], "python -m scripts.search_plans", __doc__ or "")
    if config.show:
        print(trials_table(read_trials(Path(config.show))))
        return
    path = Path(config.out or f"results/plans-{config.plan}.json")
    trials = read_trials(path) if path.exists() else []
    there = [{"device_type": "cpu", **trial["identity"]} for trial in trials]
    for trial in run_trials([one for one in identities(config) if one not in there], config.jobs):
        trials.append(trial)
        write_atomically(path, json.dumps({"format": 1, "trials": trials}, indent=1) + "\n")
        say(f"{len(trials)} trials, the last one: {trial['bpb']:.4f} bits per byte, {trial['identity']}")
    print(trials_table(trials))


if __name__ == "__main__":
    run_program(main)
