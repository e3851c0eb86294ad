"""Let a trained model continue a text: python -m scripts.sample --prompt="My fellow citizens"."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nanochat.common import UserError, pick_device, run_program
from nanochat.flags import LARGEST_SEED, LARGEST_TEMPERATURE, flag, keep_in_range, parse_flags
from nanochat.trained import load_model

if TYPE_CHECKING:
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
        keep_in_range(self, ("max_tokens", "num_samples"), 1)
        keep_in_range(self, ("top_k",), 0)
        keep_in_range(self, ("temperature",), 0, LARGEST_TEMPERATURE)
        keep_in_range(self, ("seed",), 0, LARGEST_SEED)


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
