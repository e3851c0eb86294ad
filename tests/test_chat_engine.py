"""What is put into rows while others write: nobody else's text changes, and everybody is told."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
import torch

from nanochat.conversation import Part, Turn, assistant, fill_batches, render, render_prompt, user
from nanochat.engine import Engine
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.sampling import sample_next
from nanochat.step import Stepper
from nanochat.tokenizer import Tokenizer
from nanochat.tool import ToolUse
from tests.test_engine import lively

pytestmark = pytest.mark.numerics

PROMPTS = [[1, 2], [3, 4, 5, 6], [7], [8, 9, 10]]


def after_some(sequence: Sequence[int]) -> list[int]:
    """Put in two or three tokens behind every token that 4 divides: rows call at different times."""
    last = sequence[-1]
    return [last // 4, 0, 60][: 2 + last % 3 // 2] if last % 4 == 0 else []


def alone(prompt: list[int], count: int, seed: int, temperature: float) -> list[int]:
    """The same with neither a batch nor a cache: one pass over the whole sequence for each token."""
    model, sequence, draws = lively(), list(prompt), random.Random(seed)
    with torch.inference_mode():
        while len(sequence) < len(prompt) + count:
            logits = model(torch.tensor([sequence]), last_only=True)[:, -1]
            sequence.append(int(sample_next(logits, [draws], temperature, None)))
            sequence += after_some(sequence)
    return sequence[len(prompt) : len(prompt) + count]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_rows_that_are_given_tokens_at_different_times_are_as_alone(temperature: float) -> None:
    engine = Engine(lively())
    together = engine.complete(PROMPTS, 24, temperature, seed=3, insert=after_some)
    assert together == [alone(prompt, 24, 3 + i, temperature) for i, prompt in enumerate(PROMPTS)]
    called = [[place for place, token in enumerate(row) if token % 4 == 0] for row in together]
    assert len({tuple(places) for places in called}) == len(PROMPTS), "they shall call at different times"


def test_every_token_put_in_is_given_out_once_and_counts() -> None:
    engine = Engine(lively())
    put_in: list[list[int]] = []

    def insert(sequence: Sequence[int]) -> list[int]:
        put_in.append(list(sequence))
        return [11, 12, 13]

    (row,) = engine.complete([[1]], 10, 0, insert=insert)
    assert len(row) == 10, "what is put in counts towards max_tokens"
    assert row[1:4] == row[5:8] == [11, 12, 13]
    assert row[9] == 11, "what exceeds the room is cut off"
    assert [sequence[1:] for sequence in put_in] == [row[:1], row[:5], row[:9]]


def test_a_stop_token_that_is_put_in_does_not_stop() -> None:
    (row,) = Engine(lively()).complete([[1]], 6, 0, stop={11}, insert=lambda _: [11])
    assert row[1::2] == [11, 11, 11]


def test_without_anything_to_put_in_nothing_changes() -> None:
    engine = Engine(lively())
    assert engine.complete(PROMPTS, 9, insert=lambda _: []) == engine.complete(PROMPTS, 9)


def conversations() -> list[list[Turn]]:
    return [
        [user("a"), assistant("Well, ", Part("call", "2*3"), Part("output", "6"), "six")],
        [user("b"), assistant(Part("call", "count l in hello"), Part("output", "2"), "two")],
        [user("c"), assistant("I call nobody.")],
    ]


def test_a_model_that_learned_calls_gets_their_results_in_a_batch() -> None:
    """Three conversations by heart: rows call at different times, and none has learned to write an output."""
    tokenizer = Tokenizer([bytes([value]) for value in range(256)])
    talks = conversations()
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, tokenizer.vocab_size, n_layer=1, n_head=1, n_kv_head=1, n_embd=48))
    model.init_weights()
    rows = [render(talk, tokenizer, 65) for talk in talks]
    (batch,) = fill_batches(rows, 4096, 64, random.Random(0))
    batches = itertools.repeat((torch.from_numpy(batch[0]), torch.from_numpy(batch[1])))
    stepper = Stepper(model, model.setup_optimizers())
    losses = [stepper.step(batches).loss for _ in range(60)]
    assert losses[-1] < 0.05
    prompts = [render_prompt(talk[:1], tokenizer, 64) for talk in talks]
    stop = {tokenizer.special("<|assistant_end|>")}
    written = Engine(model).complete(prompts, 40, 0, stop=stop, insert=ToolUse(tokenizer))
    for row, prompt, answer in zip(rows, prompts, written, strict=True):
        assert tuple(prompt + answer) == row.ids[:-1]
