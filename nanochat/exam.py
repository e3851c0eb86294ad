"""Asks a model the questions of tasks, and says how many of its answers are right, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nanochat.conversation import (
    SHORTEST,
    Conversation,
    Turn,
    assistant,
    read_answer,
    render,
    render_prompt,
)
from nanochat.engine import Engine
from nanochat.normans_gpt import GPT
from nanochat.tokenizer import Tokenizer
from nanochat.tool import ToolUse
from tasks import WEIGHTS, Example, Task

AT_ONCE = 64  # questions in a batch
LONGEST_ANSWER = 80  # tokens


def answers(model: GPT, tokenizer: Tokenizer, questions: Sequence[Conversation]) -> list[str]:
    """The text of the model's greedy answer to each conversation that ends with a question."""
    limit = model.config.sequence_len
    stop = {tokenizer.special("<|assistant_end|>"), tokenizer.bos}
    said = []
    for start in range(0, len(questions), AT_ONCE):
        batch = questions[start : start + AT_ONCE]
        prompts = [render_prompt(turns, tokenizer, max(limit - LONGEST_ANSWER, SHORTEST)) for turns in batch]
        rows = Engine(model).complete(
            prompts, LONGEST_ANSWER, temperature=0, stop=stop, insert=ToolUse(tokenizer)
        )
        said += [Turn("assistant", read_answer(row, tokenizer)).text for row in rows]
    return said


@torch.inference_mode()
def choose(model: GPT, tokenizer: Tokenizer, example: Example) -> str:
    """The choice of an example that the model holds to be likeliest, byte for byte."""
    costs = []
    for choice in example.choices:
        row = render([*example.turns[:-1], assistant(choice)], tokenizer, model.config.sequence_len + 1)
        inputs, targets = (torch.tensor([ids], device=model.get_device()) for ids in row.shifted())
        nats = model(inputs, targets, loss_reduction="sum").item()
        costs.append(nats / max(1, len(choice.encode())))
    return example.choices[costs.index(min(costs))]


Z = 1.96  # standard deviations: 95 % of a normal distribution


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval for a share; (0, 1) if nothing was asked.

    Source: Wilson, Journal of the American Statistical Association 22 (1927).
    """
    if not asked:
        return 0.0, 1.0
    share = right / asked
    middle = share + Z**2 / (2 * asked)
    reach = Z * math.sqrt(share * (1 - share) / asked + Z**2 / (4 * asked**2))
    scale = 1 + Z**2 / asked
    return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)


@dataclass(frozen=True)
class Mark:
    """How a task went."""

    task: str
    asked: int
    right: int
    baseline: float  # how many the task's baseline has right; of choices, as many as chance has
    failures: tuple[tuple[str, str, str], ...]  # question, right answer, what the model said

    @property
    def share(self) -> float:
        """The share of right answers."""
        return self.right / self.asked

    @property
    def above_baseline(self) -> float:
        """0 where the baseline is, 1 for everything right."""
        floor = self.baseline / self.asked
        return (self.share - floor) / (1 - floor) if floor < 1 else 0.0


def examine(model: GPT, tokenizer: Tokenizer, task: Task, count: int) -> Mark:
    """Ask at most `count` validation questions of a task, and judge the answers."""
    examples = task.validation(count)
    if examples[0].choices:
        said = [choose(model, tokenizer, example) for example in examples]
    else:
        said = answers(model, tokenizer, [example.turns[:-1] for example in examples])
    right = [task.judge(example, answer) for example, answer in zip(examples, said, strict=True)]
    failures = tuple(
        (example.question, example.answer, answer)
        for example, answer, good in zip(examples, said, right, strict=True)
        if not good
    )
    baseline = sum(by_chance(task, example) for example in examples)
    return Mark(task.name, len(examples), sum(right), baseline, failures)


def by_chance(task: Task, example: Example) -> float:
    """1 if the baseline is right, 0 if not; where it takes any choice, the chance that it is."""
    if example.choices:
        return 1 / len(example.choices)
    return float(task.judge(example, task.guess(example)))


SCORE = "talk score (six tasks)"


def talk_score(marks: Sequence[Mark]) -> float | None:
    """The mean of what the tasks are above their baselines; None unless all six are there."""
    if {mark.task for mark in marks} != set(WEIGHTS):
        return None
    return sum(mark.above_baseline for mark in marks) / len(marks)


def table(marks: Sequence[Mark]) -> list[str]:
    """The marks as a Markdown table, and the score."""
    lines = ["| task | right | 95 % interval | baseline | questions |", "|---|---|---|---|---|"]
    for mark in marks:
        low, high = interval(mark.right, mark.asked)
        lines.append(
            f"| {mark.task} | {mark.share:.1%} | {low:.1%} to {high:.1%} |"
            f" {mark.baseline / mark.asked:.1%} | {mark.asked} |"
        )
    score = talk_score(marks)
    return lines if score is None else [*lines, "", f"{SCORE}: {score:.3f}"]
