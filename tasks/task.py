"""What a task is: examples, a rendering, a judge and a baseline; and mixtures of tasks."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from nanochat.conversation import Turn


@dataclass(frozen=True)
class Example:
    """A conversation that ends with the right answer. With choices, the answer is to be chosen among them."""

    turns: tuple[Turn, ...]
    choices: tuple[str, ...] = ()

    @property
    def question(self) -> str:
        """The text of the last question."""
        return self.turns[-2].text

    @property
    def answer(self) -> str:
        """The text of the right answer, without the calls in it."""
        return self.turns[-1].text


class Task(ABC):
    """Something that a model can be asked. Splits are "train" and "val"; no question is in both."""

    name: str

    @abstractmethod
    def draw(self, rng: random.Random, split: str) -> Example:
        """One example of the split, at random."""

    @abstractmethod
    def guess(self, example: Example) -> str:
        """The answer of the baseline, which does not know the right one."""

    def judge(self, example: Example, answer: str) -> bool:
        """Whether an answer is right: by default, if it is the example's word for word."""
        return answer.strip() == example.answer

    def validation(self, count: int, seed: int = 0) -> list[Example]:
        """The same examples at each call, at most `count`, no question twice."""
        rng = random.Random(f"{self.name} {seed}")
        found: dict[str, Example] = {}
        for _ in range(20 * count):
            example = self.draw(rng, "val")
            found.setdefault(example.question, example)
            if len(found) == count:
                break
        return list(found.values())


def held_back(key: str, every: int = 10) -> bool:
    """Whether what this key names is for validation: one in `every`, always the same ones."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) % every == 0


@dataclass(frozen=True)
class Mixture:
    """Conversations of one to three exchanges, each drawn from a task by weight."""

    tasks: Sequence[Task]
    weights: Sequence[float]

    def conversation(self, rng: random.Random, split: str = "train") -> list[Turn]:
        """One conversation."""
        drawn = rng.choices(self.tasks, self.weights, k=rng.choice((1, 2, 3)))
        return [turn for task in drawn for turn in task.draw(rng, split).turns]
