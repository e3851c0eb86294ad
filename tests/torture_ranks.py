"""Kill a process of several again and again, under torchrun: the training must end as one that nobody killed.

python -m tests.torture_ranks --ranks=4 --kills=5 --out=results/torture-ranks-cpu.json
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from nanochat.checkpoint_manager import load_checkpoint
from nanochat.records import FORMAT, describe_machine, moment, write_record
from nanochat.system import load_average
from tests.tiny_run import flags, own_base, records, tiny_config

SAVE_EVERY = 5


def digest(held: Any) -> str:
    """A checksum of all tensors in a nest of dictionaries and lists."""
    parts = hashlib.sha256()
    if isinstance(held, torch.Tensor):
        parts.update(held.reshape(-1).view(torch.uint8).numpy().tobytes())
    elif isinstance(held, dict):
        order = sorted(held, key=str)  # what was in pieces is read in the order in which the pieces are told
        parts.update("".join(f"{key} {digest(held[key])}" for key in order).encode())
    elif isinstance(held, list | tuple):
        parts.update("".join(map(digest, held)).encode())
    else:
        parts.update(repr(held).encode())
    return parts.hexdigest()


@dataclass
class Training:
    """A tiny training by several processes, of which torchrun starts all again when one has died."""

    base: Path
    ranks: int
    shard: int
    steps: int
    tag: str
    kills: list[dict[str, Any]] = field(default_factory=list)

    def start(self, restarts: int) -> None:
        """Begin; the rendezvous takes a free port."""
        config = tiny_config(
            model_tag=self.tag,
            total_batch_size=32 * self.ranks,
            num_iterations=self.steps,
            save_every=SAVE_EVERY,
            eval_every=-1,
            shard=self.shard,
        )
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        torchrun += [f"--nproc_per_node={self.ranks}", f"--max-restarts={restarts}"]
        with open(self.base / f"{self.tag}.log", "w") as log:
            self.process = subprocess.Popen(
                [*torchrun, "-m", "scripts.base_train", *flags(config)],
                stdout=log,
                stderr=log,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
            )

    @property
    def metrics(self) -> Path:
        """What a line is added to with each step."""
        return self.base / "base_checkpoints" / self.tag / "metrics.jsonl"

    def lines(self) -> int:
        """How many there are."""
        return self.metrics.read_bytes().count(b"\n")

    def workers(self) -> set[int]:
        """The processes that torchrun has started."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return set(map(int, children.read_text().split())) if children.exists() else set()

    def wait_for_a_step(self, killed: set[int]) -> set[int]:
        """Until `ranks` processes, none of those, have taken a step; which they are. Empty at the end."""
        began, workers = 0.0, set[int]()
        while self.process.poll() is None:
            now = self.workers()
            if len(now) == self.ranks and not now & killed and now != workers:
                workers, began = now, time.time()
            if workers and self.metrics.exists() and self.metrics.stat().st_mtime > began:
                return workers
            time.sleep(0.02)
        return set()

    def kill(self, chance: random.Random) -> set[int]:
        """Kill one at a random moment, and note how long it takes until all take a step again."""
        workers = self.wait_for_a_step(set())
        until = self.lines() + chance.randint(0, 3 * SAVE_EVERY)
        while self.lines() < until and self.process.poll() is None:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))
        if self.process.poll() is not None or not workers:
            return set()
        rank = chance.randrange(self.ranks)
        os.kill(sorted(workers)[rank], signal.SIGKILL)
        died = time.time()
        again = self.wait_for_a_step(workers)
        self.kills.append({"process": rank, "seconds": round(time.time() - died, 1)})
        return again

    def outcome(self) -> tuple[str, list[dict[str, Any]]]:
        """A checksum of what is in the last checkpoint, and all numbers that do not depend on the clock."""
        folder = self.base / "base_checkpoints" / self.tag
        saved = load_checkpoint(folder)
        return digest([saved.model, saved.optimizers, saved.tensors]), records(folder)


def torture(base: Path, ranks: int, shard: int, kills: int, steps: int, seed: int = 0) -> dict[str, Any]:
    """Kill `kills` times; what came of it."""
    unbroken = Training(base, ranks, shard, steps, "unbroken")
    unbroken.start(0)
    chance, killed = random.Random(seed), Training(base, ranks, shard, steps, "killed")
    status = unbroken.process.wait()
    killed.start(kills)
    for _ in range(kills):
        if not killed.kill(chance):
            break
    statuses = [status, killed.process.wait()]
    return {
        "ranks": ranks,
        "shard": shard,
        "kills": killed.kills,
        "statuses": statuses,
        "identical": not any(statuses) and unbroken.outcome() == killed.outcome(),
    }


def main() -> int:
    """Torture, say what happened, write a record."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture_ranks", description=__doc__)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--shard", type=int, default=2)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--out", type=Path)
    chosen = parser.parse_args()
    load_before = load_average()
    with tempfile.TemporaryDirectory() as folder, own_base(Path(folder)):
        seen = torture(Path(folder), chosen.ranks, chosen.shard, chosen.kills, chosen.steps)
        if not seen["identical"]:
            print(*(path.read_text() for path in Path(folder).glob("*.log")), sep="\n", file=sys.stderr)
    given = f"--ranks={chosen.ranks} --shard={chosen.shard} --kills={chosen.kills} --steps={chosen.steps}"
    record = {
        "format": FORMAT,
        "command": f"python -m tests.torture_ranks {given}",
        "date": moment(time.time()),
        "machine": describe_machine("cpu"),
        "load_average": {"before": load_before, "after": load_average()},
        **seen,
    }
    print(json.dumps(record, indent=1))
    if chosen.out and seen["identical"] and len(seen["kills"]) == chosen.kills:
        write_record(chosen.out, record)
    return 0 if seen["identical"] and len(seen["kills"]) == chosen.kills else 1


if __name__ == "__main__":
    sys.exit(main())
