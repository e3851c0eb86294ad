"""The tool that a model may call: a calculator and a counter of letters, with a grammar of its own."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from fractions import Fraction

from nanochat.tokenizer import Tokenizer


class _Reader:
    """Reads one expression by the grammar; each method returns the value of what it has read."""

    def __init__(self, text: str) -> None:
        self.tokens = re.findall(r"\d+(?:\.\d+)?|[^\s]", text, flags=re.ASCII)
        self.place = 0

    def next_is(self, options: str) -> str:
        """The next token if it is one of these signs, which is then read; otherwise an empty text."""
        token = self.tokens[self.place] if self.place < len(self.tokens) else ""
        if token and token in options:
            self.place += 1
            return token
        return ""

    def sum(self) -> Fraction:
        """Read products with + or - between them."""
        value = self.product()
        while sign := self.next_is("+-"):
            other = self.product()
            value = value + other if sign == "+" else value - other
        return value

    def product(self) -> Fraction:
        """Read factors with * or / between them. Raises ZeroDivisionError."""
        value = self.factor()
        while sign := self.next_is("*/"):
            other = self.factor()
            value = value * other if sign == "*" else value / other
        return value

    def factor(self) -> Fraction:
        """Read a number or a parenthesis, with any number of minus signs in front. Raises ValueError."""
        if self.next_is("-"):
            return -self.factor()
        if self.next_is("("):
            value = self.sum()
            if not self.next_is(")"):
                raise ValueError("a parenthesis is not closed")
            return value
        if self.place == len(self.tokens) or self.tokens[self.place][0] not in string.digits:
            raise ValueError("a number is missing")
        self.place += 1
        return Fraction(self.tokens[self.place - 1])


def evaluate(expression: str) -> Fraction:
    """The value of an expression of numbers, + - * / and parentheses.

    Raises ValueError for anything else, ZeroDivisionError for a division by 0.
    """
    reader = _Reader(expression)
    value = reader.sum()
    if reader.place < len(reader.tokens):
        raise ValueError(f"{reader.tokens[reader.place]!r} is not expected here")
    return value


LONGEST_CALL = 100  # characters; bounds the time and the depth of everything below
LONGEST_RESULT = 20  # digits in front of the point
DECIMALS = 4
ERROR = "error"
COUNT = re.compile(r"count (\S) in (\S+)")


def run_call(call: str) -> str:
    """What the tool answers to a call: a number, or ERROR for whatever it cannot do. Raises nothing."""
    if len(call) > LONGEST_CALL:
        return ERROR
    if counted := COUNT.fullmatch(call.strip()):
        letter, word = counted.groups()
        return str(word.casefold().count(letter.casefold()))
    try:
        return written(evaluate(call))
    except (ValueError, ZeroDivisionError):
        return ERROR


def written(value: Fraction) -> str:
    """A number as the tool writes it, rounded to DECIMALS. Raises ValueError if it is too long."""
    steps = round(value * 10**DECIMALS)
    whole, part = divmod(abs(steps), 10**DECIMALS)
    if len(str(whole)) > LONGEST_RESULT:
        raise ValueError("the result is too long")
    decimals = f".{part:0{DECIMALS}d}".rstrip("0").rstrip(".")
    return f"{'-' if steps < 0 else ''}{whole}{decimals}"


class ToolUse:
    """What follows a token without being chosen: behind the end of a call, the tool's output."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        names = ("<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>")
        self.call, self.call_end, self.output, self.output_end = map(tokenizer.special, names)

    def __call__(self, sequence: Sequence[int]) -> list[int]:
        """The tokens to put in behind this sequence; none unless it ends with a call."""
        if not sequence or sequence[-1] != self.call_end:
            return []
        start = len(sequence) - 1
        while start > 0 and sequence[start - 1] not in (self.call, self.call_end):
            start -= 1
        if start == 0 or sequence[start - 1] != self.call:
            return []
        result = run_call(self.tokenizer.decode(sequence[start:-1]))
        return [self.output, *self.tokenizer.encode(result), self.output_end]
