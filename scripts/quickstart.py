"""What `make train` calls: corpus, tokenizer, training, evaluation and samples, in five minutes."""

from __future__ import annotations

import itertools
import sys
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from nanochat.common import UserError, print0, run_program
from nanochat.dataset import corpus_folder, documents, parquet_files, prepare_sotu
from nanochat.flags import flag, parse_flags
from nanochat.models import choose_gpt
from nanochat.run_log import read_metrics
from nanochat.tokenizer import Tokenizer, tokenizer_folder
from nanochat.train_config import TrainConfig
from scripts.base_train import train

if TYPE_CHECKING:
    from nanochat.training import Result

WHOLE = -1  # --eval_tokens: the whole validation text
RESERVE = 8.0  # seconds for what the loop can not foresee: the first samples, the checkpoint, the picture


@dataclass(frozen=True)
class Preset:
    """What `make train` trains on one kind of machine: everything that differs from base_train's defaults."""

    depth: int
    n_embd: int
    n_head: int
    vocab_size: int
    max_seq_len: int
    device_batch_size: int
    total_batch_size: int
    num_iterations: int  # at most; the clock may end the run before
    eval_every: int
    shuffle_window: int = 10_000
    matrix_lr: float = 0.02
    embedding_lr: float = 0.2
    unembedding_lr: float = 0.004
    warmup_ratio: float = 0.0
    warmdown_ratio: float = 0.4


CPU = Preset(
    depth=2,
    n_embd=256,
    n_head=2,
    vocab_size=8192,
    max_seq_len=256,
    device_batch_size=16,
    total_batch_size=4096,
    num_iterations=2000,
    eval_every=250,
)
CUDA = Preset(
    depth=6,
    n_embd=384,
    n_head=3,
    vocab_size=4096,
    max_seq_len=512,
    device_batch_size=64,
    total_batch_size=32768,
    num_iterations=800,
    eval_every=100,
)
CUDA_FINEWEB = Preset(
    depth=12,
    n_embd=768,
    n_head=6,
    vocab_size=32768,
    max_seq_len=1024,
    device_batch_size=32,
    total_batch_size=131072,
    num_iterations=4000,
    eval_every=250,
)


@dataclass(frozen=True)
class QuickConfig:
    """The flags of scripts.quickstart."""

    seconds: float = flag(268.0, "how long all of it may take")
    gpt: str = flag("book", "whose model: book, mine, reference, or a file")
    data: str = flag("", "corpus (without: sotu; on CUDA fineweb, if there)")
    device_type: str = flag("", "cuda, mps or cpu (without: what there is)")
    prepare_only: bool = flag(False, "prepare corpus and tokenizer, then stop")

    def __post_init__(self) -> None:
        if self.seconds < 20:
            raise UserError(f"--seconds={self.seconds:g}: below 20 there is no time to train")


def prepare_corpus(name: str) -> None:
    """Make sure the corpus is there. Only `sotu` can be made without a question; others raise UserError."""
    if name == "sotu":
        prepare_sotu()
    parquet_files(name, "train")


def prepare_tokenizer(name: str, vocab_size: int) -> Tokenizer:
    """Load the tokenizer of this corpus and size, training it first if it is not there."""
    folder = tokenizer_folder(name, vocab_size)
    if (folder / "tokenizer.json").exists():
        return Tokenizer.load(folder)
    texts = itertools.islice(documents(name, "train"), 20_000)
    Tokenizer.train(texts, vocab_size).save(folder, trained_on=name)
    return Tokenizer.load(folder)


def choose(config: QuickConfig) -> tuple[Preset, str]:
    """The preset for this machine, and the name of the corpus."""
    import torch

    kind = config.device_type or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind != "cuda":
        return CPU, config.data or "sotu"
    try:
        parquet_files("fineweb", "train")
        parquet_files("fineweb", "val")
    except UserError:
        return CUDA, config.data or "sotu"
    data = config.data or "fineweb"
    return (CUDA_FINEWEB if data == "fineweb" else CUDA), data


def training_flags(config: QuickConfig, preset: Preset, data: str, time_left: float) -> TrainConfig:
    """The configuration of scripts.base_train for this preset, this corpus and this many seconds."""
    return TrainConfig(
        **asdict(preset),
        gpt=config.gpt,
        data=data,
        device_type=config.device_type,
        time_limit=time_left,
        eval_tokens=2**19 if data == "fineweb" else WHOLE,
        core_metric_every=-1,
        sample_every=preset.num_iterations,
        save_every=preset.num_iterations,
        log_every=50,
    )


def summary(result: Result, preset: Preset, data: str, seconds: float) -> str:
    """What the run did, in numbers, and where everything is."""
    untrained = next(r["val_bpb"] for r in read_metrics(result.folder) if "val_bpb" in r)
    score = f"{result.val_bpb:.4f} bits per byte on text it never saw; untrained it had {untrained:.4f}"
    return f"""
What this did, in {seconds:.0f} seconds
  corpus       {data}, in {corpus_folder(data)}
  tokenizer    {preset.vocab_size:,} tokens, in {tokenizer_folder(data, preset.vocab_size)}
  model        {preset.depth} blocks of width {preset.n_embd}: {result.parameters:,} parameters
  training     {result.steps:,} steps, {result.tokens:,} tokens, {result.train_seconds:.0f} seconds
  validation   {score}
  everything   {result.folder}
               loss.png, samples.txt, metrics.jsonl, the weights, and a copy of the tokenizer

What to try next
  read         {result.folder / "samples.txt"}, and look at loss.png beside it
  change       a line of code in lit/30-the-forward-pass.md, then: make tangle && make train
  compare      make train once more: same corpus, same tokenizer, a new folder beside this one
  go further   python -m scripts.base_train --help, or your own text: python -m nanochat.dataset --help
"""


def main() -> None:
    """Prepare, train, say what happened."""
    began = time.perf_counter()
    config = parse_flags(QuickConfig, sys.argv[1:], "python -m scripts.quickstart", "Train a small GPT.")
    choose_gpt(config.gpt)
    preset, data = choose(config)
    prepare_corpus(data)
    tokenizer = prepare_tokenizer(data, preset.vocab_size)
    print0(f"corpus {data} and a tokenizer of {tokenizer.vocab_size:,} tokens are ready")
    if config.prepare_only:
        return
    time_left = config.seconds - RESERVE - (time.perf_counter() - began)
    result = train(training_flags(config, preset, data, time_left))
    if not result.finished:
        sys.exit(128 + result.signal)
    print0(summary(result, preset, data, time.perf_counter() - began))


if __name__ == "__main__":
    run_program(main)
