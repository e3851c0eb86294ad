"""The flags of the training program, and everything that can be wrong with them. Imports no PyTorch."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

from nanochat.common import UserError
from nanochat.dataset import prepare_corpus
from nanochat.flags import LARGEST_SEED, flag, keep_in_range
from nanochat.machine import FORMATS
from nanochat.tokenizer import SMALLEST_VOCAB_SIZE, Tokenizer, prepare_tokenizer, usual_vocab_size

DEVICES = ("", "cuda", "mps", "cpu")
SHUFFLE_WINDOW = 1024


@dataclass(frozen=True)
class TrainConfig:
    """Every flag of scripts.base_train, with its default. Raises UserError for values that can not work."""

    run: str = flag("dummy", "a name for this run, kept in its records", group="the run")
    model_tag: str = flag("", "the run's folder in base_checkpoints (without: d4 for depth 4, then d4-2, …)")
    resume: str = flag("", "go on with a run: its tag, or 'latest'")
    save_every: int = flag(
        2000, "steps between checkpoints; one more at the end; 0: only that; -1: only when stopped"
    )
    save_seconds: float = flag(
        -1.0, "seconds between checkpoints as well; one more at the end (-1: no matter)"
    )
    keep: int = flag(-1, "the last so many checkpoints stay, and the best one (-1: all)")
    log_every: int = flag(1, "steps between lines on the terminal")
    seed: int = flag(42, "seed of the weights and of the order of the data")
    shard: int = flag(
        0, "processes that share one copy of the weights (1: each has its own; 0: by the model's size)"
    )
    patience: float = flag(540.0, "several processes: seconds in which none moves, after which all end")
    device_type: str = flag("", "cuda, mps or cpu (without: the first of these there is)", choices=DEVICES)
    dtype: str = flag("auto", "format of matrix products", choices=FORMATS)
    compile: str = flag("auto", "compile the blocks (auto: where it pays)", choices=("auto", "true", "false"))
    trace: bool = flag(False, "print every call of the model's functions up to the first step")
    statistics: bool = flag(False, "with --trace: mean, deviation and largest magnitude of each tensor")
    gpt: str = flag(
        "book", "whose model: book, mine (workshop/), reference, or the path of a .py file", group="the model"
    )
    depth: int = flag(20, "number of blocks; the width follows from it")
    max_seq_len: int = flag(2048, "T, tokens in a sequence")
    n_embd: int = flag(0, "C, the width (0: 64 * depth)")
    n_head: int = flag(0, "H, query heads (0: one for every 128 of the width)")
    n_kv_head: int = flag(0, "key and value heads (0: as many as query heads)")
    data: str = flag("sotu", "name of the corpus", group="the data")
    vocab_size: int = flag(0, "V, choosing the tokenizer (0: the one there is, else the default size)")
    shuffle_window: int = flag(SHUFFLE_WINDOW, "sequences shuffled together (1: the order of the text)")
    num_iterations: int = flag(
        -1,
        "optimizer steps (-1: --target_flops decides)",
        group="how long: the first of these three that is positive decides",
    )
    target_flops: float = flag(-1.0, "floating point operations (-1: --target_param_data_ratio decides)")
    target_param_data_ratio: float = flag(20.0, "training tokens for each parameter")
    time_limit: float = flag(-1.0, "seconds after which to stop early, the schedule adapted (-1: none)")
    device_batch_size: int = flag(
        32, "B, sequences in one pass on one device; lower it to save memory", group="the optimization"
    )
    total_batch_size: int = flag(524288, "tokens in one optimizer step, over all passes and devices")
    embedding_lr: float = flag(0.2, "learning rate of the embedding (AdamW)")
    unembedding_lr: float = flag(0.004, "learning rate of lm_head (AdamW)")
    matrix_lr: float = flag(0.02, "learning rate of the blocks' matrices (Muon)")
    muon_dtype: str = flag(
        "auto", "format in which Muon orthogonalizes (auto: the fastest here)", choices=FORMATS
    )
    weight_decay: float = flag(0.0, "weight decay of embedding and lm_head (AdamW)")
    grad_clip: float = flag(1.0, "longest allowed gradient, in L2 norm (0: any)")
    warmup_ratio: float = flag(0.0, "part of the run in which the learning rate rises")
    warmdown_ratio: float = flag(0.2, "part of the run in which it falls")
    final_lr_frac: float = flag(0.0, "where it falls to, as a fraction of its full value")
    eval_every: int = flag(
        250,
        "steps between evaluations; one more at the end; 0: only that; -1: none",
        group="what to look at",
    )
    eval_tokens: int = flag(20 * 524288, "validation tokens for one evaluation; -1: all of them")
    core_metric_every: int = flag(2000, "steps between CORE scores (scripts.base_eval brings the questions)")
    core_metric_max_per_task: int = flag(500, "items of each CORE task; -1: all")
    sample_every: int = flag(2000, "steps between samples; one more at the end; 0: only that; -1: none")

    def __post_init__(self) -> None:
        """Refuse what arithmetic alone can refuse."""
        refuse_impossible_values(self)
        model_shape(self, vocab_size=1)
        accumulation_steps(self, world_size())
        evaluation_steps(self, world_size())


def refuse_impossible_values(config: TrainConfig) -> None:
    """Raise UserError for the first flag whose value is out of its range."""
    keep_in_range(config, ("depth",), 1, 2**16)
    keep_in_range(config, ("n_embd", "n_head", "n_kv_head"), 0, 2**16)
    keep_in_range(config, ("max_seq_len", "device_batch_size"), 1, 2**20)
    keep_in_range(config, ("vocab_size",), 0, 2**20)
    keep_in_range(config, ("total_batch_size", "log_every"), 1)
    keep_in_range(config, ("shuffle_window",), 1, 2**17)  # a window is in memory, four bytes a token
    keep_in_range(config, ("seed",), 0, LARGEST_SEED)
    keep_in_range(config, ("shard",), 0, 2**20)
    keep_in_range(config, ("patience",), 1)
    keep_in_range(config, ("embedding_lr", "unembedding_lr", "matrix_lr", "weight_decay", "grad_clip"), 0)
    keep_in_range(config, ("warmup_ratio", "warmdown_ratio", "final_lr_frac"), 0, 1)
    if 0 < config.vocab_size < SMALLEST_VOCAB_SIZE:
        raise UserError(f"--vocab_size={config.vocab_size}: the smallest possible is {SMALLEST_VOCAB_SIZE}")
    if config.warmup_ratio + config.warmdown_ratio > 1:
        raise UserError(
            f"--warmup_ratio={config.warmup_ratio} and --warmdown_ratio={config.warmdown_ratio}: "
            "together they must not exceed the whole run, 1"
        )
    if config.num_iterations <= 0 and config.target_flops <= 0 and config.target_param_data_ratio <= 0:
        raise UserError(
            "this run has no end: give a positive --num_iterations, --target_flops"
            " or --target_param_data_ratio (--time_limit can only shorten a run)"
        )
    if config.resume and config.model_tag:
        raise UserError(f"--resume={config.resume} goes on in that run's folder: leave out --model_tag")
    if config.trace and config.compile == "true":
        raise UserError("--trace cannot look into compiled blocks: leave out --compile=true")
    if config.statistics and not config.trace:
        raise UserError("--statistics says more about what --trace prints: add --trace")


def nearest_divisor(number: int, wanted: int) -> int:
    """Of the numbers that divide `number`, the one nearest to `wanted`."""
    divisors = [part for part in range(1, number + 1) if number % part == 0]
    return min(divisors, key=lambda part: abs(part - wanted))


def model_shape(config: TrainConfig, vocab_size: int) -> dict[str, int]:
    """The arguments of GPTConfig. Raises UserError when width and heads do not fit each other."""
    width = config.n_embd or 64 * config.depth
    heads = config.n_head or max(1, math.ceil(width / 128))
    while not config.n_head and heads < width and (width % heads or (width // heads) % 2):
        heads += 1
    kv_heads = config.n_kv_head or heads
    if min(width, heads, kv_heads) < 1:
        raise UserError(f"--n_embd={width}, --n_head={heads}, --n_kv_head={kv_heads}: must be positive")
    if width % heads or (width // heads) % 2:
        works = f"--n_embd={width + 1}" if width % 2 else f"--n_head={nearest_divisor(width // 2, heads)}"
        raise UserError(
            f"a width of {width} does not divide into {heads} heads of even size"
            f" ({width / heads:g} each): take {works}"
        )
    if heads % kv_heads:
        raise UserError(
            f"--n_head={heads} is no multiple of --n_kv_head={kv_heads}, and groups must be equal:"
            f" take --n_kv_head={nearest_divisor(heads, kv_heads)}"
        )
    return {
        "sequence_len": config.max_seq_len,
        "vocab_size": vocab_size,
        "n_layer": config.depth,
        "n_head": heads,
        "n_kv_head": kv_heads,
        "n_embd": width,
    }


def accumulation_steps(config: TrainConfig, world: int) -> int:
    """K, forward and backward passes per optimizer step. Raises UserError if it is no whole number."""
    unit = config.device_batch_size * config.max_seq_len * world
    refuse_a_remainder("total_batch_size", config.total_batch_size, unit, config, world)
    return config.total_batch_size // unit


def evaluation_steps(config: TrainConfig, world: int) -> int:
    """Forward passes per evaluation; 0 for as many as there is text. Raises UserError likewise."""
    if config.eval_tokens == -1 or config.eval_every < 0:
        return 0
    unit = config.device_batch_size * config.max_seq_len * world
    refuse_a_remainder("eval_tokens", config.eval_tokens, unit, config, world)
    return config.eval_tokens // unit


def refuse_a_remainder(name: str, value: int, unit: int, config: Any, world: int) -> None:
    """Raise UserError, with the nearest good values, unless `value` is a positive multiple of `unit`."""
    if value > 0 and value % unit == 0:
        return
    below, above = max(0, value) // unit * unit, (max(0, value) // unit + 1) * unit
    processes = f" * {world} processes" if world > 1 else ""
    raise UserError(
        f"--{name}={value} is no multiple of --device_batch_size={config.device_batch_size}"
        f" * --max_seq_len={config.max_seq_len}{processes} = {unit}:"
        f" take {f'{below} or ' if below else ''}{above}"
    )


def world_size() -> int:
    """W, the number of processes that torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def open_tokenizer(config: TrainConfig) -> Tokenizer:
    """The tokenizer of this run, made if it is missing, as the corpus `sotu` is. PyTorch only to resume.

    Raises UserError for another corpus that is missing, with the command that prepares it.
    """
    prepare_corpus(config.data)
    if config.resume and not config.vocab_size:
        from nanochat.checkpoint_manager import find_run

        own = find_run(config.resume) / "tokenizer"
        if not own.exists():
            raise UserError(
                f"{own} is missing, and no other tokenizer fits the run's weights: copy it back, or give"
                " --vocab_size with the size of the one it was made with"
            )
        return Tokenizer.load(own)
    return prepare_tokenizer(config.data, config.vocab_size or usual_vocab_size(config.data))


def refuse_a_short_split(config: TrainConfig, tokenizer: Tokenizer) -> None:
    """Raise UserError, with values that fit, if --eval_tokens is more than there is. Imports no PyTorch."""
    if config.eval_every < 0 or config.eval_tokens == -1:
        return
    from nanochat.dataloader import tokens_up_to

    have = tokens_up_to(config.eval_tokens, config.data, "val", tokenizer)
    unit = config.device_batch_size * config.max_seq_len * world_size()
    fitting = f", or --eval_tokens={have // unit * unit}" if have >= unit else ""
    if have < config.eval_tokens:
        raise UserError(
            f"--eval_tokens={config.eval_tokens}: the validation split of {config.data} has {have:,} tokens"
            f" to predict. Take --eval_tokens=-1 (all of them){fitting}"
        )
