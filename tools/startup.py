"""How long a command line takes to be answered, and what each library that could read it costs to import.

    python -m tools.startup --libraries=FOLDER    measures again, and writes results/start-up.json

FOLDER holds a folder for each library, as `pip install --target=FOLDER/tyro tyro==1.0.17` makes it. What is
counted is the time of a process on a core, user and system: a clock also counts what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "results" / "start-up.json"
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


def seconds(arguments: list[str], folder: str = "", times: int = 10) -> dict[str, float]:
    """The median and the least of how many seconds of a core a Python with these arguments takes."""
    taken = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        environment = {**os.environ, "PYTHONPATH": folder}
        subprocess.run(
            [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"median": round(statistics.median(taken), 4), "least": round(min(taken), 4)}


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
        "commands": {name: seconds(words) for name, words in COMMANDS.items()},
        "imports": {},
    }
    for name, module in LIBRARIES.items():
        words = ["-c", IMPORTED.get(name, f"import {module}")]
        record["imports"][name] = seconds(words, str(folder / name))
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RECORD.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
