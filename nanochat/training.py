"""The training loop: a model, its optimizers, a stream of batches, and what happens every so many steps."""

from __future__ import annotations

import functools
import math
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from nanochat import system
from nanochat.checkpoint_manager import (
    Checkpoint,
    find_run,
    load_checkpoint,
    new_run,
    only_writer,
    runs_folder,
    save_checkpoint,
)
from nanochat.common import (
    Ranks,
    UserError,
    init_ranks,
    leave_ranks,
    peak_memory_bytes,
    pick_device,
    print0,
    write_atomically,
)
from nanochat.core_eval import Report, Subject, evaluate_core
from nanochat.core_tasks import Task, TaskSet, load_tasks
from nanochat.dataloader import TokenLoader
from nanochat.engine import Engine
from nanochat.loss import compile_kernel
from nanochat.loss_eval import evaluate_bpb
from nanochat.machine import autocast_dtype, peak_flops, this_machine, use_own_cores
from nanochat.models import choose_gpt, load_gpt
from nanochat.normans_gpt import GPT
from nanochat.run_log import RunLog, plot_metrics
from nanochat.step import Batch, Rates, Schedule, Stepper, build_model, build_optimizers
from nanochat.tokenizer import Tokenizer
from nanochat.train_config import (
    TrainConfig,
    accumulation_steps,
    evaluation_steps,
    model_shape,
    world_size,
)


@dataclass
class Progress:
    """Where a run is. Saved with every checkpoint; JSON can hold all of it."""

    step: int = 0  # optimizer steps taken
    seconds: float = 0.0  # since the run began, evaluations included, pauses before a resume not
    train_seconds: float = 0.0  # of these, inside training steps
    smooth_loss: float = 0.0  # exponential mean of the loss, biased towards its start at 0
    skipped: int = 0  # steps whose loss or gradient was no number
    skipped_at: int = -2  # the last of them
    val_bpb: float | None = None
    min_val_bpb: float | None = None
    evaluated_at: int = -1
    sampled_at: int = -1
    core_at: int = -1
    records: int = 0  # lines in metrics.jsonl


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    tag: str
    folder: Path
    finished: bool  # False when a signal stopped it
    signal: int
    steps: int
    parameters: int
    tokens: int
    loss: float  # of the last step, nats per token
    val_bpb: float | None
    min_val_bpb: float | None
    seconds: float
    train_seconds: float
    peak_memory: int  # bytes
    compiled: bool
    samples: list[str]
    core: Report | None  # the last score on CORE's questions, if there was one
    model: GPT


class Interrupted(Exception):
    """Raised where stopping is safe: weights and optimizers are those of the step's beginning."""


class Signals:
    """While active, Ctrl-C and SIGTERM become a wish that the loop grants; the second one is not caught."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.received = 0
        self.previous: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.previous[number] = signal.signal(number, self.receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)
        self.previous.clear()

    def receive(self, number: int, frame: object) -> None:
        """The handler: remember the signal, and step aside for a second one."""
        self.received = number
        self.__exit__()

    def leave_if_asked(self) -> None:
        """Raise Interrupted if a signal came. One of several processes must not leave the others waiting."""
        if self.received and self.ranks.world_size == 1:
            raise Interrupted

    def watch(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on until a signal comes."""
        for batch in batches:
            self.leave_if_asked()
            yield batch


@dataclass(frozen=True)
class Workplace:
    """Where and how this process computes."""

    ranks: Ranks
    device: torch.device
    dtype: torch.dtype | None  # of matrix products under autocast; None: float32, no autocast
    signals: Signals

    def autocast(self) -> AbstractContextManager[Any]:
        """The context that forward passes run in."""
        return torch.autocast(self.device.type, dtype=self.dtype) if self.dtype else nullcontext()


def open_loader(
    config: TrainConfig,
    split: str,
    tokenizer: Tokenizer,
    place: Workplace,
    state: dict[str, Any] | None = None,
) -> TokenLoader:
    """Batches of "train", shuffled and without end, or of "val", once and in the order of the text."""
    return TokenLoader(
        config.data,
        split,
        tokenizer,
        config.device_batch_size,
        config.max_seq_len,
        ranks=place.ranks,
        device=place.device,
        shuffle_window=config.shuffle_window,
        seed=config.seed,
        state=state,
    )


