"""What `make train` calls: corpus, tokenizer, training, evaluation and samples, in five minutes."""

from __future__ import annotations

import itertools
import math
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.base_training import train
from nanochat.common import UserError, pick_device, print0, run_program
from nanochat.dataset import corpus_folder, documents, parquet_files, prepare_corpus
from nanochat.flags import flag, parse_flags
from nanochat.models import choose_gpt
from nanochat.plans import CUDA, CUDA_FINEWEB, PLANS, SMALL, Plan, explain, measured_pace, plan_for
from nanochat.tokenizer import Tokenizer, prepare_tokenizer, tokenizer_folder
from nanochat.train_config import TrainConfig

if TYPE_CHECKING:
    from nanochat.run import Result

WHOLE = -1  # --eval_tokens: the whole validation text
SAVE_SECONDS = 60.0  # what a kill may cost
AT_THE_END = 0  # --eval_every and its like: once, after the last step
RESERVE = 8.0  # seconds for what the loop can not foresee: the first samples, the checkpoint, the picture


@dataclass(frozen=True)
class QuickConfig:
    """The flags of scripts.quickstart."""

    seconds: float = flag(280.0, "how long all of it may take")
    seed: int = flag(42, "seed of the weights and of the order of the data")
    gpt: str = flag("book", "whose model: book, mine, reference, or a file")
    data: str = flag("", "corpus (without: sotu; on CUDA fineweb, if there)")
    device_type: str = flag("", "cuda, mps or cpu (without: what there is)")
    plan: str = flag("", "which plan (without: what the first steps allow)", choices=("", *PLANS))
    prepare_only: bool = flag(False, "prepare corpus and tokenizer, then stop")

    def __post_init__(self) -> None:
        if self.seconds < 20:
            raise UserError(f"--seconds={self.seconds:g}: below 20 there is no time to train")


def choose(config: QuickConfig) -> tuple[Plan, str, float]:
    """The plan, the corpus, and the pace of the first steps (0: none taken); says which plan and why."""
    from nanochat.machine import autocast_dtype, use_own_cores
    from nanochat.workplace import prepare_memory

    device = pick_device(config.device_type)
    fineweb = device.type == "cuda" and has_fineweb()
    data = config.data or ("fineweb" if fineweb else "sotu")
    if config.plan:
        return PLANS[config.plan], data, 0.0
    if device.type == "cuda":
        return (CUDA_FINEWEB if data == "fineweb" else CUDA), data, 0.0
    prepare_memory(device)
    use_own_cores()
    pace = measured_pace(SMALL, device, autocast_dtype(device))
    print0(explain(plan_for(pace), pace))
    return plan_for(pace), data, pace


def has_fineweb() -> bool:
    """Whether both splits of the larger corpus are here."""
    try:
        parquet_files("fineweb", "train")
        parquet_files("fineweb", "val")
    except UserError:
        return False
    return True


def validation_size(tokenizer: Tokenizer, data: str) -> tuple[int, int]:
    """Tokens and bytes of the validation text that is evaluated."""
    texts = list(itertools.islice(documents(data, "val"), 1000))
    return sum(map(len, tokenizer.encode(texts))), sum(len(text.encode()) for text in texts)


def evaluation_seconds(plan: Plan, tokens: int, pace: float) -> float:
    """How long a forward pass over so many tokens takes at this pace, in FLOP/s."""
    return tokens * plan.flops_per_token() / 3 / pace if pace else 0.0


def training_flags(config: QuickConfig, plan: Plan, data: str, time_left: float) -> TrainConfig:
    """The configuration of scripts.base_train for this plan, this corpus and this many seconds."""
    return TrainConfig(
        **plan.flags(),
        gpt=config.gpt,
        data=data,
        seed=config.seed,
        device_type=config.device_type,
        time_limit=time_left,
        eval_tokens=2**19 if data == "fineweb" else WHOLE,
        eval_every=AT_THE_END,
        core_metric_every=-1,
        sample_every=AT_THE_END,
        save_every=AT_THE_END,
        save_seconds=SAVE_SECONDS,
        keep=2,
        log_every=50,
    )


def summary(result: Result, plan: Plan, data: str, seconds: float) -> str:
    """What the run did, in numbers, and where everything is."""
    tokens, size = validation_size(Tokenizer.load(tokenizer_folder(data, plan.vocab_size)), data)
    guess = tokens * math.log2(plan.vocab_size) / size  # every token is equally likely
    score = "none, because the evaluation did not work (see above)"
    if result.val_bpb is not None:
        score = f"{result.val_bpb:.4f} bits per byte on text it never saw; a guess has {guess:.4f}"
    return f"""
What this did, in {seconds:.0f} seconds
  corpus       {data}, in {corpus_folder(data)}
  tokenizer    {plan.vocab_size:,} tokens, in {tokenizer_folder(data, plan.vocab_size)}
  model        {plan.depth} blocks of width {plan.n_embd}: {result.parameters:,} parameters
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
    plan, data, pace = choose(config)
    prepare_corpus(data)
    tokenizer = prepare_tokenizer(data, plan.vocab_size)
    print0(f"corpus {data} and a tokenizer of {tokenizer.vocab_size:,} tokens are ready")
    if config.prepare_only:
        return
    tokens, _ = validation_size(tokenizer, data)
    reserve = RESERVE + evaluation_seconds(plan, tokens, pace)
    time_left = config.seconds - reserve - (time.perf_counter() - began)
    result = train(training_flags(config, plan, data, time_left))
    if result.finished:
        print0(summary(result, plan, data, time.perf_counter() - began))
    result.leave()


if __name__ == "__main__":
    run_program(main)
