"""Wrong models by name, each made from the book's by an edit, and right ones written in another way.

The entries are in lit/mistakes/, one TOML file a step.
"""

import ast
import textwrap
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nanochat.learning.hybrid import Function, Source
from nanochat.learning.steps import ALL_STEPS

FOLDER = Path(__file__).resolve().parents[2] / "lit" / "mistakes"


@dataclass(frozen=True)
class Mistake:
    """A wrong version of one function. `edits` turn a right one into it, each found exactly once.

    Two entries with one step and one name are two ways in which the same misunderstanding can show.
    """

    step: str
    name: str
    says: str  # what goes wrong, and where to think again; never the code that is right
    edits: tuple[tuple[str, str], ...]
    on: str = ""  # the name of the right function that is edited; empty for the book's


class DoesNotApply(Exception):
    """The right function does not contain what an edit wants to replace."""


@cache
def mistakes_of(step_id: str) -> tuple[Mistake, ...]:
    """The known mistakes of one step, in the order of its file."""
    says: dict[str, str] = {}
    found = []
    for entry in _read(step_id)["mistake"]:
        name = entry["name"]
        says[name] = entry.get("says") or says[name]
        edits = tuple((old, new) for old, new in entry["edits"])
        found.append(Mistake(step_id, name, says[name], edits, entry.get("on", "")))
    return tuple(found)


def right_ways(step_id: str) -> dict[str, str]:
    """Other right functions of one step, by name."""
    ways: dict[str, str] = _read(step_id).get("right", {})
    return ways


@cache
def _read(step_id: str) -> dict[str, Any]:
    return tomllib.loads((FOLDER / f"{step_id}.toml").read_text(encoding="utf-8"))


def make(mistakes: Sequence[Mistake], book: Source) -> Source:
    """The book with these mistakes of one step. Raises DoesNotApply unless each edit fits exactly once."""
    step_id, on = mistakes[0].step, mistakes[0].on
    try:
        first, last = book.segment(step_id)
    except KeyError:
        raise DoesNotApply(f"the book has no {step_id}") from None
    lines = book.text.split("\n")
    before = "\n".join(lines[first - 1 : last])
    text = right_ways(step_id)[on].strip("\n") if on else textwrap.dedent(before)
    indent = before[: len(before) - len(before.lstrip())]
    for mistake in mistakes:
        if mistake.on != on:
            raise DoesNotApply(f"{mistake.name} is an edit of another function than {mistakes[0].name}")
        for old, new in mistake.edits:
            if text.count(old) != 1:
                raise DoesNotApply(f"{mistake.name}: {old!r} occurs {text.count(old)} times in {step_id}")
            text = text.replace(old, new)
    lines[first - 1 : last] = textwrap.indent(text, indent).split("\n")
    return Source(f"<{step_id} with {', '.join(m.name for m in mistakes)}>", "\n".join(lines))


def tables(files: dict[str, Any]) -> str:
    """The names of all mistakes as a table. files: what each file of FOLDER holds, by its step's name."""
    lines, total = ["| step | names | |", "|---|---:|---|"], 0
    for step in ALL_STEPS:
        names = dict.fromkeys(entry["name"] for entry in files[step.id]["mistake"])
        lines.append(f"| `{step.id}` | {len(names)} | {', '.join(names)} |")
        total += len(names)
    return "\n".join([*lines, f"| all | {total} | |"])


@dataclass(frozen=True)
class Variant:
    """Another right way to write a step. `fits` sees a function's names in order of evaluation."""

    step: str
    name: str
    remark: str
    fits: Callable[[list[str]], bool]


