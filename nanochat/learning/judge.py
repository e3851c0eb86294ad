"""Judge the functions of a learner's file, one by one, and say which mistake each looks like."""

import ast
import contextlib
import faulthandler
import io
import itertools
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat import system
from nanochat.learning.arrival import arrive, forbid, guarded, leave_the_compiler_out
from nanochat.learning.court import Judge, Verdict, cannot_be_judged, judge
from nanochat.learning.hybrid import (
    Source,
    Unjudgeable,
    check_signature,
    describe_missing,
    graft,
    is_unwritten,
    load,
)
from nanochat.learning.mistakes import DoesNotApply, Mistake, make, mistakes_of, recognize_variant
from nanochat.learning.probes import (
    NO_GRADIENT,
    PROBES,
    RETURN_MISTAKES,
    TWICE,
    Near,
    Raised,
    Seen,
    describe,
    observe,
)
from nanochat.learning.second_probes import SECOND_PROBES
from nanochat.learning.steps import Step, step_named

__all__ = ["Judge", "Verdict", "judge", "judge_here"]

ALL_PROBES = {**PROBES, **SECOND_PROBES}
SEARCH_LIMIT = 2.5  # seconds on the processor to spend on pairs of mistakes
MEMORY_LIMIT = 8 * 2**30  # bytes a worker may fill
FILE_LIMIT = 2**28  # bytes of one file that a worker may write


@dataclass(frozen=True)
class Difference:
    """The first thing that is not as expected: a sentence, and how far off, in the unit of the thing."""

    text: str
    magnitude: float | None = None


def compare_case(case: str, expected: Seen, seen: Seen, tolerance: float) -> Difference | None:
    """What differs first between two observations of one case; None if nothing does."""
    if isinstance(seen, Raised):
        if isinstance(expected, Raised) and expected.type == seen.type:
            return None
        if seen.type == "WrongReturn":
            return Difference(f"with {case}, {seen.message}")
        place = f" on line {seen.line}" if seen.line else ""
        wanted = f"; {expected.type} was wanted" if isinstance(expected, Raised) else ""
        return Difference(f"with {case}, {seen.type} was raised{place}: {shorten(seen.message)}{wanted}")
    if isinstance(expected, Raised):
        return Difference(f"with {case}, nothing was raised; {expected.type} was wanted")
    for what, value in expected.items():
        if what not in seen:
            return Difference(f"with {case}, {what} is missing")
        difference = compare(value, seen[what], tolerance)
        if difference is not None:
            return replace(difference, text=f"with {case}, {what} {difference.text}")
    surplus = [what for what in seen if what not in expected]
    return Difference(f"with {case}, there is {surplus[0]}, which should not exist") if surplus else None


def compare(expected: Any, seen: Any, tolerance: float) -> Difference | None:
    """The same for two values; the text continues a sentence that begins with the value's name."""
    if isinstance(expected, Near) and isinstance(seen, Near):
        return _compare_numbers(expected.value, seen.value, expected.within)
    if isinstance(expected, float) and isinstance(seen, float):
        return _compare_numbers(expected, seen, tolerance * abs(expected))
    if isinstance(expected, float | Tensor) and isinstance(seen, float | Tensor):
        scale = torch.as_tensor(expected).abs().max().item() if torch.as_tensor(expected).numel() else 0.0
        return _compare_numbers(expected, seen, tolerance * max(scale, 0.1))
    if isinstance(expected, dict) and isinstance(seen, dict):
        return _compare_names(expected, seen)
    if isinstance(expected, bool) and isinstance(seen, bool) and expected != seen:
        return Difference(f"should be {'yes' if expected else 'no'} and is {'yes' if seen else 'no'}")
    if isinstance(seen, str) and seen == NO_GRADIENT and isinstance(expected, Tensor):
        return Difference("is missing: something between it and the output cuts the path")
    if isinstance(expected, Tensor | Near) or isinstance(seen, Tensor | Near):
        return Difference(f"should be {_in_words(expected)} and is {_in_words(seen)}")
    if type(expected) is not type(seen) or expected != seen:
        return Difference(f"should be {expected} and is {shorten(str(seen))}")
    return None


