"""Conversations: special tokens come from the program, answers are learned, rows do not see each other."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.common import UserError
from nanochat.conversation import (
    NOT_LEARNED,
    SHORTEST,
    Part,
    Rendered,
    Turn,
    assistant,
    fill_batches,
    render,
    render_prompt,
    row_lengths,
    system,
    user,
)
from nanochat.normans_gpt import GPT, GPTConfig
from nanochat.tokenizer import SPECIAL_TOKENS, Tokenizer

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)])
CALL = [
    user("2+3?"),
    assistant(Part("call", "2+3"), Part("output", "5"), "It is 5."),
]


def learned_text(rendered: Rendered) -> str:
    return TOKENIZER.decode(
        [token for token, learned in zip(rendered.ids, rendered.learned, strict=True) if learned]
    )


def test_a_conversation_with_a_call() -> None:
    rendered = render(CALL, TOKENIZER, 100)
    assert TOKENIZER.decode(rendered.ids) == (
        "<|bos|><|user_start|>2+3?<|user_end|><|assistant_start|><|python_start|>2+3<|python_end|>"
        "<|output_start|>5<|output_end|>It is 5.<|assistant_end|>"
    )
    assert learned_text(rendered) == "<|python_start|>2+3<|python_end|>It is 5.<|assistant_end|>"


def test_a_target_is_the_next_id_or_not_learned() -> None:
    rendered = render(CALL, TOKENIZER, 100)
    inputs, targets = rendered.shifted()
    assert len(inputs) == len(targets) == len(rendered.ids) - 1
    assert inputs == rendered.ids[:-1]
    for place, target in enumerate(targets):
        wanted = rendered.ids[place + 1] if rendered.learned[place + 1] else NOT_LEARNED
        assert target == wanted


def test_a_prompt_is_the_beginning_of_the_whole() -> None:
    prompt = render_prompt(CALL[:1], TOKENIZER, 100)
    whole = render(CALL, TOKENIZER, 100)
    assert whole.ids[: len(prompt)] == tuple(prompt)
    assert not any(whole.learned[: len(prompt)])
    assert TOKENIZER.decode(prompt).endswith("<|assistant_start|>")


def test_the_system_text_stands_before_the_first_question() -> None:
    turns = [system("Be brief."), user("Hi"), assistant("Hello")]
    text = TOKENIZER.decode(render(turns, TOKENIZER, 100).ids)
    assert text.startswith("<|bos|><|user_start|>Be brief.\n\nHi<|user_end|>")


TEXTS = (
    st.text(max_size=30)
    | st.sampled_from(SPECIAL_TOKENS)
    | st.lists(st.sampled_from(SPECIAL_TOKENS)).map("".join)
)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=4), TEXTS, st.integers(SHORTEST, 200))
def test_typed_text_is_never_a_special_token_and_something_is_learned(
    talk: list[tuple[str, str]], instructions: str, limit: int
) -> None:
    turns: list[Turn] = [system(instructions)] if instructions else []
    for question, answer in talk:
        turns += [user(question), assistant(Part("call", question), Part("output", answer), answer)]
    rendered = render(turns, TOKENIZER, limit)
    assert len(rendered.ids) == len(rendered.learned) <= limit
    assert any(rendered.learned[1:]), "a row without a target has no loss"
    assert rendered.ids[0] == TOKENIZER.bos
    names = [TOKENIZER.decode([token]) for token in rendered.ids if token >= 256]
    per_exchange = [*SPECIAL_TOKENS[1:4], *SPECIAL_TOKENS[5:9], SPECIAL_TOKENS[4]]
    assert names == (["<|bos|>", *per_exchange * len(talk)])[: len(names)]
    prompt = render_prompt([*turns, user("the last")], TOKENIZER, limit)
    assert len(prompt) <= limit
    assert prompt[-1] == TOKENIZER.special("<|assistant_start|>")


def test_the_oldest_exchanges_go_first_and_the_system_text_stays() -> None:
    turns = [system("S"), user("one"), assistant("eins"), user("two"), assistant("zwei")]
    whole = render(turns, TOKENIZER, 100)
    assert render(turns, TOKENIZER, len(whole.ids)) == whole
    cut = render(turns, TOKENIZER, len(whole.ids) - 1)
    assert TOKENIZER.decode(cut.ids) == (
        "<|bos|><|user_start|>S\n\ntwo<|user_end|><|assistant_start|>zwei<|assistant_end|>"
    )


def test_a_long_question_loses_its_beginning_and_a_long_answer_its_end() -> None:
    cut = render([user("0123456789" * 3), assistant("yes")], TOKENIZER, 20)
    assert TOKENIZER.decode(cut.ids) == (
        "<|bos|><|user_start|>890123456789<|user_end|><|assistant_start|>yes<|assistant_end|>"
    )
    cut = render([user("0123456789"), assistant("abcdefghijklmnopqrstuvwxyz")], TOKENIZER, 20)
    assert TOKENIZER.decode(cut.ids) == "<|bos|><|user_start|>56789<|user_end|><|assistant_start|>abcdefghijk"


@pytest.mark.parametrize(
    "turns",
    [
        [],
        [system("x")],
        [assistant("x")],
        [user("x"), user("y")],
        [user("x"), system("y")],
        [user("x"), assistant("y"), assistant("z")],
        [Turn("user", (Part("call", "1"),)), assistant("y")],
        [user("x")],
    ],
)
def test_turns_out_of_order_are_named(turns: list[Turn]) -> None:
    with pytest.raises(UserError, match=r"conversation|user's turn"):
        render(turns, TOKENIZER, 100)


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="not 7"):
        render(CALL, TOKENIZER, SHORTEST - 1)


def some_rows(count: int, rng: random.Random) -> list[Rendered]:
    rows = []
    for _ in range(count):
        question, answer = ("".join(rng.choices("abc", k=rng.randrange(1, 25))) for _ in range(2))
        rows.append(render([user(question), assistant(answer)], TOKENIZER, 65))
    return rows


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(64, 300), st.integers(0, 5))
def test_batches_hold_every_conversation_once_in_rows_it_fits(count: int, tokens: int, seed: int) -> None:
    rows = some_rows(count, random.Random(seed))
    batches = fill_batches(rows, tokens, 64, random.Random(seed))
    found = []
    for inputs, targets in batches:
        assert inputs.shape == targets.shape
        assert inputs.size <= tokens
        assert inputs.shape[1] in row_lengths(64)
        assert (targets >= 0).any(axis=1).all()
        for given_row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
            end = max(place for place, target in enumerate(wanted) if target >= 0) + 1
            assert set(wanted[end:]) <= {NOT_LEARNED}
            found.append((tuple(given_row[:end]), tuple(wanted[:end])))
    assert sorted(found) == sorted(row.shifted() for row in rows)


def test_few_rows_are_padded_more_than_they_have_to_be() -> None:
    rows = some_rows(400, random.Random(1))
    batches = fill_batches(rows, 1024, 64, random.Random(1))
    short = [batch for batch in batches if batch[0].shape[0] < 1024 // batch[0].shape[1]]
    assert len(short) <= 1, "only the last batch of a block has fewer rows"


def test_rows_that_fit_nowhere_are_refused() -> None:
    row = render([user("x" * 80), assistant("y")], TOKENIZER, 200)
    with pytest.raises(ValueError, match="at most 64"):
        fill_batches([row], 512, 64, random.Random(0))


@torch.no_grad()
def test_the_loss_of_a_batch_is_that_of_its_conversations_alone() -> None:
    torch.manual_seed(3)
    model = GPT(GPTConfig(64, TOKENIZER.vocab_size, n_layer=2, n_head=2, n_kv_head=2, n_embd=32))
    model.init_weights()
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=1.0 if "wte" in name else 0.3)
    rows = some_rows(7, random.Random(2))
    (batch,) = fill_batches(rows, 64 * 64, 64, random.Random(2))
    together = model(*map(torch.from_numpy, batch), loss_reduction="sum")
    alone = torch.stack(
        [model(*(torch.tensor([ids]) for ids in row.shifted()), loss_reduction="sum") for row in rows]
    )
    assert together.item() == pytest.approx(alone.sum().item(), rel=1e-5)
