"""Ask a model CORE's questions: python -m scripts.base_eval, or with --hf_path=FOLDER any model's."""

from __future__ import annotations

import csv
import io
import itertools
import json
import shlex
import sys
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
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
from nanochat.core_tasks import load_tasks, questions_folder
from nanochat.flags import flag, parse_flags
from nanochat.machine import autocast_dtype

if TYPE_CHECKING:
    import torch

    from nanochat.core_eval import Report, Subject, TaskResult
    from nanochat.core_tasks import Task, TaskSet


@dataclass(frozen=True)
class ModelChoice:
    """Which model to ask, on what device, and where the answers go: flags of more than one program."""

    run: str = flag("latest", "the run's tag, such as d4")
    gpt: str = flag("", "whose model computes (without: the one that trained)")
    hf_path: str = flag("", "instead of a run: a folder that transformers can load")
    max_seq_len: int = flag(0, "T, tokens in a sequence (0: what the model was trained for)")
    out: str = flag("", "folder for the results (without: the run's)")
    record: str = flag("", "a file to write the JSON to as well")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")
    dtype: str = flag("auto", "format of matrix products", choices=("auto", "bfloat16", "float32"))

    def __post_init__(self) -> None:
        """Refuse what cannot work before anything is loaded."""
        if self.hf_path and (self.gpt or self.run != "latest"):
            raise UserError("--hf_path names a model of its own: leave out --run and --gpt")
        if self.max_seq_len < 0:
            raise UserError(f"--max_seq_len={self.max_seq_len}: must not be negative")
        if self.max_seq_len == 1:
            raise UserError("--max_seq_len=1: a token and one before it to predict it from are 2")


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


@dataclass(frozen=True)
class Opened:
    """A model that can be asked, what to say of it, and where its results belong."""

    subject: Subject
    model: Any
    tokenizer: Any
    about: dict[str, Any]
    folder: Path
    stem: str  # the beginning of the results' names


def with_autocast(
    model: Callable[[torch.Tensor], torch.Tensor], device: torch.device, dtype: torch.dtype | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """The model under torch.autocast, or as it is if dtype is None."""
    import torch

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            return model(ids)

    return logits


def open_run(choice: ModelChoice, device: torch.device) -> Opened:
    """The newest checkpoint of a run. Raises UserError if it is not there, or does not fit."""
    from nanochat.core_eval import Subject
    from nanochat.step import fit_format
    from scripts.sample import load_trained

    model, tokenizer, checkpoint = load_trained(choice.run, device, choice.gpt)
    dtype = autocast_dtype(device, choice.dtype)
    fit_format(model, dtype)
    shape, progress = model.config, checkpoint.meta.get("progress", {})
    about = {
        "run": checkpoint.folder.name,
        "step": checkpoint.step,
        "gpt": choice.gpt or checkpoint.meta.get("gpt", {"name": "book"})["name"],
        "config": asdict(shape),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "data": checkpoint.meta.get("config", {}).get("data", ""),
        "training": {name: progress.get(name) for name in ("train_seconds", "val_bpb")},
        "dtype": str(dtype or "float32").removeprefix("torch."),
    }

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend=tokenizer.bos)

    subject = Subject(
        with_autocast(model, device, dtype),
        encode,
        choice.max_seq_len or shape.sequence_len,
        shape.vocab_size,
        device,
    )
    stem = f"core_{checkpoint.step:06d}"
    return Opened(subject, model, tokenizer, about, checkpoint.folder, stem)


def open_hf(choice: ModelChoice, device: torch.device) -> Opened:
    """A model that transformers can load, from a folder. Raises UserError if it is not whole or too new."""
    folder = Path(choice.hf_path).expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f"--hf_path={choice.hf_path}: there is no config.json, so this is no model's folder")
    try:
        import transformers
    except ImportError:
        raise UserError("--hf_path needs the library transformers: pip install transformers") from None
    from transformers.utils import logging

    from nanochat.core_eval import Subject

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def load(kind: Any, what: str, **options: Any) -> Any:
        try:
            return kind.from_pretrained(str(folder), local_files_only=True, **options)
        except Exception as error:  # whatever a foreign folder provokes in a foreign library
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--hf_path={choice.hf_path}: transformers {transformers.__version__} cannot load the {what} "
                f"({type(error).__name__}: {reason})"
            ) from error

    model, loading = load(
        transformers.AutoModelForCausalLM, "model", output_loading_info=True, dtype="float32"
    )
    tokenizer = load(transformers.AutoTokenizer, "tokenizer")
    missing = sorted(loading["missing_keys"])
    if missing:
        raise UserError(
            f"--hf_path={choice.hf_path}: the weights are those of another architecture than config.json's: "
            f"{len(missing)} tensors are missing, {missing[0]} among them"
        )
    vocab_size = int(model.config.get_text_config().vocab_size)
    if len(tokenizer) > vocab_size:
        raise UserError(
            f"--hf_path={choice.hf_path}: the tokenizer has {len(tokenizer):,} tokens, the model "
            f"{vocab_size:,}: they do not belong together"
        )
    context = choice.max_seq_len or getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        raise UserError(
            f"--hf_path={choice.hf_path}: config.json does not say how long a text may be: "
            "give --max_seq_len=TOKENS"
        )
    first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    before = [] if first is None else [first]

    def encode(texts: list[str]) -> list[list[int]]:
        return [before + row for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]

    dtype = autocast_dtype(device, choice.dtype)
    model.to(device).eval()
    about = {
        "hf_path": folder.resolve().name,
        "architecture": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(dtype or "float32").removeprefix("torch."),
    }
    logits = with_autocast(lambda ids: model(ids).logits, device, dtype)
    subject = Subject(logits, encode, int(context), vocab_size, device)
    results = questions_folder() / "results" / folder.resolve().name
    return Opened(subject, model, tokenizer, about, results, "core")


def open_model(choice: ModelChoice, device: torch.device) -> Opened:
    """The model that the flags name. Raises UserError as the two functions above do."""
    return open_hf(choice, device) if choice.hf_path else open_run(choice, device)


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
    from nanochat.turns import describe_machine

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


def free_name(folder: Path, stem: str) -> Path:
    """`stem.json` in a folder, or `stem-2.json`, …: the first that does not exist."""
    names = (stem if number == 1 else f"{stem}-{number}" for number in itertools.count(1))
    return next(path for name in names if not (path := folder / f"{name}.json").exists())


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
        from nanochat.training import prepare_memory

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
        watch_task(ranks),
        say_result,
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
        print0(f"\n{tables(record)}\n{score}, kept in {path}")
    leave_ranks()


if __name__ == "__main__":
    run_program(main)
