"""Verdicts as tables and words. Imports nothing heavy."""

from __future__ import annotations

import itertools
from typing import Any

TESTED = "shown by tests"


def signed(value: float, digits: int = 4) -> str:
    """A number with its sign."""
    return f"{value:+.{digits}f}".replace("-", "−")


def effect(line: dict[str, Any]) -> str:
    """The effect with its 95 % interval, or nothing where nothing was run."""
    if line["mean"] is None:
        return ""
    mean, low, high = (signed(line[name]) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def verdict_of(line: dict[str, Any]) -> str:
    """The verdict, with the reason where there is none."""
    return f"{line['verdict']} ({line['why']})" if line["why"] else str(line["verdict"])


def about_of(line: dict[str, Any]) -> str:
    """What is compared, at which size."""
    return f"{line['about']}, {line['size']}"


def overview_table(summary: dict[str, Any]) -> str:
    """All questions on one page: a line for each comparison, the question at the first of them."""
    lines = ["| question | no. | compared, size | expected | margin | effect (95 % interval) | verdict |"]
    lines.append("|---|---|---|---|---|---|---|")
    numbers = itertools.count(1)
    for row in summary["experiments"]:
        question = f"[{row['question']}]({row['answer']})" if row["answer"] else row["question"]
        cells = [
            [str(next(numbers)), about_of(c), c["expected"], f"{c['margin']:g}", effect(c), verdict_of(c)]
            for c in row["comparisons"]
        ]
        if row["tests"]:
            count = len(row["tests"])
            cells.append(["", f"{count} test{'s' * (count > 1)}", "", "", "", TESTED])
        for number, rest in enumerate(cells):
            lines.append(f"| {' | '.join(['' if number else question, *rest])} |")
    return "\n".join(lines)


def table_of_tests(summary: dict[str, Any]) -> str:
    """Every comparison that was run, with raw and corrected p values."""
    head = "| compared, size | p, difference | corrected | p, equivalence | corrected | control seen |"
    lines = [head, "|---|---|---|---|---|---|"]
    for line in (line for row in summary["experiments"] for line in row["comparisons"] if line["run"]):
        names = ("p, difference", "p, difference, corrected", "p, equivalence", "p, equivalence, corrected")
        control = {None: "no loss", True: "yes", False: "no"}[line["control"]]
        lines.append(f"| {' | '.join([about_of(line), *(f'{line[name]:.2g}' for name in names), control])} |")
    return "\n".join(lines) if len(lines) > 2 else "No declared comparison has been run."


def report(summary: dict[str, Any], title: str) -> str:
    """A whole report as Markdown, for the terminal and for a reader's own question."""
    return f"# {title}\n\n{overview_table(summary)}\n\n{table_of_tests(summary)}\n"


def tables(summary: dict[str, Any]) -> dict[str, str]:
    """What a chapter can ask for."""
    return {"overview": overview_table(summary), "tests": table_of_tests(summary)}