def _in_words(value: Any) -> str:
    return describe(value.value if isinstance(value, Near) else value)


def _compare_names(expected: dict[str, Any], seen: dict[str, Any]) -> Difference | None:
    """Two dictionaries: what is missing is named together with what may stand in its place."""
    missing = [name for name in expected if name not in seen]
    surplus = [name for name in seen if name not in expected]
    for name in missing[:1]:
        twins = [other for other in surplus if seen[other] == expected[name]]
        if len(missing) == len(surplus) and twins:
            return Difference(
                f"lack {name} ({expected[name]}), and have {twins[0]} of the same kind, which nobody asks "
                "for: is it that part under another name?"
            )
        there = f"; there are {', '.join(surplus[:6])}" if surplus else ""
        return Difference(f"lack {name}, which should be {expected[name]}{there}")
    for name in surplus[:1]:
        return Difference(f"have {name} ({seen[name]}), which nobody asks for")
    for name, value in expected.items():
        if seen[name] != value:
            return Difference(f"differ: {name} is {seen[name]}, wanted: {value}")
    return None


MOST_NUMBERS = 20
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def shorten(text: str) -> str:
    """The text up to its twentieth number: whoever meets a page of them reads none."""
    numbers = list(itertools.islice(NUMBER.finditer(text), MOST_NUMBERS + 1))
    return text if len(numbers) <= MOST_NUMBERS else text[: numbers[-1].start()] + "…"


def _compare_numbers(expected: float | Tensor, seen: float | Tensor, within: float) -> Difference | None:
    wanted, got = torch.as_tensor(expected).double(), torch.as_tensor(seen).double()
    if wanted.shape != got.shape:
        return Difference(f"should have shape {tuple(wanted.shape)} and has {tuple(got.shape)}")
    for name, is_odd in (("NaN", torch.isnan), ("infinite", torch.isinf)):
        odd, usual = is_odd(got), is_odd(wanted)
        if not torch.equal(odd, usual):
            first = _first(odd != usual)
            verb = f"is {name}" if odd[first] else f"is not {name}"
            return Difference(
                f"{verb} at index {first}; {int(odd.sum())} of {odd.numel()} numbers are {name}"
            )
    distance = torch.where(wanted == got, 0.0, (wanted - got).abs()).nan_to_num()
    wrong = distance > within
    if not wrong.any():
        return None
    if wanted.ndim == 0:
        text = f"should be {wanted.item():.6g} and is {got.item():.6g} (accepted: within {within:.2g})"
        return Difference(text, distance.item())
    first, share, most = _first(wrong), wrong.double().mean().item(), distance.max().item()
    pattern = find_pattern(wanted, got, wrong, within)
    return Difference(
        f"at index {first} should be {wanted[first].item():.6g} and is {got[first].item():.6g}; "
        f"{share:.0%} of the numbers are off, by up to {most:.3g} (accepted: {within:.2g}){pattern}",
        most,
    )


def find_pattern(wanted: Tensor, got: Tensor, wrong: Tensor, within: float) -> str:
    """What all differences have in common, if it can be said in a few words; else nothing."""
    if not wanted.isfinite().all() or not got.isfinite().all() or wanted.numel() < 2:
        return ""
    if (wanted - got).abs().max() <= 20 * within:
        return ""
    close = partial(torch.allclose, atol=5 * within, rtol=0.0)
    factor = ((wanted * got).sum() / wanted.square().sum().clamp(min=1e-30)).item()
    if got.abs().max() <= within:
        return "; all are zero"
    if abs(factor - 1) > 1e-3 and abs(factor) > 1e-3 and close(got, wanted * factor):
        return f"; all are {factor:.5g} times what was wanted"
    if close(got - wanted, (got - wanted).mean().expand_as(got)):
        return f"; all are {(got - wanted).mean().item():.5g} more than wanted"
    if close(got.flatten().sort().values, wanted.flatten().sort().values):
        return "; the same numbers stand in another order"
    for axis in range(wrong.ndim):
        hit = wrong.any(dim=tuple(d for d in range(wrong.ndim) if d != axis)) if wrong.ndim > 1 else wrong
        places = [int(i) for i in hit.nonzero().flatten()]
        if wrong.size(axis) > 2 and len(places) in (1, wrong.size(axis) - 1):
            if len(places) == 1:
                return f"; only at {places[0]} of axis {axis}"
            right = next(i for i in range(wrong.size(axis)) if i not in places)
            return f"; everywhere but at {right} of axis {axis}"
    return ""


