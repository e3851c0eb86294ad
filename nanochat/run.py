"""A training run: prepared, then round after round saved, looked at and taken a step further, then closed.

What it reads is a `Source` (nanochat.workplace): batches without end whose position can be saved, batches to
be evaluated on, a fingerprint. A program that trains on something else than a corpus passes its own to
`train`, with `weights` if it does not begin with random ones; saving, resuming, stopping and ranks are here.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from nanochat.agreement import Companions, Interrupted, OtherFailed, Signals, from_the_first, largest
from nanochat.checkpoint_manager import (
    Checkpoint,
    InPieces,
    change_meta,
    fill,
    find_run,
    load_checkpoint,
    new_run,
    only_writer,
    remove_checkpoint,
    run_of_this_launch,
    save_checkpoint,
    save_patiently,
    saved_steps,
)
from nanochat.common import (
    CannotWrite,
    UserError,
    init_ranks,
    leave_ranks,
    peak_memory_bytes,
    pick_device,
)
from nanochat.core_eval import Report
from nanochat.looks import Evaluation, Look, Samples, Score, core_questions, due
from nanochat.machine import autocast_dtype, peak_flops, this_machine, use_own_cores
from nanochat.models import choose_gpt, load_gpt
from nanochat.normans_gpt import GPT
from nanochat.parallel import (
    Whole,
    cut_into_pieces,
    gathered,
    laid_like,
    laid_like_parameters,
    local,
    shards_for,
    share_the_work,
)
from nanochat.run_log import RunLog, plot_metrics, progress_bar, say_around_a_bar
from nanochat.run_state import COSTS, Decisions, Progress, read_state
from nanochat.step import Batch, Outcome, Rates, Schedule, Stepper, build_model, build_optimizers
from nanochat.tokenizer import Tokenizer
from nanochat.train_config import TrainConfig, accumulation_steps, model_shape, world_size
from nanochat.workplace import (
    Corpus,
    Source,
    Workplace,
    compile_blocks,
    prepare_memory,
    release_memory,
    worth_compiling,
)

Watch = Callable[[ModuleType], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    tag: str
    folder: Path
    finished: bool  # False when a signal stopped it
    signal: int
    failures: list[str]  # what was optional and did not work, a line each
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

    def leave(self) -> None:
        """End the program with the status a shell expects, unless all went well."""
        if not self.finished:
            sys.exit(128 + self.signal)
        if self.failures:
            sys.exit(1)


@dataclass(frozen=True)
class Moment:
    """The beginning of a round, the same for all processes."""

    step: int
    seconds: float
    done: float  # the part of the run that is over
    last: bool


def planned_steps(config: TrainConfig, parameters: int, flops_per_token: int) -> int:
    """S, the optimizer steps of this run: from the first positive one of the three horizons."""
    if config.num_iterations > 0:
        return config.num_iterations
    if config.target_flops > 0:
        return max(1, round(config.target_flops / (flops_per_token * config.total_batch_size)))
    return max(1, int(config.target_param_data_ratio * parameters) // config.total_batch_size)


ROUNDING = ("device", "dtype", "compiled", "threads", "torch", "deterministic", "world_size", "shards")
FLAGS = [one.name for one in fields(TrainConfig) if one.name not in ("resume", "model_tag")]


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


def refuse_another_text(before: Decisions, now: Decisions, config: TrainConfig) -> None:
    """Raise UserError if the text is another one than the checkpoint was trained on."""
    if before.corpus != now.corpus:
        raise UserError(
            f"--resume={config.resume}: the text of {config.data} is not the one that this run has read"
            f" ({now.corpus[:12]}… and not {before.corpus[:12]}…): put the old files back, or begin a new run"
        )


def differences(before: dict[str, Any], now: dict[str, Any], names: Sequence[str]) -> list[str]:
    """Which of these have another value now, each with what it was."""
    return [
        f"{name} was {before[name]!r} and is {now[name]!r}"
        for name in names
        if name in before and before[name] != now[name]
    ]


def go_on_with(saved: Checkpoint, model: GPT, optimizers: list[torch.optim.Optimizer]) -> None:
    """Put weights, optimizers and random generators back; rates and decay stay those of the flags."""
    if saved.pieces:
        saved = fill(saved, model, optimizers)
    pattern = model.state_dict()
    model.load_state_dict({name: laid_like(value, pattern[name]) for name, value in saved.model.items()})
    for optimizer, state in zip(optimizers, saved.optimizers, strict=True):
        chosen = [
            {key: value for key, value in group.items() if key in ("initial_lr", "weight_decay")}
            for group in optimizer.param_groups
        ]
        optimizer.load_state_dict(laid_like_parameters(optimizer, state))
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


def command_line(config: TrainConfig, program: str, processes: int = 1) -> str:
    """The command that trains with this configuration, with torchrun if there are several processes."""
    start = f"python -m {program}"
    if processes > 1:
        here = int(os.environ.get("LOCAL_WORLD_SIZE") or processes)
        nodes = f" --nnodes={processes // here}" if here < processes else ""
        start = f"torchrun{nodes} --nproc_per_node={here} -m {program}"
    flags = [
        f"--{field.name}={getattr(config, field.name)}"
        for field in fields(config)
        if getattr(config, field.name) != field.default
    ]
    return " ".join([start, *map(shlex.quote, flags)])


class Run:
    """One training run: prepared when it is made, then lived, then closed.

    What it remembers: `progress` and `decisions`, which are saved; `model` and `stepper`; `batches` and
    `position`, behind which the next step reads; `folder`, `log`, `saved_at`; `failures`, a line each.
    """

    core: Report | None

    def __init__(
        self,
        config: TrainConfig,
        tokenizer: Tokenizer,
        place: Workplace,
        source: Source | None = None,
        *,
        weights: dict[str, torch.Tensor] | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Prepare everything; `close` gives it up again. Raises UserError for what cannot work.

        source: what to read, without it the corpus of the flags. weights: what to begin with, without them
        those of the seed. watch: a context for the model's module in the first process, entered when the
        model is made and again in its first step.
        """
        self.config, self.tokenizer, self.place = config, tokenizer, place
        self.source = source or Corpus(config, tokenizer, place)
        self.shape = model_shape(config, tokenizer.vocab_size)
        self.passes = accumulation_steps(config, place.ranks.world_size)
        several = place.ranks.world_size > 1
        saved = load_checkpoint(find_run(config.resume), leave_pieces=several) if config.resume else None
        if saved:
            refuse_another_model(saved, self.shape, tokenizer, config)
        self.whose = choose_gpt(config.gpt).record()
        self.build(watch, weights)
        self.held, self.failures = ExitStack(), list[str]()
        self.decide(saved)
        self.open_folder(saved)
        self.samples, self.core, self.loss = list[str](), None, math.nan
        self.pieces: InPieces | None = None  # the checkpoint that is being written in the background
        self.saved_seconds = self.progress.seconds

    def build(self, watch: Watch | None, weights: dict[str, torch.Tensor] | None) -> None:
        """Make the model, its optimizers, and what takes steps with them."""
        config, place = self.config, self.place
        rates = Rates(
            config.matrix_lr,
            config.embedding_lr,
            config.unembedding_lr,
            config.weight_decay,
            config.muon_dtype,
        )
        chosen = load_gpt(config.gpt)
        self.watched = partial(watch, chosen) if watch and place.ranks.first else nullcontext
        with self.watched():
            self.model = build_model(chosen, self.shape, place.device, config.seed, place.dtype)
            if weights is not None:
                self.model.load_state_dict(weights)
            self.parameters = sum(p.numel() for p in self.model.parameters())
            self.shards = shards_for(config.shard, self.parameters, place.ranks)
            cut_into_pieces(self.model, place.ranks, place.device, self.shards)
            optimizers = build_optimizers(self.model, rates)
            share_the_work(optimizers, place.ranks)
            flops_per_token = self.model.estimate_flops()
        schedule = Schedule(config.warmup_ratio, config.warmdown_ratio, config.final_lr_frac)
        clip, autocast = config.grad_clip, place.autocast
        self.stepper = Stepper(self.model, optimizers, schedule, clip, autocast, place.ranks)
        self.flops_per_step = flops_per_token * config.total_batch_size
        self.steps = planned_steps(config, self.parameters, flops_per_token)

    def decide(self, saved: Checkpoint | None) -> None:
        """Decide how to compute, as all processes will; compare with what a checkpoint was made with."""
        config, place = self.config, self.place
        before = None
        if saved and "decisions" in saved.meta:
            before = read_state(Decisions, saved.meta["decisions"], saved.folder)

        def make() -> tuple[float, str, Decisions]:
            peak, source = peak_flops(place.device, place.dtype)
            seconds = self.steps * self.flops_per_step / (0.3 * peak * place.ranks.world_size)
            if config.time_limit > 0:
                seconds = min(seconds, config.time_limit)
            keep = before is not None and config.compile == "auto" and not config.trace
            compiled = before.compiled if before and keep else worth_compiling(config, place.device, seconds)
            decisions = Decisions(
                device=this_machine(place.device).device,
                dtype=str(place.dtype or torch.float32).removeprefix("torch."),
                compiled=compiled,
                threads=torch.get_num_threads(),
                torch=torch.__version__,
                deterministic=torch.are_deterministic_algorithms_enabled(),
                world_size=place.ranks.world_size,
                corpus=self.source.fingerprint(),
                tokenizer=self.tokenizer.fingerprint(),
                shards=self.shards,
            )
            return peak, source, decisions

        self.peak, self.peak_source, self.decisions = from_the_first(make, place.ranks)
        if before:
            refuse_another_text(before, self.decisions, config)
        self.changed = differences(asdict(before), asdict(self.decisions), ROUNDING) if before else []
        self.changed_flags = differences(saved.meta["config"], asdict(config), FLAGS) if saved else []
        if self.decisions.compiled:
            compile_blocks(self.model)

    def open_folder(self, saved: Checkpoint | None) -> None:
        """Make the run's folder, or go on in it with what a checkpoint holds."""
        first, config = self.place.ranks.first, self.config
        if saved:
            self.folder = saved.folder
        else:
            folder = partial(new_run, config.model_tag, self.source.tag)
            self.folder = from_the_first(folder, self.place.ranks)
        if first:
            self.held.enter_context(only_writer(self.folder))
        self.progress, position = Progress(), None
        if saved:
            self.progress = read_state(Progress, saved.meta.get("progress"), saved.folder)
            position = saved.meta["loader"]
            go_on_with(saved, self.model, self.stepper.optimizers)
        elif first:
            self.tokenizer.save(self.folder / "tokenizer")
        self.first_step = self.progress.step
        self.saved_at = self.progress.step if saved else -1
        self.log = RunLog(self.folder, self.progress.records, enabled=first)
        self.batches = self.source.train(position)
        self.position = self.batches.state_dict()

    def announce(self) -> None:
        """Say what is about to happen, and what will be looked at."""
        config, shape, world = self.config, self.shape, self.place.ranks.world_size
        self.say(
            f"model: {config.depth} blocks, width {shape['n_embd']}, {shape['n_head']} heads, "
            f"vocabulary {shape['vocab_size']:,}: {self.parameters:,} parameters"
        )
        self.say(
            f"plan: {self.steps:,} {'step' if self.steps == 1 else 'steps'} of"
            f" {config.total_batch_size:,} tokens;"
            f" a step is {self.passes} {'pass' if self.passes == 1 else 'passes'} of"
            f" {config.device_batch_size} x {config.max_seq_len}"
            + (f" on each of {world} processes" if world > 1 else "")
        )
        self.say(f"machine: {this_machine(self.place.device).line()}")
        self.say(
            f"device: {self.place.device}, {self.decisions.dtype},"
            f" {'compiled' if self.decisions.compiled else 'not compiled'};"
            f" mfu is the share of {self.peak / 1e12:.3g} TFLOP/s ({self.peak_source})"
        )
        self.looks: list[Look] = [
            Evaluation(config.eval_every, self.tokenizer.token_bytes().to(self.place.device)),
            Score(config.core_metric_every, core_questions(config.core_metric_every, self.steps, self.say)),
            Samples(config.sample_every),
        ]
        going_on = f", going on at step {self.progress.step}" if self.config.resume else ""
        self.say(f"run: {self.folder}{going_on}")
        if self.changed_flags:
            self.say(f"flags with another value than before: {'; '.join(self.changed_flags)}")
        if self.changed:
            self.say(
                f"not as it was saved: {'; '.join(self.changed)}. The run goes on from the same state; its"
                " numbers will not be those of a run that nobody stopped"
            )

    def say(self, text: str) -> None:
        """Print a line, in the first process."""
        say_around_a_bar(text, self.place.ranks)

    def live(self) -> Result:
        """Train until the end, or until something ends it; what was learned is saved whatever happens."""
        self.announce()
        self.began = time.perf_counter() - self.progress.seconds
        self.bar = progress_bar(self.steps, self.progress.step, self.place.ranks)
        try:
            with self.place.signals:
                self.rounds()
        except Interrupted:
            self.stop()
        except BaseException:
            self.place.signals.ending.set()
            self.rescue()
            raise
        finally:
            self.bar.close()
            self.batches.close()
            self.log.close()
        return self.sum_up()

    def rounds(self) -> None:
        """Agree, save, look, take a step; the last round is without a step."""
        stream = self.place.signals.watch(iter(self.batches))
        while True:
            moment = self.agree()
            if self.save_due(moment):
                self.save(moment)
            for look in self.looks:
                if self.look_due(look, moment):
                    self.take(look)
                    self.add_to_the_checkpoint()
            if moment.last:
                self.finish_pieces()
                return
            self.step(stream, moment)

    def clock(self) -> float:
        """Seconds since the run began, here."""
        return time.perf_counter() - self.began

    def agree(self) -> Moment:
        """What all processes agree on at the beginning of a round. Raises Interrupted if one got a signal."""
        progress, signals, limit = self.progress, self.place.signals, self.config.time_limit
        busy = self.pieces is not None and self.pieces.busy()
        own = [self.clock(), float(signals.received), float(busy)]
        own += [progress.costs.get(name, 0.0) for name in COSTS]
        progress.seconds, number, writing, *costs = largest(own, self.place.ranks, self.place.device)
        if self.pieces and not writing:
            self.finish_pieces()
        progress.costs = dict(zip(COSTS, costs, strict=True))
        if number:
            signals.received = int(number)
            raise Interrupted
        done = progress.step / self.steps
        if limit > 0:
            done = max(done, progress.seconds / max(limit - sum(costs), 1e-9))
        return Moment(progress.step, progress.seconds, done, done >= 1)

    def save_due(self, moment: Moment) -> bool:
        """Whether a checkpoint is written in this round."""
        config, every = self.config, self.config.save_every
        if moment.step <= max(self.saved_at, 0):
            return False
        waited = moment.last or moment.seconds - self.saved_seconds >= config.save_seconds
        return (config.save_seconds > 0 and waited) or due(moment.step, every, moment.last)

    def save(self, moment: Moment) -> None:
        """Write a checkpoint; a disk that refuses ends nothing, and is asked again at the end."""
        began, self.saved_seconds = time.perf_counter(), moment.seconds
        try:
            self.write_checkpoint(patiently=moment.last)
        except CannotWrite as error:
            self.fail(f"the checkpoint of step {moment.step}", error)
        self.progress.costs["checkpoint"] = time.perf_counter() - began

    def write_checkpoint(self, patiently: bool = False) -> None:
        """Save the state at the beginning of the current step; the first process writes, or all of them."""
        progress, ranks = self.progress, self.place.ranks
        if self.shards > 1:
            self.finish_pieces()
            if patiently:
                save_patiently(self.write_pieces, self.say)
            else:
                self.begin_pieces()
            return
        if ranks.first:
            model = Whole(self.model, ranks)
            optimizers = [Whole(optimizer, ranks) for optimizer in self.stepper.optimizers]
            self.refuse_what_is_no_number(model.state_dict())
            tensors = random_states(self.place.device)

            def write() -> None:
                save_checkpoint(self.folder, progress.step, model, optimizers, self.describe(), tensors)

            if patiently:
                save_patiently(write, self.say)
            else:
                write()
        self.saved_at = progress.step
        self.remove_older_ones()

    def refuse_what_is_no_number(self, weights: dict[str, torch.Tensor]) -> None:
        """Raise UserError for the first of these weights that holds NaN or infinity."""
        if name := first_without_numbers(weights):
            raise self.diverged(
                f"{name} holds values that are no numbers, so step {self.progress.step} is not saved"
            )

    def begin_pieces(self) -> None:
        """Begin to write a checkpoint in pieces, in all processes."""
        own = {name: local(weight) for name, weight in self.model.state_dict().items()}
        self.refuse_what_is_no_number(own)
        tensors = random_states(self.place.device) if self.place.ranks.first else {}
        optimizers, step = self.stepper.optimizers, self.progress.step
        self.pieces = InPieces(self.folder, step, self.model, optimizers, tensors, self.place.group)
        self.about_pieces = self.describe()

    def write_pieces(self) -> None:
        """Write a checkpoint in pieces and wait for it. Raises CannotWrite, then in all processes."""
        self.begin_pieces()
        self.name_pieces()

    def finish_pieces(self) -> None:
        """Name what was written in the background, if anything was; a disk that refused ends nothing."""
        step = self.pieces.step if self.pieces else 0
        try:
            self.name_pieces()
        except CannotWrite as error:
            self.fail(f"the checkpoint of step {step}", error)

    def name_pieces(self) -> None:
        """Wait for what is being written, and name it; all processes must call this. Raises CannotWrite."""
        pieces, self.pieces = self.pieces, None
        if pieces:
            pieces.finish(self.about_pieces)
            self.saved_at = pieces.step
            self.remove_older_ones()

    def describe(self) -> dict[str, Any]:
        """What a checkpoint says of the run and of this moment of it."""
        self.progress.records, self.progress.seconds = self.log.records, self.clock()
        return {
            "config": asdict(self.config),
            "gpt": self.whose,
            "model": self.shape,
            "tokenizer": self.decisions.tokenizer,
            "parameters": self.parameters,
            "decisions": asdict(self.decisions),
            "progress": asdict(self.progress),
            "loader": self.position,
            "run": {"tag": self.folder.name, "saved": time.time()},
        }

    def add_to_the_checkpoint(self) -> None:
        """Write into the checkpoint of this step what was seen after it had been saved."""
        if self.pieces:
            if self.pieces.step == self.progress.step:
                self.about_pieces = self.describe()
            return
        if self.place.ranks.first and self.saved_at == self.progress.step:
            try:
                change_meta(self.folder, self.saved_at, self.describe())
            except UserError as error:
                self.fail(f"what was seen at step {self.saved_at}", error)
        self.remove_older_ones()

    def remove_older_ones(self) -> None:
        """Keep the last few checkpoints and the best one, if not all."""
        if self.config.keep > 0 and self.place.ranks.first:
            for step in saved_steps(self.folder)[: -self.config.keep]:
                if step != self.progress.best_at:
                    with suppress(CannotWrite):  # too many is no harm
                        remove_checkpoint(self.folder, step)

    def stop(self) -> None:
        """End a run that was asked to stop."""
        signals, step = self.place.signals, self.progress.step
        self.finish_pieces()
        if step > max(self.saved_at, 0):
            self.save(Moment(step, self.clock(), 1.0, last=True))
        self.say(f"stopped by {signal.Signals(signals.received).name} at step {step}")
        if self.saved_at > 0:
            self.say(f"to go on: {self.how_to_go_on()}")

    def rescue(self) -> None:
        """Save what there is before an error ends the run, as far as it is the state of a step."""
        unsaved = self.progress.step > max(self.saved_at, 0)
        if not (unsaved and self.stepper.whole and self.place.ranks.first):
            return
        if self.shards > 1:
            self.say("the weights lie in pieces, of which some are lost: go on from the last checkpoint")
            return
        try:
            self.write_checkpoint()
        except Exception as error:
            self.say(f"the state of step {self.progress.step} could not be saved: {in_one_line(error)}")
        else:
            self.say(f"an error ends this run; the state of step {self.saved_at} is saved")
            self.say(f"to go on: {self.how_to_go_on()}")

    def how_to_go_on(self) -> str:
        """The command that goes on with this run."""
        config = replace(self.config, model_tag="", resume=self.folder.name)
        return command_line(config, self.source.program, self.place.ranks.world_size)

    def look_due(self, look: Look, moment: Moment) -> bool:
        """Whether it is time for a look that has not been taken at this step."""
        return look.due(moment.step, moment.last) and getattr(self.progress, look.mark) < moment.step

    def take(self, look: Look) -> None:
        """Take a look. Whatever goes wrong in it is said, and ends nothing."""
        began, step = time.perf_counter(), self.progress.step
        try:
            with gathered(self.model):
                look.look(self)
        except Interrupted:
            if look.together or self.place.ranks.world_size == 1:
                raise
        except OtherFailed:
            raise
        except Exception as error:
            if isinstance(error, NotImplementedError) and not step:
                raise  # nothing has been trained, and the model is not written yet
            self.fail(f"{look.name} at step {step}", error)
        setattr(self.progress, look.mark, step)
        self.progress.costs[look.name] = time.perf_counter() - began

    def fail(self, what: str, error: Exception) -> None:
        """Say what did not work; the run goes on."""
        self.failures.append(f"{what}: {in_one_line(error)}")
        self.say(f"did not work: {self.failures[-1]}")

    def step(self, stream: Iterator[Batch], moment: Moment) -> None:
        """Take one optimizer step, count it, and say what it came to."""
        progress = self.progress
        other_work = progress.evaluated_at, progress.sampled_at, progress.core_at, self.saved_at
        if moment.step in (self.first_step + 1, *other_work):
            release_memory(self.place.device)
        began = time.perf_counter()
        with self.watched() if moment.step == self.first_step else nullcontext():
            outcome = self.stepper.step(stream, self.passes, moment.step, moment.done, 1 / self.steps)
        seconds = time.perf_counter() - began
        progress.step += 1
        progress.train_seconds += seconds
        self.position = self.batches.state_dict()
        self.bar.update()
        if outcome.finite:
            self.report(moment, outcome, seconds)
        else:
            self.leave_out(moment.step, outcome)

    def leave_out(self, step: int, outcome: Outcome) -> None:
        """Note a step that changed nothing. Raises UserError if the one before was one as well."""
        progress, before = self.progress, self.progress.skipped_at
        progress.skipped, progress.skipped_at = progress.skipped + 1, step
        self.log.write(step, skipped=1)
        what = f"step {step} has a loss of {outcome.loss:g} and a gradient of length {outcome.norm:g}"
        if before != step - 1:
            self.say(f"{what}: it is left out, and nothing has changed")
            return
        self.rescue()
        raise self.diverged(f"{what}, as had the step before it")

    def diverged(self, what: str) -> UserError:
        """What to raise when training has left the numbers behind."""
        good = f"; the last good state is that of step {self.saved_at}" if self.saved_at > 0 else ""
        return UserError(
            f"{what}: lower the learning rates (--matrix_lr, --embedding_lr, --unembedding_lr)"
            f" or add --warmup_ratio=0.1{good}"
        )

    def report(self, moment: Moment, outcome: Outcome, seconds: float) -> None:
        """Write down what a step came to, and print it if it is its turn."""
        progress, step = self.progress, moment.step
        self.loss = outcome.loss
        progress.smooth_loss = 0.9 * progress.smooth_loss + 0.1 * outcome.loss
        smooth = progress.smooth_loss / (1 - 0.9 ** (progress.step - progress.skipped))
        tokens_per_second = self.config.total_batch_size / seconds
        mfu = 100 * self.flops_per_step / seconds / (self.peak * self.place.ranks.world_size)
        self.log.write(
            step=step,
            loss=outcome.loss,
            smooth_loss=smooth,
            lrm=outcome.rate,
            grad_norm=outcome.norm,
            dt_ms=round(1000 * seconds, 3),
            tok_per_sec=round(tokens_per_second),
            mfu=round(mfu, 3),
            seconds=round(moment.seconds, 3),
        )
        if step % self.config.log_every == 0:
            self.say(
                f"step {step:05d}/{self.steps:05d} ({100 * moment.done:.2f}%)"
                f" | loss: {smooth:.6f} | lrm: {outcome.rate:.2f} | dt: {1000 * seconds:.2f}ms"
                f" | tok/sec: {tokens_per_second:,.0f} | mfu: {mfu:.2f}"
                f" | total time: {progress.train_seconds / 60:.2f}m"
            )

    def sum_up(self) -> Result:
        """Say and return what the run came to."""
        progress, signals = self.progress, self.place.signals
        peak_memory = peak_memory_bytes(self.place.device)
        self.say(f"Peak memory usage: {peak_memory / 2**20:.2f}MiB")
        self.say(f"Total training time: {progress.train_seconds / 60:.2f}m")
        if progress.min_val_bpb is not None:
            self.say(f"Minimum validation bpb: {progress.min_val_bpb:.4f}")
        if progress.step < 3:
            self.say(
                "fewer than three steps do not move every weight; for a model that learns: --num_iterations=3"
            )
        if self.place.ranks.first:
            try:
                plot_metrics(self.folder)
            except Exception as error:
                self.fail("the picture of the loss", error)
        if self.log.failure:
            self.fail("metrics.jsonl", self.log.failure)
        return Result(
            tag=self.folder.name,
            folder=self.folder,
            finished=not signals.received,
            signal=signals.received,
            failures=self.failures,
            steps=progress.step,
            parameters=self.parameters,
            tokens=progress.step * self.config.total_batch_size,
            loss=self.loss,
            val_bpb=progress.val_bpb,
            min_val_bpb=progress.min_val_bpb,
            seconds=self.clock(),
            train_seconds=progress.train_seconds,
            peak_memory=peak_memory,
            compiled=self.decisions.compiled,
            samples=self.samples,
            core=self.core,
            model=self.model,
        )

    def close(self) -> None:
        """Give up the folder."""
        self.held.close()


