"""Ask a model CORE's questions: python -m scripts.base_eval, or with --hf_path=FOLDER any model's."""

from __future__ import annotations

import csv
import io
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import (
    Ranks,
    UserError,
    init_ranks,
    leave_ranks,
    pick_device,
    print0,
    run_program,
    write_atomically,
)
from nanochat.core_tasks import load_tasks
from nanochat.flags import flag, parse_flags
from nanochat.opened import ModelChoice, Opened, free_name, open_model

if TYPE_CHECKING:
    from nanochat.core_eval import Report, TaskResult
    from nanochat.core_tasks import Task, TaskSet


@dataclass(frozen=True)
class EvalConfig(ModelChoice):
    """The flags of scripts.base_eval."""

    max_seq_len: int = flag(0, "longest prompt in tokens (0: what the model was trained for)")
    bundle: str = flag("", "PATH of a bundle, 'download', or 'package' (without: what is here or can be had)")
    tasks: str = flag("", "names of tasks, with commas between them (without: all)")
    max_per_task: int = flag(-1, "items of each task; -1: all")
    items: str = flag("", "a new file for the result of each item, as lines of JSON")
    batch_tokens: int = flag(0, "tokens in one forward pass (0: as memory suggests)")
    prepare_only: bool = flag(False, "stop when the questions are here")

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        super().__post_init__()
        if self.batch_tokens < 0:
            raise UserError(f"--batch_tokens={self.batch_tokens}: must not be negative")
        if self.max_per_task == 0 or self.max_per_task < -1:
            raise UserError(f"--max_per_task={self.max_per_task}: at least 1, or -1 for all")
        if self.items and Path(self.items).exists():
            raise UserError(f"--items={self.items} exists already, and nothing is overwritten: name another")

    def task_names(self) -> list[str]:
        """The names in --tasks."""
        return [name.strip() for name in self.tasks.split(",") if name.strip()]


def watch_task(ranks: Ranks) -> Callable[[Task, int], Callable[[int], object]]:
    """A bar for each task, for the first process and on a terminal only."""
    from tqdm import tqdm

    def watch(task: Task, count: int) -> Callable[[int], object]:
        disable = None if ranks.first else True
        bar = tqdm(total=count, desc=task.name, leave=False, disable=disable, dynamic_ncols=True)

        def update(done: int) -> None:
            bar.update(done)
            if bar.disable or bar.n >= count:
                bar.close()

        return update

    return watch


def say_result(result: TaskResult) -> None:
    """One line for a task that is done."""
    line = f"{result.name}: {result.items:,} items"
    line += f", accuracy {result.accuracy:.4f}, centered {result.centered:.4f}"
    if result.cut:
        line += f"; {result.cut:,} lost their beginning, being longer than the context"
    if result.left_out:
        line += f"; {result.left_out:,} left out, since their answers alone are longer"
    print0(line)


HEADER = ("task", "type", "shots", "items", "cut", "left out", "right", "by chance", "centered", "±")


def table_rows(record: Mapping[str, Any]) -> list[list[str]]:
    """The cells of the table, a line for each task and one for the mean."""
    rows = [
        [
            task["name"],
            task["kind"].replace("_", " "),
            str(task["shots"]),
            f"{task['items']:,} of {task['of']:,}" if task["items"] < task["of"] else f"{task['of']:,}",
            f"{task['cut']:,}",
            f"{task['left_out']:,}",
            f"{task['accuracy']:.4f}",
            f"{task['chance']:.2f}",
            f"{task['centered']:.4f}",
            f"{task['stderr']:.4f}",
        ]
        for task in record["tasks"]
    ]
    mean = [""] * (len(HEADER) - 3)
    return [*rows, [record["title"], *mean, f"{record['score']:.4f}", f"{record['stderr']:.4f}"]]


def tables(record: Mapping[str, Any]) -> str:
    """The result as a Markdown table, and what is missing to CORE."""
    from nanochat.turns import table

    lines = [table(HEADER, table_rows(record))]
    if record["missing"]:
        missing = f"The tasks of CORE that are missing: {', '.join(record['missing'])}."
        lines += ["", textwrap.fill(missing, 120, break_on_hyphens=False)]
    return "\n".join(lines) + "\n"


