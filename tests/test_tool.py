"""The tool: it computes what Python's integers compute, refuses everything else, and never fails or hangs."""

from __future__ import annotations

import string
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.tokenizer import Tokenizer
from nanochat.tool import ERROR, LONGEST_CALL, LONGEST_RESULT, ToolUse, evaluate, run_call

TOKENIZER = Tokenizer([bytes([value]) for value in range(256)])
NUMBERS = st.integers(0, 9999).map(str) | st.decimals(0, 99, places=2, allow_nan=False).map(str)


def joined(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions one operation larger than `parts`."""
    two = st.tuples(parts, st.sampled_from("+-*/"), parts).map(" ".join)
    return two | parts.map("({})".format) | parts.map("-{}".format)


@given(st.recursive(NUMBERS, joined, max_leaves=8))
def test_the_grammar_means_what_python_means(expression: str) -> None:
    names = {"Fraction": Fraction}
    exact = "".join(f"Fraction('{piece}')" if piece[0].isdigit() else piece for piece in pieces(expression))
    try:
        expected = eval(exact, names)  # the test's own text
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            evaluate(expression)
        return
    assert evaluate(expression) == expected


def pieces(expression: str) -> list[str]:
    """The numbers and the signs of an expression."""
    found = [""]
    for char in expression:
        if char in string.digits + "." and found[-1][-1:] in string.digits + ".":
            found[-1] += char
        else:
            found.append(char)
    return [piece for piece in found if piece]


@settings(max_examples=400)
@given(st.text(max_size=150) | st.text("0123456789.+-*/() countin", max_size=120))
def test_any_text_is_answered_and_the_answer_is_short(call: str) -> None:
    answer = run_call(call)
    assert answer == ERROR or len(answer) <= LONGEST_RESULT + 6
    assert all(char in "error-.0123456789" for char in answer)


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("2+3*4", "14"),
        ("2-3-4", "-5"),
        ("8/4/2", "1"),
        ("-(2-3)", "1"),
        ("2/3", "0.6667"),
        ("-2/3", "-0.6667"),
        ("0.1+0.2", "0.3"),
        ("1/100000", "0"),
        ("-1/100000", "0"),
        ("count r in strawberry", "3"),
        ("count R in strawberry", "3"),
        ("count z in strawberry", "0"),
        ("count . in a.b.c", "2"),
    ],
)
def test_answers(call: str, answer: str) -> None:
    assert run_call(call) == answer


@pytest.mark.parametrize(
    "call",
    [
        "",
        "1+",
        "1 2",
        "(1",
        "1)",
        "1/0",
        "2**3",
        "9**9**9**9",
        "1.",
        ".5",
        "٣+1",
        "²",
        "1e9",
        "0x10",
        "abs(1)",
        "count in x",
        "count ab in x",
        "count a in",
        "count a in b c",
        "import os",
        "(" * LONGEST_CALL,
        "(" * 60 + "1" + ")" * 60,
        "9" * (LONGEST_CALL + 1),
        "9" * (LONGEST_RESULT + 1),
        "*".join(["99999"] * 10),
    ],
)
def test_what_is_not_in_the_language_is_an_error(call: str) -> None:
    assert run_call(call) == ERROR


def test_a_call_at_the_limit_is_still_read() -> None:
    assert run_call("(" * 49 + "1" + ")" * 49) == "1"
    assert run_call("-" * (LONGEST_CALL - 1) + "1") == "-1"


def ids(text: str) -> list[int]:
    """Text with special tokens in it, as ids."""
    found: list[int] = []
    while text:
        name = next((name for name in TOKENIZER.specials if text.startswith(name)), "")
        found += [TOKENIZER.special(name)] if name else TOKENIZER.encode(text[0])
        text = text[len(name) or 1 :]
    return found


@pytest.mark.parametrize(
    ("sequence", "follows"),
    [
        ("<|python_start|>1+2<|python_end|>", "<|output_start|>3<|output_end|>"),
        ("<|bos|>x<|python_start|>1+<|python_end|>", "<|output_start|>error<|output_end|>"),
        ("<|python_start|>1+2", ""),
        ("1+2<|python_end|>", ""),
        ("<|python_start|>1<|python_end|>2<|python_end|>", ""),
        ("<|python_start|>9<|python_start|>1<|python_end|>", "<|output_start|>1<|output_end|>"),
        ("<|python_start|>1<|bos|><|python_end|>", "<|output_start|>error<|output_end|>"),
        ("", ""),
    ],
)
def test_only_a_call_that_has_just_been_closed_is_answered(sequence: str, follows: str) -> None:
    assert TOKENIZER.decode(ToolUse(TOKENIZER)(ids(sequence))) == follows


def test_a_call_that_is_typed_is_text() -> None:
    typed = TOKENIZER.encode("<|python_start|>1+2<|python_end|>")
    assert ToolUse(TOKENIZER)(typed) == []