def in_one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    return said if isinstance(error, UserError) else f"{type(error).__name__}: {said}"


def first_without_numbers(weights: dict[str, torch.Tensor]) -> str:
    """The name of the first weight that holds NaN or infinity; "" if all are numbers."""
    for name, weight in weights.items():
        if not weight.isfinite().all():
            return name
    return ""


def after_a_restart(config: TrainConfig) -> TrainConfig:
    """The flags, with --resume if the run was begun by this launch of torchrun and has saved something."""
    tag = "" if config.resume else run_of_this_launch()
    return replace(config, resume=tag, model_tag="") if tag else config


def train(
    config: TrainConfig,
    tokenizer: Tokenizer,
    make_source: Callable[[TrainConfig, Tokenizer, Workplace], Source] = Corpus,
    *,
    weights: dict[str, torch.Tensor] | None = None,
    watch: Watch | None = None,
) -> Result:
    """Train a model as `config` says, on this process or, under torchrun, as one of several.

    make_source: what to read. weights: what to begin with, in place of the seed's. watch: see Run.
    """
    ranks = init_ranks(config.device_type)
    signals = Signals(ranks)
    try:
        with Companions(ranks, signals, config.patience):
            device = pick_device(config.device_type, ranks)
            config = from_the_first(partial(after_a_restart, config), ranks)
            torch.set_float32_matmul_precision("high")
            use_own_cores()
            prepare_memory(device)
            group = torch.distributed.new_group(backend="gloo") if ranks.world_size > 1 else None
            place = Workplace(ranks, device, autocast_dtype(device, config.dtype), signals, group)
            source = make_source(config, tokenizer, place)
            run = Run(config, tokenizer, place, source, weights=weights, watch=watch)
            try:
                return run.live()
            finally:
                run.close()
    finally:
        leave_ranks()
