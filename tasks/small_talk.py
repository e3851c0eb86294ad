"""Small talk, from the package chatterbot-corpus."""

from __future__ import annotations

import random
from collections.abc import Iterable
from importlib import resources

import yaml

from nanochat.common import UserError
from nanochat.conversation import assistant, user
from tasks.task import Example, Task, held_back

SUBJECTS = [
    "ai",
    "botprofile",
    "conversations",
    "emotion",
    "food",
    "gossip",
    "greetings",
    "health",
    "humor",
    "movies",
    "psychology",
    "science",
    "sports",
]


def exchanges_of(subjects: Iterable[str]) -> list[tuple[str, str]]:
    """All (question, answer) of these subjects that are short, in the package's order.

    Raises UserError if the package is absent or not what it was.
    """
    found = []
    try:
        folder = resources.files("chatterbot_corpus").joinpath("data", "english")
        for subject in subjects:
            lists = yaml.safe_load(folder.joinpath(f"{subject}.yml").read_text(encoding="utf-8"))
            for talk in lists["conversations"]:
                lines = [str(line) for line in talk]
                found += [(q, a) for q, a in zip(lines[::2], lines[1::2], strict=False) if len(q + a) < 160]
    except (ImportError, OSError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"the package chatterbot-corpus cannot be read ({type(error).__name__}: {error}): "
            "pip install chatterbot-corpus==1.3.3"
        ) from None
    return found


class SmallTalk(Task):
    """Replies to what people say. A question belongs to one split; validation is a choice of four replies."""

    name = "small talk"

    def __init__(self) -> None:
        self.split: dict[str, list[tuple[str, str]]] = {"train": [], "val": []}
        for question, answer in exchanges_of(SUBJECTS):
            self.split["val" if held_back(question.casefold()) else "train"].append((question, answer))

    def draw(self, rng: random.Random, split: str) -> Example:
        """An exchange; for validation with three other replies, in random order."""
        question, answer = rng.choice(self.split[split])
        turns = (user(question), assistant(answer))
        if split == "train":
            return Example(turns)
        right = {a for q, a in self.split["val"] if q.casefold() == question.casefold()}
        others = sorted({a for _, a in self.split["val"]} - right)
        choices = [answer, *rng.sample(others, 3)]
        rng.shuffle(choices)
        return Example(turns, tuple(choices))

    def guess(self, example: Example) -> str:
        """The first choice, which is any."""
        return example.choices[0]
