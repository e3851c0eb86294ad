"""A conversation as the model reads it: ids between special tokens, and which of them are learned."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from nanochat.common import UserError
from nanochat.tokenizer import Tokenizer

Ids = npt.NDArray[np.int64]
NOT_LEARNED = -1  # as a target: the loss leaves it out


@dataclass(frozen=True)
class Part:
    """A piece of a turn: text, a call of the tool, or the tool's output."""

    kind: Literal["text", "call", "output"]
    text: str


@dataclass(frozen=True)
class Turn:
    """What one speaker says before the other goes on."""

    role: Literal["system", "user", "assistant"]
    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The text of all parts that are text."""
        return "".join(part.text for part in self.parts if part.kind == "text")


Conversation = Sequence[Turn]


def system(text: str) -> Turn:
    """Instructions at the beginning of a conversation."""
    return Turn("system", (Part("text", text),))


def user(text: str) -> Turn:
    """A question, or whatever a person says."""
    return Turn("user", (Part("text", text),))


def assistant(*parts: Part | str) -> Turn:
    """An answer; a plain string is a part of text."""
    return Turn("assistant", tuple(Part("text", part) if isinstance(part, str) else part for part in parts))


def exchanges(turns: Conversation) -> list[tuple[str, tuple[Part, ...] | None]]:
    """Each question with the parts of its answer, None where the last one has no answer yet.

    The system's text is put in front of the first question. Raises UserError for turns out of order.
    """
    instructions = turns[0].text + "\n\n" if turns and turns[0].role == "system" else ""
    rest = turns[1:] if instructions else turns
    for place, turn in enumerate(rest):
        wanted = ("user", "assistant")[place % 2]
        if turn.role != wanted:
            raise UserError(
                f"turn {len(turns) - len(rest) + place + 1} of the conversation is the {turn.role}'s; "
                f"{wanted} comes here: user and assistant take turns, after one system text at most"
            )
        if turn.role == "user" and any(part.kind != "text" for part in turn.parts):
            raise UserError("a user's turn has text only; calls and outputs belong to the assistant")
    if not rest:
        raise UserError("the conversation has no question: it needs a turn of the user")
    answers = [turn.parts for turn in rest[1::2]]
    pairs = list(itertools.zip_longest([turn.text for turn in rest[::2]], answers))
    return [(instructions + pairs[0][0], pairs[0][1]), *pairs[1:]]


@dataclass(frozen=True)
class Rendered:
    """A conversation as the model reads it; both tuples have one entry for each token."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]

    def shifted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Inputs and targets, one shorter than ids: a target is the next id, or -1 if it is not learned."""
        pairs = zip(self.ids[1:], self.learned[1:], strict=True)
        return self.ids[:-1], tuple(token if learned else NOT_LEARNED for token, learned in pairs)


MARKS: dict[Literal["call", "output"], tuple[str, str]] = {
    "call": ("<|python_start|>", "<|python_end|>"),
    "output": ("<|output_start|>", "<|output_end|>"),
}


def render_question(text: str, tokenizer: Tokenizer, room: int | None = None) -> list[int]:
    """The ids of a user's turn, up to where the model answers; of the text's ids only the last `room`."""
    ids = tokenizer.encode(text)
    kept = ids if room is None else ids[max(0, len(ids) - room) :]
    ends = [tokenizer.special(name) for name in ("<|user_end|>", "<|assistant_start|>")]
    return [tokenizer.special("<|user_start|>"), *kept, *ends]


def render_answer(parts: Sequence[Part], tokenizer: Tokenizer) -> Rendered:
    """The ids of an answer, behind the token that opens it, up to and with the one that closes it."""
    ids: list[int] = []
    learned: list[bool] = []
    for part in parts:
        piece = tokenizer.encode(part.text)
        if part.kind != "text":
            opens, closes = (tokenizer.special(name) for name in MARKS[part.kind])
            piece = [opens, *piece, closes]
        ids += piece
        learned += [part.kind != "output"] * len(piece)
    return Rendered((*ids, tokenizer.special("<|assistant_end|>")), (*learned, True))


def read_answer(ids: Sequence[int], tokenizer: Tokenizer) -> tuple[Part, ...]:
    """The parts of an answer, which need not be well formed; special tokens that mark no part are dropped."""
    opens = {tokenizer.special(first): kind for kind, (first, _) in MARKS.items()}
    pieces: list[tuple[Literal["text", "call", "output"], list[int]]] = [("text", [])]
    for token in ids:
        if token < len(tokenizer.tokens):
            pieces[-1][1].append(token)
        else:
            pieces.append((opens.get(token, "text"), []))
    return tuple(Part(kind, tokenizer.decode(piece)) for kind, piece in pieces if piece)


SHORTEST = 8  # tokens: bos, three marks, a quarter of the room for the question, and one token of the answer


def render(turns: Conversation, tokenizer: Tokenizer, limit: int) -> Rendered:
    """Ids and what is learned of a conversation that ends with an answer, at most `limit` tokens.

    Too long: the oldest exchanges are left out; then the beginning of the only question, down to a quarter
    of the limit; then the end of the answer. Something is always learned. Raises UserError for turns out of
    order or without the last answer, ValueError for a limit below SHORTEST.
    """
    if exchanges(turns)[-1][1] is None:
        raise UserError("the conversation ends with a question: there is no answer to learn")
    return _fit(turns, tokenizer, limit)


def render_prompt(turns: Conversation, tokenizer: Tokenizer, limit: int) -> list[int]:
    """The ids of a conversation that ends with a question, cut likewise, up to where the model answers."""
    if exchanges(turns)[-1][1] is not None:
        raise UserError("the conversation ends with an answer: there is no question to be answered")
    return list(_fit(turns, tokenizer, limit).ids)


def _fit(turns: Conversation, tokenizer: Tokenizer, limit: int) -> Rendered:
    """What stays of a conversation within the limit."""
    if limit < SHORTEST:
        raise ValueError(f"a conversation needs room for {SHORTEST} tokens at least, not {limit}")
    while True:
        rows = _render_all(turns, tokenizer)
        if sum(len(row.ids) for row in rows) < limit or len(rows) == 1:
            break
        turns = _without_the_oldest(turns)
    first = Rendered((tokenizer.bos,), (False,))
    if len(rows) == 1 and len(rows[0].ids) >= limit:
        (question, parts) = exchanges(turns)[0]
        answer = render_answer(parts, tokenizer) if parts is not None else Rendered((), ())
        room = max(limit // 4, limit - 4 - len(answer.ids))
        asked = render_question(question, tokenizer, room)
        rows = [_joined([Rendered(tuple(asked), (False,) * len(asked)), answer])]
    whole = _joined([first, *rows])
    return Rendered(whole.ids[:limit], whole.learned[:limit])


def _render_all(turns: Conversation, tokenizer: Tokenizer) -> list[Rendered]:
    """Each exchange, rendered by itself."""
    rows = []
    for question, parts in exchanges(turns):
        asked = tuple(render_question(question, tokenizer))
        answer = render_answer(parts, tokenizer) if parts is not None else Rendered((), ())
        rows.append(_joined([Rendered(asked, (False,) * len(asked)), answer]))
    return rows


def _without_the_oldest(turns: Conversation) -> Conversation:
    """The conversation without its first question and answer; a system text stays."""
    start = 1 if turns[0].role == "system" else 0
    return [*turns[:start], *turns[start + 2 :]]


def _joined(rows: Sequence[Rendered]) -> Rendered:
    """Rendered pieces, one after the other."""
    return Rendered(
        tuple(itertools.chain.from_iterable(row.ids for row in rows)),
        tuple(itertools.chain.from_iterable(row.learned for row in rows)),
    )


LENGTHS = (32, 48, 64, 96, 128, 192)


def row_lengths(longest: int) -> list[int]:
    """The lengths that rows may have, for conversations of at most `longest` inputs."""
    return [*(length for length in LENGTHS if length < longest), longest]


def fill_batches(
    rows: Sequence[Rendered], tokens: int, longest: int, rng: random.Random
) -> list[tuple[Ids, Ids]]:
    """All conversations in batches of inputs and targets, int64 of (B, T), with B·T at most `tokens`.

    One conversation to a row, filled up at its end with targets of -1, which nothing that counts can see.
    T is one of row_lengths(longest), and longest at most `tokens`. Longer conversations raise ValueError.
    """
    if longest > tokens or any(len(row.ids) - 1 > longest for row in rows):
        raise ValueError(f"rows have at most {longest} inputs and batches {tokens} tokens; render to fit")
    batches, waiting = [], list(rows)
    lengths = row_lengths(longest)
    for length in lengths:
        fits = [row for row in waiting if len(row.ids) - 1 <= length]
        size = tokens // length
        full = len(fits) if length == lengths[-1] else len(fits) // size * size
        taken = set(map(id, fits[:full]))
        waiting = [row for row in waiting if id(row) not in taken]
        batches += [_rectangle(fits[i : min(i + size, full)], length) for i in range(0, full, size)]
    rng.shuffle(batches)
    return batches


def _rectangle(rows: Sequence[Rendered], length: int) -> tuple[Ids, Ids]:
    """Inputs and targets of these conversations, each row filled up to the length."""
    inputs = np.zeros((len(rows), length), dtype=np.int64)
    targets = np.full((len(rows), length), NOT_LEARNED, dtype=np.int64)
    for place, row in enumerate(rows):
        given, wanted = row.shifted()
        inputs[place, : len(given)] = given
        targets[place, : len(wanted)] = wanted
    return inputs, targets
