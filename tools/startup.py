"""How long a command line takes to be answered, and what each library that could read it costs to import.

    python -m tools.startup --libraries=FOLDER    measures again, and writes results/start-up.json

FOLDER holds a folder for each library, as `pip install --target=FOLDER/tyro tyro==1.0.17` makes it. What is
counted is the time of a process on a core, user and system: a clock also counts what else the machine does.
All take turns, twenty times, after one turn that does not count and leaves the compiled modules on the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "start-up.json"
TURNS = 20
LIBRARIES = {
    "tyro": "tyro",
    "jsonargparse": "jsonargparse",
    "simple-parsing": "simple_parsing",
    "cyclopts": "cyclopts",
}
IMPORTED = {"cyclopts": "from cyclopts import App, Parameter"}  # it imports its parts when they are asked for
COMMANDS = {
    "python": ["-c", "pass"],
    "flags": ["-c", "import nanochat.train_config"],
    "right": [
        "-c",
        "from nanochat.flags import parse_flags; from nanochat.train_config import TrainConfig; "
        "parse_flags(TrainConfig, ['--eval_tokens=-1'], 'p', 'd')",
    ],
    "wrong": ["-m", "scripts.base_train", "--dept=4"],
    "help": ["-m", "scripts.base_train", "--help"],
}


def seconds(words: list[str], folder: str, compiled: str) -> float:
    """How many seconds of a core a Python with these arguments takes; it keeps modules in `compiled`."""
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONPYCACHEPREFIX": compiled}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def in_turns(asked: dict[str, tuple[list[str], str]]) -> dict[str, dict[str, float]]:
    """Of each, by its name, the median and the least."""
    taken: dict[str, list[float]] = {name: [] for name in asked}
    with tempfile.TemporaryDirectory() as compiled:
        for turn in range(TURNS + 1):
            for name, (words, folder) in asked.items():
                spent = seconds(words, folder, compiled)
                taken[name] += [spent] if turn else []
    return {
        name: {"median": round(statistics.median(all_of_it), 4), "least": round(min(all_of_it), 4)}
        for name, all_of_it in taken.items()
    }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(prog="python -m tools.startup", allow_abbrev=False)
    parser.add_argument("--libraries", type=Path, required=True, help="the folder of the four libraries")
    folder = parser.parse_args().libraries
    record: dict[str, Any] = {
        "date": date.today().isoformat(),
        "command": "python -m tools.startup --libraries=FOLDER",
        "python": sys.version.split()[0],
        "load before": round(os.getloadavg()[0], 2),
        "turns": TURNS,
    }
    libraries = {
        name: (["-c", IMPORTED.get(name, f"import {module}")], str(folder / name))
        for name, module in LIBRARIES.items()
    }
    taken = in_turns({**{name: (words, "") for name, words in COMMANDS.items()}, **libraries})
    record["commands"] = {name: taken[name] for name in COMMANDS}
    record["imports"] = {name: taken[name] for name in LIBRARIES}
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
