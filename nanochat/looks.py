"""What a run looks at from time to time: bits per byte, CORE's questions, texts of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from nanochat.agreement import OtherFailed, one_fate
from nanochat.common import UserError, write_atomically
from nanochat.core_eval import Report, Subject, evaluate_core
from nanochat.core_tasks import Task, TaskSet, load_tasks
from nanochat.engine import Engine
from nanochat.loss_eval import bits_per_byte, losses_and_bytes
from nanochat.normans_gpt import GPT
from nanochat.run_log import RunLog, bar_over, progress_bar
from nanochat.run_state import Progress
from nanochat.tokenizer import Tokenizer
from nanochat.train_config import TrainConfig
from nanochat.workplace import Source, Workplace


def due(step: int, every: int, last: bool) -> bool:
    """Whether what happens every `every` steps, and at the last one, happens now.

    0 is the last one alone; a negative number never.
    """
    return last if every == 0 else every > 0 and (last or step % every == 0)


class Seen(Protocol):
    """What a look may know of a run, and leave in it."""

    config: TrainConfig
    tokenizer: Tokenizer
    place: Workplace
    source: Source
    model: GPT
    folder: Path
    log: RunLog
    progress: Progress
    saved_at: int  # the step of the newest checkpoint
    samples: list[str]
    core: Report | None

    def say(self, text: str) -> None:
        """Print a line."""


class Look(Protocol):
    """Something that looks at the model of a run from time to time."""

    name: str  # of COSTS
    mark: str  # the field of Progress that holds the step of the last time
    together: bool  # whether all processes take part

    def due(self, step: int, last: bool) -> bool:
        """Whether it is time."""

    def look(self, run: Seen) -> None:
        """Look, say what was seen, and write it down."""


class Evaluation:
    """Bits per byte on the validation text."""

    name, mark, together = "evaluation", "evaluated_at", True

    def __init__(self, every: int, token_bytes: torch.Tensor) -> None:
        self.every, self.token_bytes = every, token_bytes

    def due(self, step: int, last: bool) -> bool:
        """Every so many steps, before the first and after the last."""
        return due(step, self.every, last)

    def look(self, run: Seen) -> None:
        """Evaluate; the checkpoint of this step is the best one if the score is."""
        bpb, progress = evaluate(run.source, run.model, self.token_bytes, run.place), run.progress
        if bpb < (progress.min_val_bpb or math.inf):
            progress.min_val_bpb = bpb
            progress.best_at = progress.step if run.saved_at == progress.step else progress.best_at
        progress.val_bpb = bpb
        run.say(f"Step {progress.step:05d} | Validation bpb: {bpb:.4f}")
        run.log.write(step=progress.step, val_bpb=bpb, seconds=round(progress.seconds, 3))


def evaluate(source: Source, model: GPT, token_bytes: torch.Tensor, place: Workplace) -> float:
    """Bits per byte on the validation batches of a source, all ranks together."""
    with one_fate(place.ranks, place.signals):
        loader, steps = source.validation()
        bar = progress_bar(steps or None, 0, place.ranks, "validation")
        batches = bar_over(place.signals.watch(iter(loader), alone=False), bar)
        try:
            with place.looking():
                sums = losses_and_bytes(model, batches, steps, token_bytes)
        finally:
            bar.close()
            loader.close()
    return bits_per_byte(sums, place.ranks, place.device)


class Score:
    """The score on CORE's questions."""

    name, mark, together = "core", "core_at", True

    def __init__(self, every: int, tasks: TaskSet | None) -> None:
        self.every, self.tasks = every, tasks

    def due(self, step: int, last: bool) -> bool:
        """Every so many steps and after the last, if there were that many."""
        return self.tasks is not None and step >= self.every and due(step, self.every, last)

    def look(self, run: Seen) -> None:
        """Ask; say the score, or why there is none."""
        assert self.tasks is not None
        step = run.progress.step
        try:
            run.core = core_score(run.config, run.model, run.tokenizer, self.tasks, run.place)
        except OtherFailed:
            raise
        except UserError as error:
            run.say(f"Step {step:05d} | {self.tasks.title} metric: none, since {error}")
            return
        why = "".join(f"; {reason}" for reason in run.core.left_out)
        run.say(f"Step {step:05d} | {run.core.title} metric: {run.core.score:.4f}{why}")
        name = "core_metric" if run.core.whole else "core_subset"
        run.log.write(step, **{name: run.core.score, f"{name}_stderr": run.core.stderr})