def _first(where: Tensor) -> tuple[int, ...]:
    if where.ndim == 0:
        return ()
    return tuple(int(i) for i in where.nonzero()[0])


Evidence = list[tuple[str, Seen]]


@dataclass(frozen=True)
class Finding:
    """What running a learner's function has shown."""

    evidence: Evidence
    difference: Difference | None
    companions: tuple[str, ...] = ()
    printed: str = ""
    postponed: tuple[str, ...] = ()  # unwritten functions that, as the book has them, miss a name


@cache
def expected_of(book: Source, step_id: str) -> Evidence:
    """What the book's own function shows."""
    return list(observe(ALL_PROBES[step_id], step_id, load(book), book.path))


def compare_evidence(expected: Evidence, seen: Evidence, tolerance: float) -> Difference | None:
    """The first difference in any case."""
    for (case, wanted), (_, got) in zip(expected, seen, strict=True):
        difference = compare_case(case, wanted, got, tolerance)
        if difference is not None:
            return difference
    return None


def settle() -> None:
    """Undo what a learner's function may have changed for everybody."""
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)


def look(book: Source, learner: Source, step: Step) -> Finding:
    """Run the learner's function in the book's model. Raises Unjudgeable if there is nothing to run."""
    settle()
    expected = expected_of(book, step.id)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), guarded():
        evidence, postponed = _postpone(learner, step, expected, _try(book, learner, step, ()))
        difference = compare_evidence(expected, evidence, step.tolerance)
        if difference is not None and _may_be_a_question_of_names(evidence):
            configured = step.home == "normans_gpt" and step.id != "GPTConfig"
            names = dict.fromkeys([*step.companions, *(["GPTConfig"] if configured else [])])
            friends = [name for name in names if _is_usable(book, learner, name)]
            for chosen in dict.fromkeys([*((name,) for name in friends), tuple(friends)]):
                if not chosen:
                    continue
                together, later = _postpone(learner, step, expected, _try(book, learner, step, chosen))
                if compare_evidence(expected, together, step.tolerance) is None:
                    return Finding(together, None, chosen, out.getvalue(), later)
    return Finding(evidence, difference, (), out.getvalue(), postponed)


def _postpone(
    learner: Source, step: Step, expected: Evidence, evidence: Evidence
) -> tuple[Evidence, tuple[str, ...]]:
    """Leave out the cases in which the book's version of a function nobody has written yet misses a name.

    Which names a constructor and its callers share is the learner's choice; it is judged when both are there.
    """
    kept, askers = list(evidence), []
    for place, (case, seen) in enumerate(evidence):
        if isinstance(seen, Raised) and seen.type == "AttributeError" and seen.asker in step.companions:
            node = learner.find(seen.asker)
            if node is not None and is_unwritten(node):
                kept[place] = case, expected[place][1]
                askers.append(seen.asker)
    return kept, tuple(dict.fromkeys(askers))


def _try(book: Source, learner: Source, step: Step, companions: tuple[str, ...]) -> Evidence:
    settle()
    try:
        module = graft(book, learner, [step.id, *companions])
    except (Unjudgeable, KeyboardInterrupt):
        raise
    except BaseException as error:
        text = f"{type(error).__name__}: {error}"
        raise Unjudgeable(
            f"{learner.path}: the imports and constants that {step.id} uses do not run: {text}"
        ) from error
    return list(observe(ALL_PROBES[step.id], step.id, module, learner.path))


