"""Ask a model that was trained to answer, by task: python -m scripts.chat_eval."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, pick_device, run_program, write_atomically
from nanochat.flags import flag, parse_flags
from nanochat.records import FORMAT, command_of, describe_machine, moment, write_record
from nanochat.report import read_meta
from nanochat.talk_training import stage_of
from nanochat.trained import load_trained
from tasks import WEIGHTS, all_tasks

if TYPE_CHECKING:
    from nanochat.exam import Mark


@dataclass(frozen=True)
class ChatEvalConfig:
    """The flags of scripts.chat_eval."""

    run: str = flag("latest", "the run's tag, such as d2-chat")
    tasks: str = flag("", f"which, with commas between (without: all of {', '.join(WEIGHTS)})")
    questions: int = flag(300, "validation questions of each task, at most")
    show: int = flag(3, "wrong answers to print for each task")
    out: str = flag("", "a JSON file for everything, all wrong answers too")
    record: str = flag("", "a JSON file for shares, the machine, and how the model was made")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")

    def __post_init__(self) -> None:
        if self.questions < 1 or self.show < 0:
            raise UserError(f"--questions={self.questions} and --show={self.show}: at least 1 and 0")
        for name in self.names():
            if name not in WEIGHTS:
                raise UserError(f"--tasks: there is no task {name!r}, only {', '.join(WEIGHTS)}")

    def names(self) -> list[str]:
        """The tasks that are asked."""
        return [name.strip() for name in self.tasks.split(",")] if self.tasks else list(WEIGHTS)


def main() -> None:
    """Ask the tasks that the flags name, and print how it went."""
    config = parse_flags(ChatEvalConfig, sys.argv[1:], "python -m scripts.chat_eval", "Ask a model.")
    device = pick_device(config.device_type)
    model, tokenizer, checkpoint = load_trained(config.run, device)
    from nanochat.exam import examine, table, talk_score

    made = stages(checkpoint.folder) if config.record else {}  # what is damaged is said before any question
    data = checkpoint.meta.get("config", {}).get("data", "sotu")
    marks = []
    for task in all_tasks(tokenizer, data):
        if task.name in config.names():
            print(f"asking: {task.name}", file=sys.stderr)
            marks.append(examine(model, tokenizer, task, config.questions))
    print("\n".join(table(marks)))
    for mark in marks:
        for question, right, said in mark.failures[: config.show]:
            print(f"\n{mark.task}: {question}\n  right: {right}\n  said:  {said}")
    if config.out:
        report = {
            "run": checkpoint.folder.name,
            "step": checkpoint.step,
            "score": talk_score(marks),
            "tasks": [asdict(mark) for mark in marks],
        }
        write_atomically(Path(config.out), json.dumps(report, indent=1) + "\n")
    if config.record:
        command = command_of("scripts.chat_eval", replace(config, record=""))
        facts = {"command": command, "date": moment(time.time()), "machine": describe_machine(device.type)}
        record = {"format": FORMAT, **facts, "stages": made, **shares(marks)}
        write_record(Path(config.record), record)


def stages(folder: Path) -> dict[str, dict[str, Any]]:
    """Steps, seconds and bits per byte of a run, and of those that it began with, by the stage."""
    found: dict[str, dict[str, Any]] = {}
    while folder.exists() and stage_of(folder.name) not in found:
        meta = read_meta(folder)
        progress = meta.get("progress", {})
        names = ("seconds", "train_seconds", "val_bpb")
        told = {"steps": meta["step"], "model": meta["model"], **{name: progress.get(name) for name in names}}
        found[stage_of(folder.name)] = told
        folder = folder.parent / (meta.get("config", {}).get("base") or folder.name)
    return found


def shares(marks: Sequence[Mark]) -> dict[str, Any]:
    """The score and, for each task, shares of 1: right, the ends of its interval, the baseline."""
    from nanochat.exam import interval, talk_score

    tasks = {}
    for mark in marks:
        low, high = interval(mark.right, mark.asked)
        baseline = mark.baseline / mark.asked
        told = {"asked": mark.asked, "right": mark.share, "low": low, "high": high, "baseline": baseline}
        tasks[mark.task.replace(" ", "-")] = told
    return {"score": talk_score(marks), "tasks": tasks}


if __name__ == "__main__":
    run_program(main)