def core_questions(every: int, steps: int, say: Callable[[str], None]) -> TaskSet | None:
    """CORE's questions, if a run of `steps` steps is to be asked every so many and they are here."""
    if not 0 < every <= steps:
        return None
    tasks = load_tasks(may_fetch=False)
    if tasks is None:
        say(
            "CORE metric: its questions are not here, so it is left out (python -m scripts.base_eval"
            " --prepare_only brings them; --core_metric_every=-1 drops this line)"
        )
    return tasks


def core_score(
    config: TrainConfig, model: GPT, tokenizer: Tokenizer, tasks: TaskSet, place: Workplace
) -> Report:
    """The score on CORE's questions, all ranks together. Raises UserError where none can be had."""
    wrong: list[Exception] = []

    def logits(ids: torch.Tensor) -> torch.Tensor:
        try:
            if not wrong:
                place.signals.leave_if_asked(alone=False)
                predicted: torch.Tensor = model(ids)
                return predicted
        except Exception as error:
            if place.ranks.world_size == 1:
                raise
            wrong.append(error)
        return torch.zeros(*ids.shape, tokenizer.vocab_size, device=place.device)

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend=tokenizer.bos)

    def watch(task: Task, count: int) -> Callable[[int], None]:
        bar.set_postfix_str(task.name)
        return lambda done: bar.update(done)

    subject = Subject(logits, encode, config.max_seq_len, tokenizer.vocab_size, place.device)
    bar = progress_bar(None, 0, place.ranks, tasks.title)
    try:
        with place.looking():
            most = config.core_metric_max_per_task
            report = evaluate_core(subject, tasks, most, place.ranks, watch=watch)
    finally:
        bar.close()
    with one_fate(place.ranks, place.signals):
        if wrong:
            raise wrong[0]
    return report


PROMPTS = (
    "The state of the Union is",
    "The people of the United States",
    "We must",
    "In the year 18",
    "The most",
)


class Samples:
    """What the model writes."""

    name, mark, together = "samples", "sampled_at", False

    def __init__(self, every: int) -> None:
        self.every = every

    def due(self, step: int, last: bool) -> bool:
        """Every so many steps and after the last; not before the first."""
        return step > 0 and due(step, self.every, last)

    def look(self, run: Seen) -> None:
        """Continue the prompts, keep the texts, print them."""
        if not run.place.ranks.first:
            return
        run.samples = sample(run.model, run.tokenizer, run.place)
        size = run.progress.samples_size
        run.progress.samples_size = keep_samples(run.folder, run.progress.step, run.samples, size)
        run.say("\n".join(" ".join(text.split()) for text in run.samples))


def sample(model: GPT, tokenizer: Tokenizer, place: Workplace) -> list[str]:
    """Continue each prompt by up to 48 tokens."""
    prompts = tokenizer.encode(list(PROMPTS), prepend=tokenizer.bos)
    stop = {tokenizer.bos}
    with place.looking():
        for tokens in Engine(model).generate(prompts, 48, temperature=0.8, top_k=50, stop=stop):
            place.signals.leave_if_asked(alone=False)
            for prompt, token in zip(prompts, tokens, strict=True):
                if token is not None:
                    prompt.append(token)
    return [tokenizer.decode(tokens[1:]) for tokens in prompts]


def keep_samples(folder: Path, step: int, samples: list[str], size: int) -> int:
    """Put samples behind the first `size` bytes of samples.txt, those of earlier steps; returns its new size.

    What a stopped run wrote later than the checkpoint it goes on from is not kept twice.
    """
    path = folder / "samples.txt"
    before = path.read_bytes()[:size] if path.exists() else b""
    text = f"--- step {step}\n" + "\n\n".join(samples) + "\n"
    data = before + (b"\n" if before else b"") + text.encode("utf-8")
    write_atomically(path, data)
    return len(data)
