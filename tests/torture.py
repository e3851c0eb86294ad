"""Kill a tiny training at random moments, again and again: each must end as the one that nobody killed.

    python -m tests.torture --kills=100 --out=results/torture-cpu.json

Weights, optimizers and random generators are compared by the checksums of their bytes, losses by the numbers
in metrics.jsonl. After each kill the newest checkpoint has to be whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nanochat.checkpoint_manager import load_checkpoint, read_record, saved_steps
from nanochat.records import FORMAT, describe_machine, moment, write_record
from nanochat.system import load_average
from tests.tiny_run import flags, own_base, records, tiny_config

# A process is forked from a server that has these, so that a start takes no seconds.
SERVER_HAS = ["torch", "torch._dynamo", "nanochat.run", "nanochat.base_training", "tests.programs"]
EVERY = (1, 2, 5, 20)  # steps between checkpoints: one of these for each run


def train(base: str, arguments: Sequence[str]) -> None:
    """The program itself, in a process of its own that says nothing."""
    os.environ["NANOCHAT_BASE_DIR"] = base
    from scripts import base_train
    from tests.programs import run_main

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        status = run_main(base_train.main, *arguments)
    os._exit(status)


@dataclass
class Count:
    """What happened."""

    kills: int = 0
    runs: int = 0  # that came to their end
    identical: int = 0
    before_the_first_checkpoint: int = 0
    in_a_save: int = 0  # kills that left a draft behind
    steps_done_again: int = 0
    damaged: int = 0
    problems: list[str] = field(default_factory=list)


class Torture:
    """Runs in one base folder, and what they should have come to."""

    def __init__(self, base: Path, steps: int, seed: int, until: float = math.inf) -> None:
        self.base, self.steps, self.random, self.until = base, steps, random.Random(seed), until
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(SERVER_HAS)
        self.count = Count()
        self.start("warm", save_every=0).join()  # the server has started then
        self.start("unbroken", save_every=0).join()
        self.expected = self.outcome("unbroken")
        lines = (self.folder("unbroken") / "metrics.jsonl").read_text().splitlines()
        self.seconds = json.loads(lines[-1])["seconds"] - json.loads(lines[0])["seconds"]

    def folder(self, tag: str) -> Path:
        return self.base / "base_checkpoints" / tag

    def start(self, tag: str, save_every: int) -> Any:
        """Begin the run, or go on with it if it has a checkpoint."""
        going_on = saved_steps(self.folder(tag)) if self.folder(tag).exists() else []
        which = {"resume": tag} if going_on else {"model_tag": tag}
        config = tiny_config(
            num_iterations=self.steps, eval_every=self.steps // 3, save_every=save_every, **which
        )
        process = self.context.Process(target=train, args=(str(self.base), flags(config)))
        process.start()
        return process

    def outcome(self, tag: str) -> tuple[list[str], list[dict[str, Any]]]:
        """The checksums of the last checkpoint's tensors, and all numbers that do not depend on the clock."""
        last = saved_steps(self.folder(tag))[-1]
        files = read_record(self.folder(tag), last)["files"]
        told = ("step", "loss", "val_bpb")
        kept = [{key: line[key] for key in told if key in line} for line in records(self.folder(tag))]
        return [about["sha256"] for about in files.values()], kept

    def one_run(self, most: int) -> None:
        """Train until the end, with kills at random moments, at most so many."""
        number = self.count.runs
        tag, every = f"t{number}", self.random.choice(EVERY)
        attempt = 0
        while True:
            most = most if time.monotonic() < self.until else 0
            process = self.start(tag, every)
            if most > 0 and self.random.random() < 0.9:
                self.wait_for_a_step(tag, process)
            moment = self.random.uniform(0, self.seconds / 2)
            process.join(moment if most > 0 else None)
            if process.exitcode is None:
                os.kill(process.pid, signal.SIGKILL)
                process.join()
            if process.exitcode == -signal.SIGKILL:
                most -= 1
                self.count.kills += 1
                if not self.look_at(tag):
                    attempt += 1
                    tag = f"t{number}-{attempt}"
                continue
            self.count.runs += 1
            if process.exitcode != 0:
                self.count.problems.append(f"{tag} ended with status {process.exitcode}")
            elif self.outcome(tag) != self.expected:
                self.count.problems.append(f"{tag} is not what the unbroken run is")
            else:
                self.count.identical += 1
            return

    def wait_for_a_step(self, tag: str, process: Any) -> None:
        """Until this process has trained a step or ended; otherwise most kills would fall into its start."""
        metrics, began = self.folder(tag) / "metrics.jsonl", time.time()
        while process.exitcode is None:
            if metrics.exists() and metrics.stat().st_mtime > began:
                return
            process.join(0.02)

    def look_at(self, tag: str) -> bool:
        """Count what a kill has left; whether there is a checkpoint to go on with."""
        folder = self.folder(tag)
        if folder.exists() and list(folder.rglob(".*.tmp")):
            self.count.in_a_save += 1
        steps = saved_steps(folder) if folder.exists() else []
        if not steps:
            self.count.before_the_first_checkpoint += 1
            return False
        if load_checkpoint(folder).step != steps[-1]:
            self.count.damaged += 1
        metrics = folder / "metrics.jsonl"
        done = metrics.read_bytes().count(b'"loss"') if metrics.exists() else 0
        self.count.steps_done_again += max(0, done - steps[-1])
        return True


def torture(base: Path, kills: int, steps: int, seed: int = 0, seconds: float = math.inf) -> Count:
    """Kill `kills` times, over as many runs as it takes; the base folder has the tiny corpus.

    seconds: after these no run is begun, and the one that goes on is left to come to its end.
    """
    play = Torture(base, steps, seed, time.monotonic() + seconds)
    while play.count.kills < kills and time.monotonic() < play.until:
        play.one_run(kills - play.count.kills)
    return play.count


def main() -> int:
    """Torture, say what happened, write a record."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.torture", description="Kill and resume a training."
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=60, help="of each training")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=math.inf, help="stop killing after these")
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    began, load_before = time.perf_counter(), load_average()
    with tempfile.TemporaryDirectory() as folder, own_base(Path(folder)):
        count = torture(Path(folder), chosen.kills, chosen.steps, chosen.seed, chosen.seconds)
    given = f"--kills={chosen.kills} --steps={chosen.steps} --seed={chosen.seed}"
    record = {
        "format": FORMAT,
        "command": f"python -m tests.torture {given}",
        "date": moment(time.time()),
        "machine": describe_machine("cpu"),
        "load_average": {"before": load_before, "after": load_average()},
        "seconds": round(time.perf_counter() - began),
        **vars(count),
    }
    print(json.dumps(record, indent=1))
    if chosen.out:
        write_record(chosen.out, record)
    return 1 if count.problems or count.damaged or count.identical != count.runs else 0


if __name__ == "__main__":
    sys.exit(main())