def _is_usable(book: Source, learner: Source, name: str) -> bool:
    node = learner.find(name)
    try:
        check_signature(learner, book, name)
    except Unjudgeable:
        return False
    return node is not None and not is_unwritten(node) and not _is_the_books(book, learner, name)


def _is_the_books(book: Source, learner: Source, name: str) -> bool:
    mine, theirs = learner.find(name), book.find(name)
    return mine is not None and theirs is not None and ast.dump(mine) == ast.dump(theirs)


def _may_be_a_question_of_names(evidence: Evidence) -> bool:
    kinds = {"AttributeError", "TypeError", "KeyError"}
    return any(isinstance(seen, Raised) and seen.type in kinds for _, seen in evidence)


class _Remembered:
    """The evidence of one wrong model, made when it is asked for and kept."""

    def __init__(self, book: Source, mistakes: tuple[Mistake, ...]) -> None:
        wrong = make(mistakes, book)
        self.made: Evidence = []
        step_id = mistakes[0].step
        self.rest = observe(ALL_PROBES[step_id], step_id, load(wrong), wrong.path)

    def __iter__(self) -> Iterator[tuple[str, Seen]]:
        index = 0
        while True:
            if index == len(self.made):
                try:
                    self.made.append(next(self.rest))
                except StopIteration:
                    return
            yield self.made[index]
            index += 1


@cache
def remember(book: Source, mistakes: tuple[Mistake, ...]) -> _Remembered:
    """The wrong model that has these mistakes, with whatever it has shown so far."""
    return _Remembered(book, mistakes)


CHANCE = "chance-left-in"
CHANGED = "what-was-given-is-changed"
CUT = "right-numbers-wrong-gradient"
ASSERTED = "refused-by-an-assert"
NAMED_BY_ITSELF = {
    **RETURN_MISTAKES,
    CHANCE: "The same input gives another output the second time: something is drawn, as by a dropout.",
    CHANGED: "What was given is changed in its place; it belongs to the caller. Make a new one.",
    CUT: "The numbers are right, the gradient is not: on the way something is detached or not recorded.",
    ASSERTED: "An assert refuses it. Python can leave asserts out, and callers expect a ValueError.",
}


def name_the_mistake(book: Source, step: Step, evidence: Evidence) -> tuple[Mistake, ...]:
    """The mistakes that show the same evidence: one, or several in different cases, or two made together."""
    name = _name_by_itself(book, step, evidence) or _name_of_refusals(book, step, evidence)
    if name:
        return (Mistake(step.id, name, NAMED_BY_ITSELF[name], ()),)
    known = mistakes_of(step.id)
    wrong = frozenset(_differing(book, step, evidence))
    for loosely in (False, True):
        chosen = _cover(book, step, evidence, wrong, loosely)
        if chosen:
            return chosen
    name = _name_by_what_is_touched(book, step, evidence)
    if name:
        return (Mistake(step.id, name, NAMED_BY_ITSELF[name], ()),)
    until = time.process_time() + SEARCH_LIMIT
    for pair in combinations(known, 2):
        if time.process_time() > until:
            break
        if pair[0].on == pair[1].on:
            seen = _explains(book, step, evidence, wrong, pair, False)
            if seen is not None and seen[0] == wrong:
                return pair
    return ()


def _cover(
    book: Source, step: Step, evidence: Evidence, wrong: frozenset[str], loosely: bool
) -> tuple[Mistake, ...]:
    """Listed mistakes that together explain every wrong case, or nothing."""
    found: list[tuple[frozenset[str], bool, Mistake]] = []
    for mistake in mistakes_of(step.id):
        seen = _explains(book, step, evidence, wrong, (mistake,), loosely)
        if seen is not None:
            found.append((*seen, mistake))
    found.sort(
        key=lambda one: (-len(one[0]), not one[1])
    )  # those that explain most, in the same words, first
    left, chosen = wrong, list[Mistake]()
    for cases, _, mistake in found:
        if cases & left and mistake.name not in {other.name for other in chosen}:
            chosen.append(mistake)
            left -= cases
    return () if left else tuple(chosen)


