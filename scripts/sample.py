"""Let a trained model continue a text: python -m scripts.sample --prompt="My fellow citizens"."""

from __future__ import annotations

import codecs
import math
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.common import UserError, pick_device, run_program
from nanochat.flags import flag, parse_flags

if TYPE_CHECKING:
    import torch

    from nanochat.checkpoint_manager import Checkpoint
    from nanochat.normans_gpt import GPT
    from nanochat.tokenizer import Tokenizer

WEIGHTS = ("", "float32", "bfloat16", "int8")


@dataclass(frozen=True)
class SampleConfig:
    """The flags of scripts.sample."""

    run: str = flag("latest", "the run's tag, such as d4")
    gpt: str = flag("", "whose model computes (without: the one that trained)")
    prompt: str = flag("", "text to continue (without: begin a document)")
    max_tokens: int = flag(256, "tokens to add at most")
    temperature: float = flag(0.8, "0 takes the likeliest token, 1 samples as is")
    top_k: int = flag(50, "sample among the k likeliest; 0: among all")
    num_samples: int = flag(1, "how many continuations")
    seed: int = flag(42, "sample i uses seed + i")
    device_type: str = flag("", "cuda, mps or cpu (without: the first there is)")
    weights: str = flag("", "format of the matrices (without: as they are)", choices=WEIGHTS)
    compile: bool = flag(False, "compile each step first: pays after ten thousand tokens")

    def __post_init__(self) -> None:
        for name, least in (("max_tokens", 1), ("num_samples", 1), ("top_k", 0), ("temperature", 0)):
            value = getattr(self, name)
            if not least <= value < math.inf:
                raise UserError(f"--{name}={value}: must be at least {least}")


def load_trained(tag: str, device: torch.device, gpt: str = "") -> tuple[GPT, Tokenizer, Checkpoint]:
    """The newest good checkpoint of a run, in the model it was trained with or another, and its tokenizer.

    Raises UserError if they are not there or do not belong together.
    """
    import torch

    from nanochat.checkpoint_manager import find_run, load_checkpoint
    from nanochat.models import load_gpt
    from nanochat.tokenizer import Tokenizer

    folder = find_run(tag)
    checkpoint = load_checkpoint(folder, weights_only=True)
    tokenizer = Tokenizer.load(folder / "tokenizer")
    if tokenizer.fingerprint() != checkpoint.meta["tokenizer"]:
        raise UserError(f"{folder / 'tokenizer'} is not the one this model was trained with; restore it")
    shape = checkpoint.meta["model"]
    if tokenizer.vocab_size != shape["vocab_size"]:
        raise UserError(
            f"the tokenizer in {folder} has {tokenizer.vocab_size:,} tokens, the model "
            f"{shape['vocab_size']:,}: they do not belong together"
        )
    name = gpt or checkpoint.meta.get("gpt", {"name": "book"})["name"]
    chosen = load_gpt(name)
    with torch.device("meta"):
        model: GPT = chosen.GPT(chosen.GPTConfig(**shape))
    model.to_empty(device=device)
    model.init_weights()  # for the rotary tables, which no checkpoint holds
    try:
        model.load_state_dict(checkpoint.model)
    except RuntimeError as error:  # names or shapes of tensors that differ, one a line
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the checkpoint in {folder} is of another architecture than --gpt={name} ({reason} …): choose "
            "the model that it was trained with"
        ) from error
    model = model.to(torch.bfloat16 if device.type == "cuda" else torch.float32)
    return model, tokenizer, checkpoint


def load_model(tag: str, device: torch.device, gpt: str = "") -> tuple[GPT, Tokenizer]:
    """The same without the checkpoint."""
    return load_trained(tag, device, gpt)[:2]


def print_texts(beginnings: Sequence[str], steps: Iterable[list[int | None]], tokenizer: Tokenizer) -> None:
    """Write each text followed by its tokens: the first as they come, the next when the one before has ended.

    A character whose bytes are spread over several tokens is written when its last byte is there.
    """
    decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in beginnings]
    unwritten = list(beginnings)
    ended = [False] * len(beginnings)
    current = 0

    def end(i: int) -> None:
        if not ended[i]:
            ended[i] = True
            unwritten[i] += decoders[i].decode(b"", final=True) + "\n"

    def write() -> None:
        nonlocal current
        while True:
            sys.stdout.write(unwritten[current])
            unwritten[current] = ""
            if not ended[current] or current + 1 == len(unwritten):
                break
            current += 1
        sys.stdout.flush()

    write()
    for tokens in steps:
        for i, token in enumerate(tokens):
            if token is None:
                end(i)
            else:
                unwritten[i] += decoders[i].decode(tokenizer.decode_bytes([token]))
        write()
    for i in range(len(beginnings)):
        end(i)
    write()


def main() -> None:
    """Load the run the flags name and print what it writes."""
    config = parse_flags(SampleConfig, sys.argv[1:], "python -m scripts.sample", "Let a model write.")
    device = pick_device(config.device_type)
    model, tokenizer = load_model(config.run, device, config.gpt)
    from nanochat.decoding import for_decoding
    from nanochat.engine import Engine

    count = config.num_samples
    titles = [f"--- sample {i + 1} of {count}\n" if count > 1 else "" for i in range(count)]
    prompts = [tokenizer.encode(config.prompt, prepend=tokenizer.bos)] * count
    top_k = config.top_k or None
    try:
        steps = Engine(for_decoding(model, config.weights), config.compile).generate(
            prompts, config.max_tokens, config.temperature, top_k, config.seed, stop={tokenizer.bos}
        )
    except ValueError as error:  # too long for the model
        raise UserError(str(error)) from None
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show é shows ?
    try:
        print_texts([title + config.prompt for title in titles], steps, tokenizer)
    except BrokenPipeError:  # the reader has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    run_program(main)
