"""From records to verdicts: every declared comparison tested, all of them corrected together."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from nanochat.evidence.declared import BPB, Comparison, Declaration, Experiment
from nanochat.evidence.inference import (
    Estimate,
    Floats,
    estimate,
    exponent,
    holm,
    p_difference,
    p_equivalence,
    verdict,
)
from nanochat.records import FORMAT

Records = dict[str, dict[str, Any] | None]  # an experiment's name, and its record if it has been run
NEVER = 99.0  # stands for the loss of a run that diverged, where the lowest of several is sought


def conclude(declaration: Declaration, records: Records) -> dict[str, Any]:
    """What all records of one device say: a row for each question, with its comparisons.

    Comparisons without a record, or with one of another declaration, count with p = 1.
    """
    rules, lines = declaration.protocol, []
    for one in declaration.experiments:
        record = records.get(one.name)
        current = record if record and record["declaration"] == one.checksum else None
        lines += [
            line_of(one, size, compared, current) for size in one.sizes for compared in one.compared(size)
        ]
    for name in ("p, difference", "p, equivalence"):
        for line, p in zip(lines, holm([line[name] for line in lines]), strict=True):
            line[f"{name}, corrected"] = p
    for line in lines:
        line["verdict"], line["why"] = words(line, rules.level)
    rows = []
    for one in declaration.experiments:
        mine = [
            {k: v for k, v in line.items() if k != "experiment"}
            for line in lines
            if line["experiment"] == one.name
        ]
        about = {"name": one.name, "question": one.question, "answer": one.answer, "tests": list(one.tests)}
        rows.append(about | {"sizes": list(one.sizes), "comparisons": mine})
    run = sum(line["run"] for line in lines)
    numbers = {
        "declared": len(lines),
        "run": run,
        "determined": sum(bool(line["why"] == "") for line in lines),
    }
    verdicts = {row["name"]: in_words(row) for row in rows}
    return {
        "format": FORMAT,
        "declared": rules.declared,
        "numbers": numbers,
        "verdicts": verdicts,
        "experiments": rows,
    }


def in_words(row: dict[str, Any]) -> str:
    """A question's verdict for a sentence: what its comparisons have in common, or each with its count."""
    compared = row["comparisons"]
    if not compared:
        return "shown by tests"
    if not any(line["run"] for line in compared):
        return "not determined until its declared runs are made"
    counts = Counter(line["verdict"] for line in compared)
    if len(counts) == 1:
        return str(compared[0]["verdict"])
    return ", ".join(f"{word} in {count} of {len(compared)}" for word, count in counts.most_common())


def line_of(
    one: Experiment, size: str, compared: Comparison, record: dict[str, Any] | None
) -> dict[str, Any]:
    """One comparison at one size, tested against no effect and against its margin; nothing corrected yet."""
    line: dict[str, Any] = {
        "experiment": one.name,
        "about": compared.about,
        "size": size,
        "quantity": compared.quantity,
        "equal": compared.equal,
        "expected": compared.expected,
        "margin": compared.margin,
        "run": record is not None,
        "mean": None,
        "low": None,
        "high": None,
        "control": None,
        "edge": False,
        "diverged": 0,
        "p, difference": 1.0,
        "p, equivalence": 1.0,
    }
    if record is None:
        return line
    found = record["sizes"][size]
    said = next(each for each in found["comparisons"] if each["about"] == compared.about)
    values = exponents(found) - compared.null if compared.quantity == "exponent" else np.array(said["values"])
    line |= {"edge": said["edge"], "diverged": sum(said.get("diverged", ()))}
    if compared.quantity == BPB:
        line["control"] = seen(found["control"])
    if line["diverged"]:
        return line
    effect = estimate(values)
    low, high = effect.interval()
    line |= {"mean": rounded(effect.mean), "low": rounded(low), "high": rounded(high)}
    line["p, difference"] = float(p_difference(effect))
    line["p, equivalence"] = float(p_equivalence(effect, compared.margin))
    return line


def exponents(found: dict[str, Any]) -> Floats:
    """For each seed the power of the width in the best multiple of the rates: (seeds, 1)."""
    widths = found["widths"]
    seeds = len(next(iter(widths.values()))["by seed"][0])
    powers = []
    for seed in range(seeds):
        points = {
            int(width): [
                (value, NEVER if losses[seed] is None else losses[seed])
                for value, losses in zip(each["values"], each["by seed"], strict=True)
            ]
            for width, each in widths.items()
        }
        powers.append([exponent(points)])
    return np.array(powers)


def seen(control: dict[str, Any], level: float = 0.05) -> bool:
    """Whether the model with more steps is seen to end lower."""
    if sum(control["diverged"]):
        return False
    effect: Estimate = estimate(np.array(control["values"]))
    return bool(p_difference(effect) <= level and effect.mean < 0)


def words(line: dict[str, Any], level: float) -> tuple[str, str]:
    """A line's verdict, and why nothing is determined, or "" if something is."""
    if not line["run"]:
        return "not determined", "not run"
    if line["diverged"]:
        return "not determined", f"{line['diverged']} of its runs diverged"
    if line["edge"]:
        return "not determined", "a best rate is an edge of its grid"
    different, equivalent = line["p, difference, corrected"], line["p, equivalence, corrected"]
    said = verdict(line["mean"], different, equivalent, level, line["control"] is not False)
    why = {"not determined": "neither test passes", "could not have been seen": "the control was not seen"}
    return said, why.get(said, "")


def rounded(value: Any) -> float:
    """Six digits behind the point, or a little more of what is very small."""
    number = float(value)
    return round(number, 6) if abs(number) > 1e-4 or not math.isfinite(number) else float(f"{number:.3g}")


def predicted(was: dict[str, Any], again: dict[str, Any]) -> bool:
    """Whether a second effect, on other seeds, lies where the first predicts it.

    The difference of two means whose errors are alike has √2 times the error of one. The speeches are the
    same in both, so this is a little too generous.
    """
    if was["mean"] is None or again["mean"] is None:
        return bool(was["verdict"] == again["verdict"])
    half = math.sqrt(2) * (was["high"] - was["low"]) / 2
    return bool(abs(again["mean"] - was["mean"]) <= half + 1e-9)