def _name_by_itself(book: Source, step: Step, evidence: Evidence) -> str:
    for (case, right), (_, seen) in zip(expected_of(book, step.id), evidence, strict=True):
        if compare_case(case, right, seen, step.tolerance) is None:
            continue
        if isinstance(seen, Raised):
            return seen.mistake
        return CHANCE if seen.get(TWICE) is False else ""
    return ""


def _name_of_refusals(book: Source, step: Step, evidence: Evidence) -> str:
    """Whether all that differs is that an assert refuses what a ValueError should."""
    pairs = zip(expected_of(book, step.id), evidence, strict=True)
    off = [(r, s) for (c, r), (_, s) in pairs if compare_case(c, r, s, step.tolerance) is not None]
    asserted = [
        isinstance(r, Raised) and isinstance(s, Raised) and s.type == "AssertionError" for r, s in off
    ]
    return ASSERTED if asserted and all(asserted) else ""


def _name_by_what_is_touched(book: Source, step: Step, evidence: Evidence) -> str:
    """The name of a mistake that shows in one way whatever the function computes."""
    first, names = "", set[str]()
    for (case, right), (_, seen) in zip(expected_of(book, step.id), evidence, strict=True):
        if compare_case(case, right, seen, step.tolerance) is None:
            continue
        if isinstance(seen, Raised) or isinstance(right, Raised):
            name = _name_of_exception(right, seen)
            first = first or name
            names.add(name)
            continue
        for what, value in right.items():
            if what not in seen or compare(value, seen[what], step.tolerance) is not None:
                gradient = what.startswith("the gradient by ") and step.id != "loss_and_gradients"
                names.add(CHANGED if what.endswith("unchanged") else CUT if gradient else "")
    if first == CHANGED and names <= {CUT, CHANGED}:
        return CHANGED
    return names.pop() if len(names) == 1 else ""


def _name_of_exception(right: Seen, seen: Seen) -> str:
    if not isinstance(seen, Raised):
        return ""
    return CHANGED if "is being used in an in-place operation" in seen.message else ""


def _differing(book: Source, step: Step, evidence: Evidence) -> list[str]:
    """The cases in which the learner's function does not do what the book's does."""
    pairs = zip(expected_of(book, step.id), evidence, strict=True)
    return [c for (c, right), (_, seen) in pairs if compare_case(c, right, seen, step.tolerance) is not None]


def _explains(
    book: Source,
    step: Step,
    evidence: Evidence,
    wrong: frozenset[str],
    mistakes: tuple[Mistake, ...],
    loosely: bool,
) -> tuple[frozenset[str], bool] | None:
    """The cases in which a wrong model does what the learner's function does, and whether in the same words.

    None if the wrong model is wrong anywhere in another way. loosely: all overflows are one, and where a few
    cases are refused that should not be, it does not matter in which words.
    """
    cases, in_the_same_words, in_numbers = [], True, False
    try:
        shown = iter(remember(book, mistakes))
        for (case, right), (_, seen) in zip(expected_of(book, step.id), evidence, strict=True):
            mistaken = next(shown)[1]
            if compare_case(case, right, mistaken, step.tolerance) is None:
                continue
            if case not in wrong:
                return None
            cases.append(case)
            if isinstance(right, Raised):
                continue  # all ways of not refusing are one
            if isinstance(mistaken, Raised) and isinstance(seen, Raised):
                if mistaken.type != seen.type:
                    return None
                refused = loosely and seen.type == "ValueError" and 2 * len(wrong) <= len(evidence)
                same = gist(mistaken.message) == gist(seen.message)
                in_the_same_words = in_the_same_words and (same or refused)
            elif _show_the_same(case, mistaken, seen, 5 * step.tolerance, loosely):
                in_numbers = True
            else:
                return None
    except (DoesNotApply, Unjudgeable, SyntaxError):
        return None
    if not in_the_same_words and not in_numbers:
        return None
    return frozenset(cases), in_the_same_words


