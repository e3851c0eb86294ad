"""Training on conversations: flags, which run it begins with, the run. Imports no PyTorch at first."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from nanochat.common import UserError
from nanochat.flags import flag
from nanochat.train_config import TrainConfig

if TYPE_CHECKING:
    from nanochat.run import Result


@dataclass(frozen=True)
class TalkConfig(TrainConfig):
    """The flags of scripts.mid_train and scripts.chat_sft. Shape and corpus are those of the base run."""

    base: str = flag("", "the run to begin with (without: the newest of the stage before)")
    save_every: int = flag(0, "steps between checkpoints; one more at the end; 0: only that; -1: none")
    save_seconds: float = flag(60.0, "seconds between checkpoints as well (-1: no matter)")
    keep: int = flag(2, "the last so many checkpoints stay, and the best one (-1: all)")
    log_every: int = flag(50, "steps between lines on the terminal")
    depth: int = flag(2, "taken from the base run, as is the rest of the shape")
    max_seq_len: int = flag(256, "likewise")
    device_batch_size: int = flag(16, "B, rows of full length in one pass; shorter rows are more")
    total_batch_size: int = flag(4096, "tokens in one optimizer step, over all passes and devices")
    warmup_ratio: float = flag(0.02, "part of the run in which the learning rate rises")
    eval_every: int = flag(250, "steps between evaluations; one more at the end; 0: only that; -1: none")
    eval_tokens: int = flag(-1, "always all of the validation conversations")
    core_metric_every: int = flag(-1, "CORE's questions are not for a model that answers")
    sample_every: int = flag(-1, "nor are speeches")


@dataclass(frozen=True)
class MidConfig(TalkConfig):
    """The flags of scripts.mid_train."""

    num_iterations: int = flag(100, "optimizer steps")
    warmup_ratio: float = flag(0.1, "part of the run in which the learning rate rises")
    warmdown_ratio: float = flag(0.0, "part of the run in which it falls")


@dataclass(frozen=True)
class SftConfig(TalkConfig):
    """The flags of scripts.chat_sft."""

    num_iterations: int = flag(1000, "optimizer steps")
    warmdown_ratio: float = flag(0.98, "part of the run in which the learning rate falls")


STAGES = {"base": r"(?!.*-(mid|chat)(-\d+)?$).*", "mid": r".*-mid(-\d+)?", "chat": r".*-chat(-\d+)?"}


def stage_of(tag: str) -> str:
    """The stage that a run's name tells: base, mid or chat."""
    return next(stage for stage, pattern in STAGES.items() if re.fullmatch(pattern, tag))


def newest(stage: str) -> str:
    """The tag of the run of this stage, a key of STAGES, that saved last; "" if there is none."""
    from nanochat.checkpoint_manager import last_save, runs_folder, saved_steps

    runs = [path for path in runs_folder().glob("*") if stage_of(path.name) == stage]
    return max(filter(saved_steps, runs), key=last_save).name if any(map(saved_steps, runs)) else ""


def begin_with(config: TalkConfig, stage: str) -> str:
    """The tag of the run to begin, or to go on, with. Raises UserError if there is none."""
    before = ("mid", "base") if stage == "chat" else ("base",)
    tag = config.resume or config.base or next(filter(None, map(newest, before)), "")
    if not tag:
        raise UserError("there is no base model to begin with: make train, or name a run with --base")
    return tag


def train_on_talks(config: TalkConfig, stage: str) -> Result:
    """Begin with a run's weights, train on conversations. Raises UserError if the run is not what it was."""
    tag = begin_with(config, stage)
    from nanochat import run, talks
    from nanochat.checkpoint_manager import find_run, load_checkpoint
    from nanochat.tokenizer import Tokenizer

    folder = find_run(tag)
    saved = load_checkpoint(folder, weights_only=True)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint() != saved.meta["tokenizer"]:
        raise UserError(f"{folder / 'tokenizer'} is not the one this model was trained with; restore it")
    shape, before = saved.meta["model"], saved.meta.get("config", {})
    config = replace(
        config,
        depth=shape["n_layer"],
        max_seq_len=shape["sequence_len"],
        n_embd=shape["n_embd"],
        n_head=shape["n_head"],
        n_kv_head=shape["n_kv_head"],
        vocab_size=shape["vocab_size"],
        data=before.get("data", config.data),
        gpt=saved.meta.get("gpt", {}).get("name", config.gpt),
    )
    chosen = talks.CHAT if stage == "chat" else talks.MID
    source = partial(talks.Talks, stage=chosen, origin=folder.name)
    return run.train(config, tokenizer, source, weights=None if config.resume else saved.model)