def as_csv(record: Mapping[str, Any]) -> str:
    """The same table for a spreadsheet."""
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([HEADER, *table_rows(record)])
    return file.getvalue()


def make_record(
    config: EvalConfig, tasks: TaskSet, opened: Opened, report: Report, seconds: float
) -> dict[str, Any]:
    """Everything about an evaluation but the items, for JSON."""
    from nanochat.records import describe_machine

    said = report.record()
    numbers: dict[str, float] = {
        "score": report.score,
        "stderr": report.stderr,
        "tasks": len(report.tasks),
        "items": sum(task.items for task in report.tasks),
        "tied": sum(task.tied for task in report.tasks),
        "seconds": seconds,
    }
    for task in report.tasks:
        numbers |= {f"{task.name}-accuracy": task.accuracy, f"{task.name}-centered": task.centered}
    training = opened.about.get("training", {})
    numbers |= {f"training-{name}": value for name, value in training.items() if value is not None}
    return {
        "format": 1,
        "command": shlex.join(["python", "-m", "scripts.base_eval", *sys.argv[1:]]),
        **said,
        "source": tasks.source,
        "source_sha256": tasks.sha256,
        "max_per_task": config.max_per_task,
        "context": opened.subject.context,
        "model": opened.about,
        "machine": describe_machine(opened.subject.device.type),
        "seconds": round(seconds, 1),
        "numbers": numbers,
    }


def keep(folder: Path, stem: str, record: Mapping[str, Any]) -> Path:
    """Write record and tables under the first name that is free; returns the path of the JSON."""
    path = free_name(folder, stem)
    write_atomically(path.with_suffix(".md"), tables(record))
    write_atomically(path.with_suffix(".csv"), as_csv(record))
    write_atomically(path, json.dumps(record, indent=1) + "\n")
    return path


def questions_for_all(bundle: str, names: Sequence[str], ranks: Ranks) -> TaskSet:
    """The questions, fetched by the first process where they are not here yet."""
    import torch

    tasks = load_tasks(bundle, names) if ranks.first else None
    if ranks.world_size > 1:
        torch.distributed.barrier()
    tasks = tasks or load_tasks(bundle, names)
    assert tasks is not None
    return tasks


def main() -> None:
    """Ask, print, keep."""
    about = "Ask a model CORE's questions."
    config = parse_flags(EvalConfig, sys.argv[1:], "python -m scripts.base_eval", about)
    ranks = init_ranks(config.device_type)
    device = pick_device(config.device_type, ranks)
    opened = None
    if not config.prepare_only:  # a model that is not there should be missed before a download, not after
        from nanochat.workplace import prepare_memory

        prepare_memory(device)
        opened = open_model(config, device)
    tasks = questions_for_all(config.bundle, config.task_names(), ranks)
    print0(f"{tasks.title}, from {tasks.source}: {', '.join(task.name for task in tasks.tasks)}")
    if opened is None:
        leave_ranks()
        return
    from nanochat.core_eval import evaluate_core

    began = time.perf_counter()
    report = evaluate_core(
        opened.subject,
        tasks,
        config.max_per_task,
        ranks,
        config.batch_tokens,
        watch=watch_task(ranks),
        said=say_result,
    )
    record = make_record(config, tasks, opened, report, time.perf_counter() - began)
    if ranks.first:
        path = keep(Path(config.out).expanduser() if config.out else opened.folder, opened.stem, record)
        if config.record:
            write_atomically(Path(config.record), json.dumps(record, indent=1) + "\n")
        if config.items:
            lines = (json.dumps(asdict(verdict)) + "\n" for verdict in report.verdicts)
            write_atomically(Path(config.items), "".join(lines))
        score = f"{report.title}: {report.score:.4f} ± {report.stderr:.4f}"
        print0("\n".join(["", tables(record), *report.left_out, f"{score}, kept in {path}"]))
    leave_ranks()


if __name__ == "__main__":
    run_program(main)
