"""Sums of two numbers, to be answered by a call of the tool."""

from __future__ import annotations

import random
import re

from nanochat.conversation import Part, assistant, user
from nanochat.tool import run_call
from tasks.task import Example, Task, held_back

WORDS = {"+": "plus", "-": "minus", "*": "times", "/": "divided by"}
FORMS = (
    "What is {}?",
    "How much is {}?",
    "Calculate {}.",
    "{}",
    "Compute {}.",
    "{} =",
    "What does {} make?",
    "Please work out {}.",
)


class Arithmetic(Task):
    """One operation on two whole numbers. The sum, however it is asked for, belongs to one split."""

    name = "arithmetic"

    def draw(self, rng: random.Random, split: str) -> Example:
        """A sum, its wording, the call and its result."""
        while True:
            sign = rng.choice("+-*/")
            a = rng.randrange(10 ** rng.choice((1, 2, 2, 3, 3, 4)))
            b = rng.randrange(10 ** rng.choice((1, 2, 2, 3)))
            if sign == "/":
                b = max(b, 1)
                a = a * b % 100_000 if rng.random() < 0.7 else a
            if held_back(f"{a}{sign}{b}") == (split == "val"):
                break
        spoken = rng.choice((WORDS[sign], sign))
        space = "" if spoken == sign and rng.random() < 0.3 else " "
        question = rng.choice(FORMS).format(f"{a}{space}{spoken}{space}{b}")
        call = f"{a}{sign}{b}"
        result = run_call(call)
        answer = assistant(Part("call", call), Part("output", result), f"It is {result}.")
        return Example((user(question), answer))

    def guess(self, example: Example) -> str:
        """The first number of the question: right where 0 is added, or a number divided by 1."""
        first = re.search(r"\d+", example.question)
        return f"It is {first[0]}." if first else ""