def _show_the_same(case: str, mistaken: Seen, seen: Seen, tolerance: float, loosely: bool) -> bool:
    """Whether both are wrong in the same way. After an overflow it does not matter what follows from it.

    One spelling gives infinity where another gives NaN, and the gradient of either is noise.
    """
    if loosely and not isinstance(mistaken, Raised) and not isinstance(seen, Raised):
        for what, value in mistaken.items():
            other = seen.get(what)
            if _overflows(value) and _overflows(other):
                return True
            if what not in seen or compare(value, other, tolerance) is not None:
                return False
    return compare_case(case, mistaken, seen, tolerance) is None


def _overflows(value: Any) -> bool:
    return isinstance(value, float | Tensor) and not torch.as_tensor(value).isfinite().any()


def gist(message: str) -> str:
    """What an exception is about: the names in quotes (files without folders), or else its first words."""
    quoted = [name.rpartition("/")[2] for name in re.findall(r"'([^']+)'", message)]
    return " ".join(quoted) if quoted else " ".join(re.sub(r"[^A-Za-z ]+", " ", message).split()[:6])


def examine(book: Source, learner: Source, step: Step) -> Finding | Verdict:
    """Everything that runs the learner's code: a finding, or the verdict that there is none."""
    try:
        node = learner.find(step.id)
        if node is None:
            raise Unjudgeable(describe_missing(learner, step.id))
        if is_unwritten(node):
            return _todo(step, node.lineno)
        check_signature(learner, book, step.id)
        finding = look(book, learner, step)
    except Unjudgeable as reason:
        return cannot_be_judged(step, str(reason))
    unwritten = [seen for _, seen in finding.evidence if isinstance(seen, Raised) and seen.unwritten]
    return _todo(step, unwritten[0].line) if unwritten else finding


def conclude(book: Source, learner: Source, step: Step, finding: Finding) -> Verdict:
    """Turn a finding into a verdict; runs nothing of the learner's."""
    settle()
    node = learner.find(step.id)
    assert node is not None
    printed = finding.printed[:2000] or None
    if finding.difference is None:
        remark = recognize_variant(step.id, node)
        if finding.postponed:
            later = (
                f"The book's {', '.join(finding.postponed)} would not find all its names in your object; "
                "when you have written yours, both are judged together"
            )
            remark = f"{later}. {remark}" if remark else later
        if finding.companions:
            together = (
                f"Judged together with your {', '.join(finding.companions)}: they agree on names that the "
                "book does not use"
            )
            remark = f"{together}. {remark}" if remark else together
        return Verdict(
            step=step.id,
            status="passed",
            summary=f"{step.id} does what the book's does",
            next=f"`python -m scripts.learn solution {step.id}` shows how the book writes it",
            remark=remark,
            line=node.lineno,
            printed=printed,
        )
    mistakes = name_the_mistake(book, step, finding.evidence)
    raised = _first_exception(book, step, finding.evidence)
    explanation = " ".join(mistake.says for mistake in mistakes) or None
    if raised is not None and not mistakes:
        explanation = _explain_exception(learner, raised, step)
    line = raised.line if raised is not None and raised.line else node.lineno
    names = " + ".join(mistake.name for mistake in mistakes) or None
    return Verdict(
        step=step.id,
        status="error" if raised is not None and not mistakes else "failed",
        summary=f"{step.id} looks like: {names}" if names else f"{step.id} differs from the book's",
        next=f"Look at {learner.path}:{line}; `python -m scripts.learn hint {step.id}` has a hint",
        difference=finding.difference.text,
        magnitude=finding.difference.magnitude,
        mistake=names,
        explanation=explanation,
        line=line,
        printed=printed,
    )


