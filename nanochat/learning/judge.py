"""Judge the eighteen functions of a learner's file, one by one, and say which mistake each looks like."""

import ast
import contextlib
import faulthandler
import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanochat import system
from nanochat.learning.arrival import arrive, leave_the_compiler_out
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
from nanochat.learning.probes import PROBES, Near, Raised, Seen, observe
from nanochat.learning.steps import Step, step_named

__all__ = ["Judge", "Verdict", "judge", "judge_here"]

SEARCH_LIMIT = 4.0  # seconds to spend on pairs of mistakes
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
        place = f" on line {seen.line}" if seen.line else ""
        wanted = f"; {expected.type} was wanted" if isinstance(expected, Raised) else ""
        return Difference(f"with {case}, {seen.type} was raised{place}: {seen.message}{wanted}")
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
        for name in [*expected, *seen]:
            here, there = seen.get(name, "missing"), expected.get(name, "not wanted")
            if here != there:
                return Difference(f"differ: {name} is {here}, wanted: {there}")
        return None
    if isinstance(expected, bool) and isinstance(seen, bool) and expected != seen:
        return Difference(f"should be {'yes' if expected else 'no'} and is {'yes' if seen else 'no'}")
    if type(expected) is not type(seen) or expected != seen:
        shown = "a tensor" if isinstance(seen, Tensor) else seen
        return Difference(
            f"should be {'a tensor' if isinstance(expected, Tensor) else expected} and is {shown}"
        )
    return None


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
    return Difference(
        f"at index {first} should be {wanted[first].item():.6g} and is {got[first].item():.6g}; "
        f"{share:.0%} of the numbers are off, by up to {most:.3g} (accepted: {within:.2g})",
        most,
    )


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


@cache
def expected_of(book: Source, step_id: str) -> Evidence:
    """What the book's own function shows."""
    return list(observe(PROBES[step_id], load(book), book.path))


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
    with contextlib.redirect_stdout(out):
        evidence = _try(book, learner, step, ())
        difference = compare_evidence(expected, evidence, step.tolerance)
        if difference is not None and _may_be_a_question_of_names(evidence):
            friends = [name for name in step.companions if _is_usable(book, learner, name)]
            for chosen in dict.fromkeys([*((name,) for name in friends), tuple(friends)]):
                together = _try(book, learner, step, chosen) if chosen else evidence
                if compare_evidence(expected, together, step.tolerance) is None:
                    return Finding(together, None, chosen, out.getvalue())
    return Finding(evidence, difference, (), out.getvalue())


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
    return list(observe(PROBES[step.id], module, learner.path))


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
        self.rest = observe(PROBES[mistakes[0].step], load(wrong), wrong.path)

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


def name_the_mistake(book: Source, step: Step, evidence: Evidence) -> tuple[Mistake, ...]:
    """The mistake that shows the same evidence, or two mistakes made together, or none.

    Where exceptions are part of the evidence, a mistake that raises them in the same words is preferred.
    """
    known = mistakes_of(step.id)
    for candidates in (((one,) for one in known), combinations(known, 2)):
        until = time.monotonic() + SEARCH_LIMIT
        similar: tuple[Mistake, ...] = ()
        for candidate in candidates:
            if len(candidate) > 1 and time.monotonic() > until:
                break
            try:
                likeness = _likeness(book, step, evidence, remember(book, candidate))
            except (DoesNotApply, SyntaxError):
                continue
            if likeness == "same":
                return candidate
            if likeness == "similar" and not similar:
                similar = candidate
        if similar:
            return similar
    return ()


def _likeness(book: Source, step: Step, evidence: Evidence, wrong: _Remembered) -> str:
    """If a mistake shows the "same" evidence, a "similar" one (exceptions in other words) or "another"."""
    in_numbers = False
    words_agree = True
    expected = expected_of(book, step.id)
    for (case, right), (_, seen), (_, mistaken) in zip(expected, evidence, wrong, strict=True):
        if compare_case(case, mistaken, seen, step.tolerance) is not None:
            return "another"
        if compare_case(case, right, seen, step.tolerance) is None:
            continue
        if isinstance(seen, Raised) and isinstance(mistaken, Raised):
            words_agree = words_agree and seen.message == mistaken.message
        else:
            in_numbers = True
    if words_agree:
        return "same"
    return "similar" if in_numbers else "another"


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
        explanation = _explain_exception(raised, step)
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


def _explain_exception(raised: Raised, step: Step) -> str | None:
    if raised.type == "AttributeError" and raised.line is None:
        return (
            f"The book's other functions ask for this name after your {step.id}. Use it, or write the "
            f"functions that use your own name ({', '.join(step.companions) or 'none'}): then both are "
            "judged together."
        )
    owner = step.id.rpartition(".")[0]
    if raised.type == "AttributeError" and raised.message.startswith(f"'{owner}' object has no attribute"):
        return (
            "Nothing of this name is there when the book's constructor has built the object. Names of "
            "weights and tables are fixed, because checkpoints know them."
        )
    if raised.type == "RecursionError":
        return "The function calls itself without an end."
    return None


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
