"""Conversations as a source for a training run, and the two stages that read them."""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from nanochat.common import UserError
from nanochat.conversation import Conversation, Ids, Rendered, fill_batches, render
from nanochat.dataloader import TokenLoader
from nanochat.step import Batch
from nanochat.tokenizer import Tokenizer
from nanochat.train_config import TrainConfig
from nanochat.workplace import Batches, Corpus, Workplace
from tasks import Mixture, usual_mixture

RenderRow = Callable[[Conversation], Rendered]


class TalkBatches:
    """Batches of conversations without end, drawn from a mixture block by block."""

    def __init__(
        self, mixture: Mixture, render_row: RenderRow, config: TrainConfig, place: Workplace
    ) -> None:
        self.mixture, self.render_row, self.config, self.place = mixture, render_row, config, place
        self.number, self.taken = 0, 0
        self.batches: list[tuple[Ids, Ids]] = []

    def resume(self, state: dict[str, Any]) -> TalkBatches:
        """Go to a position. Raises UserError if it is of another stream."""
        if state["seed"] != self.config.seed:
            raise UserError(
                f"cannot resume reading: the seed was {state['seed']} and is now {self.config.seed}"
            )
        self.number, self.taken = state["block"], state["taken"]
        if self.taken:
            self.batches = self.block(self.number)
        return self

    def block(self, number: int) -> list[tuple[Ids, Ids]]:
        """This rank's batches of a block."""
        rng = random.Random(f"{self.config.seed} {number}")
        rows = [self.render_row(self.mixture.conversation(rng)) for _ in range(BLOCK)]
        longest = self.config.max_seq_len
        batches = fill_batches(rows, self.config.device_batch_size * longest, longest, rng)
        world = self.place.ranks.world_size
        return batches[self.place.ranks.rank : len(batches) // world * world : world]

    def __iter__(self) -> TalkBatches:
        """The stream itself: a second loop goes on where the first one stopped."""
        return self

    def __next__(self) -> Batch:
        """Inputs and targets, (B, T) int64 on the device, T not always the same; a target of -1 is none."""
        if self.taken == len(self.batches):
            self.number += 1 if self.batches else 0
            self.batches, self.taken = self.block(self.number), 0
        inputs, targets = self.batches[self.taken]
        self.taken += 1
        device = self.place.device
        return torch.from_numpy(inputs).to(device), torch.from_numpy(targets).to(device)

    def state_dict(self) -> dict[str, Any]:
        """The position behind the batches handed out, the same on every rank."""
        return {"seed": self.config.seed, "block": self.number, "taken": self.taken}

    def close(self) -> None:
        """Nothing is held."""


class Alternating:
    """Two streams as one: every `every`-th batch is of the second."""

    def __init__(self, first: TalkBatches, second: TokenLoader, every: int, taken: int = 0) -> None:
        self.first, self.second, self.every, self.taken = first, second, every, taken

    def __iter__(self) -> Alternating:
        """The stream itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch of the one whose turn it is."""
        self.taken += 1
        return next(self.second) if self.taken % self.every == 0 else next(self.first)

    def state_dict(self) -> dict[str, Any]:
        """Both positions."""
        return {"taken": self.taken, "talks": self.first.state_dict(), "text": self.second.state_dict()}

    def close(self) -> None:
        """Give up both."""
        self.first.close()
        self.second.close()


@dataclass(frozen=True)
class Stage:
    """What tells mid-training and fine-tuning apart."""

    name: str
    program: str
    everything: bool  # whether questions and outputs are learned too
    text_every: int  # one in so many batches is text of the corpus; 0: none


MID = Stage("mid", "scripts.mid_train", everything=True, text_every=4)
CHAT = Stage("chat", "scripts.chat_sft", everything=False, text_every=0)
BLOCK = 2048  # conversations
VALIDATION = 512  # conversations


class Talks:
    """A source of conversations, for a run that began with the weights of the run `origin`."""

    def __init__(
        self, config: TrainConfig, tokenizer: Tokenizer, place: Workplace, *, stage: Stage, origin: str
    ) -> None:
        self.config, self.tokenizer, self.place, self.stage = config, tokenizer, place, stage
        self.program = stage.program
        self.tag = f"{re.sub(r'-(mid|chat)(-[0-9]+)?$', '', origin)}-{stage.name}"
        self.mixture = usual_mixture(tokenizer, config.data)

    def row(self, turns: Conversation) -> Rendered:
        """A conversation, rendered for this stage."""
        rendered = render(turns, self.tokenizer, self.config.max_seq_len + 1)
        return replace(rendered, learned=(True,) * len(rendered.ids)) if self.stage.everything else rendered

    def train(self, state: dict[str, Any] | None) -> Batches:
        """Batches without end, from the beginning or from a saved position."""
        talks = TalkBatches(self.mixture, self.row, self.config, self.place)
        if not self.stage.text_every:
            return talks.resume(state) if state else talks
        text = Corpus(self.config, self.tokenizer, self.place).train(state["text"] if state else None)
        if state:
            talks.resume(state["talks"])
        return Alternating(talks, text, self.stage.text_every, state["taken"] if state else 0)

    def validation(self) -> tuple[Batches, int]:
        """Validation conversations: this rank's part, once."""
        rng, ranks = random.Random("validation"), self.place.ranks
        rows = [
            render(self.mixture.conversation(rng, "val"), self.tokenizer, self.config.max_seq_len + 1)
            for _ in range(VALIDATION)
        ]
        longest = self.config.max_seq_len
        batches = fill_batches(rows, self.config.device_batch_size * longest, longest, rng)
        device = self.place.device
        own = [tuple(torch.from_numpy(ids).to(device) for ids in pair) for pair in batches]
        return Once(own[ranks.rank :: ranks.world_size]), 0

    def fingerprint(self) -> str:
        """That of the first block's conversations, and of the stage."""
        rng = random.Random(f"{self.config.seed} 0")
        digest = hashlib.sha256(repr(self.stage).encode())
        for _ in range(BLOCK):
            digest.update(repr(self.row(self.mixture.conversation(rng))).encode())
        return digest.hexdigest()


class Once:
    """A list of batches as a stream that ends."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Batch]:
        """All of them."""
        return iter(self.batches)

    def state_dict(self) -> dict[str, Any]:
        """It is not resumed."""
        return {}

    def close(self) -> None:
        """Nothing is held."""