def _first_exception(book: Source, step: Step, evidence: Evidence) -> Raised | None:
    """The first exception where none was wanted, if it comes before every other difference."""
    for (case, right), (_, seen) in zip(expected_of(book, step.id), evidence, strict=True):
        if compare_case(case, right, seen, step.tolerance) is not None:
            return seen if isinstance(seen, Raised) else None
    return None


def _explain_exception(learner: Source, raised: Raised, step: Step) -> str | None:
    owner = step.id.rpartition(".")[0]
    missing = re.match(r"'(\w+)' object has no attribute '(\w+)'", raised.message)
    if raised.type == "AttributeError" and missing and raised.line is None and missing[1] == owner:
        asker = f"{raised.asker} asks" if raised.asker else "the book's other functions ask"
        made = _attributes_set(learner, step)
        return (
            f"{asker} for self.{missing[2]}. Your {step.id} gives the object {', '.join(made) or 'nothing'}. "
            "Use the book's name, or write the functions that use your own: then both are judged together."
        )
    if raised.type == "AttributeError" and missing and missing[1] in ("GPTConfig", owner):
        kind = "configuration" if missing[1] == "GPTConfig" else "object"
        return (
            f"Nothing of this name is in the {kind} that the book builds. Your own file may add names, but "
            "those of weights and tables are fixed, because checkpoints know them."
        )
    if raised.type == "RecursionError":
        return "The function calls itself without an end."
    if "inplace operation" in raised.message or "in-place operation" in raised.message:
        return "A tensor is changed in its place (x += …) while its old values are needed. Make a new one."
    return None


def _attributes_set(learner: Source, step: Step) -> list[str]:
    """The names that a function gives to self, in its order."""
    node = learner.find(step.id)
    stored = [n for n in ast.walk(node) if isinstance(n, ast.Attribute)] if node is not None else []
    return list(
        dict.fromkeys(
            n.attr
            for n in stored
            if isinstance(n.ctx, ast.Store) and isinstance(n.value, ast.Name) and n.value.id == "self"
        )
    )


def _todo(step: Step, line: int | None) -> Verdict:
    return Verdict(
        step=step.id,
        status="todo",
        summary=f"{step.id} is not written yet",
        next=f"Read {step.chapter}, or ask `python -m scripts.learn hint {step.id}`",
        explanation=step.why,
        line=line,
    )


def judge_here(book: Source, learner: Source, step: Step) -> Verdict:
    """Judge one step in this process: no time limit, and a crash is a crash."""
    began = time.monotonic()
    found = examine(book, learner, step)
    verdict = found if isinstance(found, Verdict) else conclude(book, learner, step, found)
    return replace(verdict, seconds=round(time.monotonic() - began, 3))


def serve() -> None:
    """The worker: read one JSON request a line, answer with one JSON verdict a line."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)  # whatever else is printed must not be taken for a verdict
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)  # and input() must not eat a request
    sys.stdin = io.StringIO()
    faulthandler.enable(sys.stderr)
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches who has asked; here a function raises it
    system.limit_memory(MEMORY_LIMIT)
    system.limit_file_size(FILE_LIMIT)
    leave_the_compiler_out()
    if "--guarded" in sys.argv:
        sys.addaudithook(forbid)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        if "arriving" in request:
            arrival = arrive(Path(request["arriving"]), request["time_limit"])
            print(json.dumps(asdict(arrival)), file=answers, flush=True)
            continue
        book, learner = Source(*request["book"]), Source(*request["learner"])
        step = step_named(request["step"])
        began = time.monotonic()
        system.limit_time(request["time_limit"], sys.stderr)
        found = examine(book, learner, step)
        system.end_time_limit()
        verdict = found if isinstance(found, Verdict) else conclude(book, learner, step, found)
        verdict = replace(verdict, seconds=round(time.monotonic() - began, 3))
        print(json.dumps(verdict.to_json()), file=answers, flush=True)