def agree(seconds: float, received: int, ranks: Ranks, device: torch.device) -> tuple[float, int]:
    """The latest clock and the highest signal number over all processes, so that all decide alike."""
    if ranks.world_size == 1:
        return seconds, received
    values = torch.tensor([seconds, received], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(values, torch.distributed.ReduceOp.MAX)
    return float(values[0]), int(values[1])


def prepare_memory(device: torch.device, reuse: bool = True) -> None:
    """On a CPU: large tensors on large pages, and freed ones reused. Call before the first tensor is made."""
    if device.type != "cpu":
        return
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch at its first large allocation
    if reuse:
        system.keep_freed_memory()


def release_memory(device: torch.device) -> None:
    """On a CPU, give back what is free now but was kept for reuse; without glibc, do nothing."""
    if device.type == "cpu":
        system.return_freed_memory()


COMPILING_PAYS_AFTER = 120.0  # seconds of training on a CPU


def compile_blocks(model: GPT) -> None:
    """Compile every block in place, which keeps the names of parameters, and the kernel of the loss."""
    for block in model.transformer.h:
        block.compile()
    compile_kernel()


def worth_compiling(config: TrainConfig, device: torch.device, expected_seconds: float) -> bool:
    """Whether to compile: as the flag says; on "auto" on CUDA, and on a CPU when the run is long."""
    if config.compile != "auto" or config.trace:
        return config.compile == "true"
    long_enough = device.type == "cuda" or (device.type == "cpu" and expected_seconds > COMPILING_PAYS_AFTER)
    return long_enough and compiler_works(device)


def compiler_works(device: torch.device) -> bool:
    """Try torch.compile on one addition: it needs a C++ compiler on a CPU, and Triton on CUDA."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:  # whatever a missing or broken compiler raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print0(f"torch.compile does not work here, so training goes on without: {reason[:150]}")
        return False
    return True


def watch_calls(config: TrainConfig, model: ModuleType, ranks: Ranks) -> AbstractContextManager[Any]:
    """With --trace, report the calls of the model's functions inside the block; first process only."""
    if not (config.trace and ranks.first):
        return nullcontext()
    from nanochat.trace import trace

    say = functools.partial(say_around_a_bar, ranks=ranks)
    return trace(model, out=say, statistics=config.statistics)


def planned_steps(config: TrainConfig, parameters: int, flops_per_token: int) -> int:
    """S, the optimizer steps of this run: from the first positive one of the three horizons."""
    if config.num_iterations > 0:
        return config.num_iterations
    if config.target_flops > 0:
        return max(1, round(config.target_flops / (flops_per_token * config.total_batch_size)))
    return max(1, int(config.target_param_data_ratio * parameters) // config.total_batch_size)


def due(step: int, every: int, last: bool) -> bool:
    """Whether what happens every `every` steps, and at the last one, happens now.

    0 is the last one alone; a negative number never.
    """
    return last if every == 0 else every > 0 and (last or step % every == 0)


def progress_bar(total: int | None, initial: int, ranks: Ranks, title: str = "training") -> Any:
    """A bar on stderr, for the first process and only on a terminal."""
    from tqdm import tqdm

    disable = None if ranks.first else True  # None: on a terminal
    return tqdm(total=total, initial=initial, desc=title, disable=disable, leave=False, dynamic_ncols=True)


def bar_over(batches: Iterator[Batch], bar: Any) -> Iterator[Batch]:
    """Pass batches on, moving the bar."""
    for batch in batches:
        yield batch
        bar.update()


def say_around_a_bar(text: str, ranks: Ranks) -> None:
    """Print a line on stdout, above whatever bars there are; in the first process only."""
    if ranks.first:
        from tqdm import tqdm

        tqdm.write(text)
        sys.stdout.flush()


@contextmanager
def stopwatch(costs: dict[str, float], name: str) -> Iterator[None]:
    """Note how many seconds the block took."""
    start = time.perf_counter()
    yield
    costs[name] = time.perf_counter() - start


def evaluate(
    config: TrainConfig, model: GPT, tokenizer: Tokenizer, token_bytes: torch.Tensor, place: Workplace
) -> float:
    """Bits per byte on the beginning of the validation text (all of it with --eval_tokens=-1)."""
    loader = open_loader(config, "val", tokenizer, place)
    steps = evaluation_steps(config, place.ranks.world_size)
    bar = progress_bar(steps or None, 0, place.ranks, "validation")
    batches = bar_over(place.signals.watch(iter(loader)), bar)
    try:
        with torch.compiler.set_stance("force_eager"), place.autocast():
            return evaluate_bpb(model, batches, steps, token_bytes, place.ranks)
    finally:
        bar.close()
        loader.close()


def core_questions(config: TrainConfig, steps: int, say: Callable[[str], None]) -> TaskSet | None:
    """CORE's questions, if this run of `steps` steps is to be asked and they are here."""
    if not 0 < config.core_metric_every <= steps:
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
) -> tuple[Report | None, str]:
    """The score on CORE's questions, or why there is none."""

    def logits(ids: torch.Tensor) -> torch.Tensor:
        place.signals.leave_if_asked()
        predicted: torch.Tensor = model(ids)
        return predicted

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer.encode(texts, prepend=tokenizer.bos)

    def watch(task: Task, count: int) -> Callable[[int], None]:
        bar.set_postfix_str(task.name)
        return lambda done: bar.update(done)

    subject = Subject(logits, encode, config.max_seq_len, tokenizer.vocab_size, place.device)
    bar = progress_bar(None, 0, place.ranks, tasks.title)
    try:
        with torch.compiler.set_stance("force_eager"), place.autocast():
            most = config.core_metric_max_per_task
            return evaluate_core(subject, tasks, most, place.ranks, watch=watch), ""
    except UserError as error:
        return None, str(error)
    finally:
        bar.close()


PROMPTS = (
    "The state of the Union is",
    "The people of the United States",
    "We must",
    "In the year 18",
    "The most",
)


def sample(model: GPT, tokenizer: Tokenizer, place: Workplace) -> list[str]:
    """Continue each prompt by up to 48 tokens."""
    prompts = tokenizer.encode(list(PROMPTS), prepend=tokenizer.bos)
    stop = {tokenizer.bos}
    with torch.compiler.set_stance("force_eager"), place.autocast():
        for tokens in Engine(model).generate(prompts, 48, temperature=0.8, top_k=50, stop=stop):
            place.signals.leave_if_asked()
            for prompt, token in zip(prompts, tokens, strict=True):
                if token is not None:
                    prompt.append(token)
    return [tokenizer.decode(tokens[1:]) for tokens in prompts]


def keep_samples(folder: Path, step: int, samples: list[str]) -> None:
    """Add samples to samples.txt."""
    path = folder / "samples.txt"
    before = path.read_text(encoding="utf-8") + "\n" if path.exists() else ""
    write_atomically(path, f"{before}--- step {step}\n" + "\n\n".join(samples) + "\n")


def refuse_what_is_not_there(config: TrainConfig) -> None:
    """Raise UserError for a run or a device that is asked for and absent."""
    if config.resume:
        find_run(config.resume)
    if config.device_type and world_size() == 1:  # with several, each process checks its own, later
        pick_device(config.device_type)


def refuse_another_model(
    saved: Checkpoint, shape: dict[str, int], tokenizer: Tokenizer, config: TrainConfig
) -> None:
    """Raise UserError when a checkpoint does not belong to the model and data that the flags describe."""
    if "config" not in saved.meta:
        raise UserError(f"--resume={config.resume} was imported: weights, and no training to go on with")
    flags = {"n_layer": "depth", "sequence_len": "max_seq_len"}
    differing = [
        f"--{flags.get(name, name)} is {value} here and {saved.meta['model'][name]} there"
        for name, value in shape.items()
        if value != saved.meta["model"][name]
    ]
    if not differing:
        wanted = {"gpt": "book", **saved.meta["config"]}
        differing = [
            f"--{name} is {getattr(config, name)} here and {wanted[name]} there"
            for name in ("gpt", "data", "seed", "shuffle_window")
            if getattr(config, name) != wanted[name]
        ]
    if not differing and tokenizer.fingerprint() != saved.meta["tokenizer"]:
        differing = [f"the tokenizer is not the one in {saved.folder / 'tokenizer'}"]
    if differing:
        raise UserError(f"--resume={config.resume} is another run: {'; '.join(differing)}")


def go_on_with(saved: Checkpoint, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Put weights, optimizers and random generators back; rates and decay stay those of the flags."""
    model.load_state_dict(saved.model)
    for optimizer, state in zip(optimizers, saved.optimizers, strict=True):
        chosen = [
            {key: value for key, value in group.items() if key in ("initial_lr", "weight_decay")}
            for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(state)
        for group, choice in zip(optimizer.param_groups, chosen, strict=True):
            group.update(choice)
    torch.set_rng_state(saved.tensors["cpu"])
    if "cuda" in saved.tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(saved.tensors["cuda"])


def random_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of the random generators in use, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def command_line(config: TrainConfig) -> str:
    """The command that trains with this configuration."""
    flags = [
        f"--{field.name}={getattr(config, field.name)}"
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    return " ".join(["python -m scripts.base_train", *map(shlex.quote, flags)])


def train(config: TrainConfig, tokenizer: Tokenizer) -> Result:
    """Train a model as `config` says, on this process or, under torchrun, as one of several."""
    ranks = init_ranks(config.device_type)
    try:
        with Signals(ranks) as signals, ExitStack() as held:
            return training_run(config, tokenizer, ranks, signals, held)
    finally:
        leave_ranks()


def training_run(
    config: TrainConfig, tokenizer: Tokenizer, ranks: Ranks, signals: Signals, held: ExitStack
) -> Result:
    """The run itself: prepare, loop, sum up. What must be given up at the end goes into `held`."""
    device = pick_device(config.device_type, ranks)
    dtype = autocast_dtype(device, config.dtype)
    place = Workplace(ranks, device, dtype, signals)
    torch.set_float32_matmul_precision("high")
    use_own_cores()
    prepare_memory(device)
    shape = model_shape(config, tokenizer.vocab_size)
    whose = choose_gpt(config.gpt).record()
    chosen = load_gpt(config.gpt)
    watched = functools.partial(watch_calls, config, chosen, ranks)
    rates = Rates(
        config.matrix_lr, config.embedding_lr, config.unembedding_lr, config.weight_decay, config.muon_dtype
    )
    with watched():
        model = build_model(chosen, shape, device, config.seed, dtype)
        optimizers = build_optimizers(model, rates)
        flops_per_token = model.estimate_flops()
    schedule = Schedule(config.warmup_ratio, config.warmdown_ratio, config.final_lr_frac)
    stepper = Stepper(model, optimizers, schedule, config.grad_clip, place.autocast, ranks)
    passes = accumulation_steps(config, ranks.world_size)
    parameters = sum(p.numel() for p in model.parameters())
    flops_per_step = flops_per_token * config.total_batch_size
    steps = planned_steps(config, parameters, flops_per_token)
    peak, peak_source = peak_flops(device, dtype)
    expected_seconds = steps * flops_per_step / (0.3 * peak * ranks.world_size)
    if config.time_limit > 0:
        expected_seconds = min(expected_seconds, config.time_limit)
    compiled = worth_compiling(config, device, expected_seconds)
    if compiled:
        compile_blocks(model)
    progress = Progress()
    position = None
    if config.resume:
        folder = find_run(config.resume)
    elif ranks.first:
        folder = new_run(config.model_tag, f"d{config.depth}")
    else:
        folder = runs_folder()  # only the first process writes
    if ranks.first:
        held.enter_context(only_writer(folder))
    if config.resume:
        saved = load_checkpoint(folder)
        refuse_another_model(saved, shape, tokenizer, config)
        go_on_with(saved, model, optimizers)
        progress, position = Progress(**saved.meta["progress"]), saved.meta["loader"]
    elif ranks.first:
        tokenizer.save(folder / "tokenizer")
    first_step = progress.step
    saved_at = progress.step if config.resume else -1
    log = RunLog(folder, progress.records, enabled=ranks.first)
    loader = open_loader(config, "train", tokenizer, place, position)
    batches = signals.watch(iter(loader))

    def save() -> None:
        """Write a checkpoint of the state at the beginning of the current step; the first process only."""
        if not ranks.first:
            return
        progress.records = log.records
        meta = {
            "config": asdict(config),
            "gpt": whose,
            "model": shape,
            "tokenizer": tokenizer.fingerprint(),
            "parameters": parameters,
            "world_size": ranks.world_size,
            "progress": asdict(progress),
            "loader": position,
        }
        save_checkpoint(folder, progress.step, model, optimizers, meta, random_states(device))

    say = functools.partial(say_around_a_bar, ranks=ranks)
    say(
        f"model: {config.depth} blocks, width {shape['n_embd']}, {shape['n_head']} heads, "
        f"vocabulary {shape['vocab_size']:,}: {parameters:,} parameters"
    )
    say(
        f"plan: {steps:,} {'step' if steps == 1 else 'steps'} of {config.total_batch_size:,} tokens;"
        f" a step is {passes} {'pass' if passes == 1 else 'passes'} of"
        f" {config.device_batch_size} x {config.max_seq_len}"
        + (f" on each of {ranks.world_size} processes" if ranks.world_size > 1 else "")
    )
    say(f"machine: {this_machine(device).line()}")
    number_format = str(dtype or torch.float32).removeprefix("torch.")
    say(
        f"device: {device}, {number_format}, {'compiled' if compiled else 'not compiled'};"
        f" mfu is the share of {peak / 1e12:.3g} TFLOP/s ({peak_source})"
    )
    core_tasks = core_questions(config, steps, say)
    core: Report | None = None
    say(f"run: {folder}" + (f", going on at step {progress.step}" if config.resume else ""))
    bar = progress_bar(steps, progress.step, ranks)
    token_bytes = tokenizer.token_bytes().to(device)
    costs: dict[str, float] = {}  # seconds that the latest evaluation, samples and checkpoint took
    samples: list[str] = []
    loss_value = math.nan
    began = time.perf_counter() - progress.seconds
    try:
        while True:
            position = loader.state_dict()
            progress.seconds, received = agree(time.perf_counter() - began, signals.received, ranks, device)
            if received:
                signals.received = received
                raise Interrupted
            done = progress.step / steps
            if config.time_limit > 0:
                done = max(done, progress.seconds / max(config.time_limit - sum(costs.values()), 1e-9))
            last = done >= 1
            if due(progress.step, config.eval_every, last) and progress.evaluated_at < progress.step:
                with stopwatch(costs, "evaluation"):
                    progress.val_bpb = evaluate(config, model, tokenizer, token_bytes, place)
                progress.evaluated_at = progress.step
                progress.min_val_bpb = min(progress.val_bpb, progress.min_val_bpb or math.inf)
                say(f"Step {progress.step:05d} | Validation bpb: {progress.val_bpb:.4f}")
                log.write(step=progress.step, val_bpb=progress.val_bpb, seconds=round(progress.seconds, 3))
            if (
                core_tasks
                and progress.step >= config.core_metric_every
                and due(progress.step, config.core_metric_every, last)
                and progress.core_at < progress.step
            ):
                with stopwatch(costs, "core"):
                    core, problem = core_score(config, model, tokenizer, core_tasks, place)
                progress.core_at = progress.step
                name = "core_metric" if core_tasks.whole else "core_subset"
                if core is not None:
                    say(f"Step {progress.step:05d} | {core.title} metric: {core.score:.4f}")
                    log.write(progress.step, **{name: core.score, f"{name}_stderr": core.stderr})
                else:
                    say(f"Step {progress.step:05d} | {core_tasks.title} metric: none, since {problem}")
            if (
                progress.step > 0
                and due(progress.step, config.sample_every, last)
                and progress.sampled_at < progress.step
            ):
                with stopwatch(costs, "samples"):
                    if ranks.first:
                        samples = sample(model, tokenizer, place)
                        keep_samples(folder, progress.step, samples)
                progress.sampled_at = progress.step
                say("\n".join(" ".join(text.split()) for text in samples))
            if due(progress.step, config.save_every, last) and progress.step > max(saved_at, 0):
                with stopwatch(costs, "checkpoint"):
                    save()
                saved_at = progress.step
            if last:
                break
            changes = first_step + 1, progress.evaluated_at, progress.sampled_at, progress.core_at, saved_at
            if progress.step in changes:
                release_memory(device)
            step_began = time.perf_counter()
            with watched() if progress.step == first_step else nullcontext():
                outcome = stepper.step(batches, passes, progress.step, done, 1 / steps)
            step_seconds = time.perf_counter() - step_began
            if not outcome.finite:
                found = f"a loss of {outcome.loss:g} and a gradient of length {outcome.norm:g}"
                what = f"step {progress.step} has {found}"
                if progress.skipped_at == progress.step - 1:
                    raise UserError(
                        f"{what}, as had the step before it: lower the learning rates"
                        " (--matrix_lr, --embedding_lr, --unembedding_lr) or add --warmup_ratio=0.1"
                        + (f"; the last checkpoint is of step {saved_at}" if saved_at > 0 else "")
                    )
                say(f"{what}: it is left out, and nothing has changed")
                progress.skipped += 1
                progress.skipped_at = progress.step
                log.write(progress.step, skipped=1)
                progress.step += 1
                bar.update()
                continue
            loss_value = outcome.loss
            progress.train_seconds += step_seconds
            progress.smooth_loss = 0.9 * progress.smooth_loss + 0.1 * loss_value
            smooth = progress.smooth_loss / (1 - 0.9 ** (progress.step + 1 - progress.skipped))
            tokens_per_second = config.total_batch_size / step_seconds
            mfu = 100 * flops_per_step / step_seconds / (peak * ranks.world_size)
            log.write(
                step=progress.step,
                loss=loss_value,
                smooth_loss=smooth,
                lrm=outcome.rate,
                grad_norm=outcome.norm,
                dt_ms=round(1000 * step_seconds, 3),
                tok_per_sec=round(tokens_per_second),
                mfu=round(mfu, 3),
                seconds=round(progress.seconds, 3),
            )
            if progress.step % config.log_every == 0:
                say(
                    f"step {progress.step:05d}/{steps:05d} ({100 * done:.2f}%)"
                    f" | loss: {smooth:.6f} | lrm: {outcome.rate:.2f} | dt: {1000 * step_seconds:.2f}ms"
                    f" | tok/sec: {tokens_per_second:,.0f} | mfu: {mfu:.2f}"
                    f" | total time: {progress.train_seconds / 60:.2f}m"
                )
            progress.step += 1
            bar.update()
    except Interrupted:
        if progress.step > max(saved_at, 0):
            save()
            saved_at = progress.step
        say(f"stopped by {signal.Signals(signals.received).name} at step {progress.step}")
        if saved_at > 0:
            say(f"to go on: {command_line(replace(config, model_tag='', resume=folder.name))}")
    finally:
        bar.close()
        loader.close()
        log.close()
    peak_memory = peak_memory_bytes(device)
    say(f"Peak memory usage: {peak_memory / 2**20:.2f}MiB")
    say(f"Total training time: {progress.train_seconds / 60:.2f}m")
    if progress.min_val_bpb is not None:
        say(f"Minimum validation bpb: {progress.min_val_bpb:.4f}")
    if progress.step < 3:
        say("fewer than three steps do not move every weight; for a model that learns: --num_iterations=3")
    if ranks.first:
        plot_metrics(folder)
    return Result(
        tag=folder.name,
        folder=folder,
        finished=not signals.received,
        signal=signals.received,
        steps=progress.step,
        parameters=parameters,
        tokens=progress.step * config.total_batch_size,
        loss=loss_value,
        val_bpb=progress.val_bpb,
        min_val_bpb=progress.min_val_bpb,
        seconds=time.perf_counter() - began,
        train_seconds=progress.train_seconds,
        peak_memory=peak_memory,
        compiled=compiled,
        samples=samples,
        core=core,
        model=model,
    )