VARIANTS = (
    Variant(
        "norm",
        "norm-by-hand",
        "Written out by hand it is the same division by the root mean square; F.rms_norm does it in one "
        "kernel.",
        lambda words: "rms_norm" not in words and "RMSNorm" not in words,
    ),
    Variant(
        "apply_rotary_emb",
        "complex-numbers",
        "A pair is a complex number and a turn is a product with one of length 1: the same four products.",
        lambda words: bool({"complex", "view_as_complex", "polar"} & set(words)),
    ),
    Variant(
        "apply_rotary_emb",
        "rotate-half",
        "x·cos plus an exchanged, sign-changed copy of x times sin is the same sum, in whole heads at a "
        "time.",
        lambda words: "roll" in words or words.count("cat") > 1,
    ),
    Variant(
        "CausalSelfAttention.forward",
        "norm-before-rotation",
        "A rotation keeps lengths, so norm before it and norm after it are the same up to rounding.",
        lambda words: _comes_before("norm", "apply_rotary_emb", words),
    ),
    Variant(
        "CausalSelfAttention.forward",
        "attention-by-softmax",
        "Softmax of scaled, masked scores is what the fused attention computes; written out, it holds all "
        "T x T scores in memory.",
        lambda words: "softmax" in words and "scaled_dot_product_attention" not in words,
    ),
    Variant(
        "CausalSelfAttention.forward",
        "key-heads-repeated",
        "Repeating each key head for its group is the same as sharing it; it copies what enable_gqa only "
        "reads.",
        lambda words: "repeat_interleave" in words,
    ),
    Variant(
        "MLP.forward",
        "square-by-hand",
        "A product with itself or a power of two is a square.",
        lambda words: "square" not in words,
    ),
    Variant(
        "GPT.forward",
        "loss-on-all-logits",
        "Cross-entropy on all logits is the same number; in chunks it needs an eighth of the memory or less.",
        lambda words: "cross_entropy" in words,
    ),
    Variant(
        "GPT._precompute_rotary_embeddings",
        "another-outer-product",
        "Broadcasting, einsum and outer give the same table of angles.",
        lambda words: "outer" not in words,
    ),
    Variant(
        "GPT._init_weights",
        "noise-by-hand",
        "Other random numbers with the same centre, spread and tails are as good: no single draw is right.",
        lambda words: "init" not in words,
    ),
    Variant(
        "GPT.init_weights",
        "walk-by-hand",
        "Walking over modules() visits what apply visits, in another order: other numbers, same "
        "distribution.",
        lambda words: "apply" not in words,
    ),
    Variant(
        "GPT.get_device",
        "another-weight-asked",
        "All weights of a model live together, so any of them can be asked.",
        lambda words: "wte" not in words,
    ),
    Variant(
        "GPT.estimate_flops",
        "counted-from-the-configuration",
        "The configuration fixes every shape, so counting by formula and counting weights agree.",
        lambda words: "parameters" not in words,
    ),
    Variant(
        "GPT.generate",
        "sampler-by-hand",
        "Another way to draw from the same distribution gives other tokens, as likely.",
        lambda words: "sample_next" not in words,
    ),
    Variant(
        "GPT.generate",
        "gradients-recorded",
        "The tokens are the same; without inference_mode or no_grad, PyTorch keeps notes for a backward "
        "pass.",
        lambda words: not {"inference_mode", "no_grad"} & set(words),
    ),
)


def recognize_variant(step_id: str, node: Function) -> str | None:
    """What to say about a right function that is written in another way than the book's, if anything."""
    words = list(_words(node))
    remarks = [v.remark for v in VARIANTS if v.step == step_id and v.fits(words)]
    return " ".join(remarks) or None


def _words(node: ast.AST) -> list[str]:
    """Names in the order of evaluation: a call's arguments come before its function."""
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Call):
        children = [*node.args, *node.keywords, node.func]
    words = [word for child in children for word in _words(child)]
    if isinstance(node, ast.Name):
        words.append(node.id)
    elif isinstance(node, ast.Attribute):
        words.append(node.attr)
    return words


def _comes_before(first: str, second: str, words: list[str]) -> bool:
    return first in words and second in words and words.index(first) < words.index(second)
