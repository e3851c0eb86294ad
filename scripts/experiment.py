"""Run the book's experiments, or your own: `python -m scripts.experiment --help`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, pick_device, run_program, write_atomically
from nanochat.evidence import report as reports
from nanochat.evidence.experiments import BOOK, BPB, EXPERIMENTS, Experiment, Finding, experiment, slug
from nanochat.evidence.records import read_record, record_path, state_of, why_stale
from nanochat.evidence.settings import Setting, varied
from nanochat.flags import flag, parse_flags
from nanochat.machine import own_cores
from nanochat.provenance import ROOT, read_book


def variations(kind: Any, tokens: Sequence[Any]) -> tuple[tuple[str, ...], ...]:
    """What follows each --vary, as cyclopts numbers it: from 0 again behind every one."""
    groups: list[list[str]] = []
    for token in tokens:
        if token.index == 0:
            groups.append([])
        groups[-1].append(token.value)
    return tuple(tuple(group) for group in groups)


@dataclass(frozen=True)
class ExperimentConfig:
    """The flags of scripts.experiment."""

    names: tuple[str, ...] = flag((), "experiments to run (--status lists them)", positional=True)
    all: bool = flag(False, "every experiment that is missing or stale")
    status: bool = flag(False, "say of each whether its record is fresh")
    show: bool = flag(False, "print the recorded reports, run nothing")
    verify: bool = flag(False, "run again and compare with the record")
    other_seeds: bool = flag(False, "with --verify: not the record's seeds")
    seeds: int = flag(0, "how many (without: as the experiment says)")
    workers: int = flag(0, "trials at a time (without: 2 on a CPU)")
    device_type: str = flag("", "cuda or cpu", choices=("", "cuda", "cpu"))
    vary: tuple[tuple[str, ...], ...] = flag(
        (), "your own variation: FIELD=VALUE …", converter=variations, consume_multiple=True
    )
    base: tuple[str, ...] = flag((), "FIELD=VALUE … for all variations", consume_multiple=True)
    out: str = flag("", "where the report of --vary goes")


def status() -> None:
    """Print a line for each experiment."""
    book = read_book()
    for one in EXPERIMENTS:
        for large in (False, True):
            if large and not record_path(one.name, large).exists():
                continue
            try:
                reasons = why_stale(one, large, book)
            except UserError as error:
                reasons = [str(error)]
            print(f"{one.name + (' on CUDA' if large else ''):28} {state_of(reasons)}")


def run(
    one: Experiment, device: str, seeds: int, workers: int, anew: bool = False, first: int = 0
) -> dict[str, Any]:
    """Run what is missing of an experiment; returns its record."""
    from nanochat.evidence.runs import complete

    command = f"python -m scripts.experiment {one.name}" + (f" --seeds={seeds}" if seeds else "")
    return complete(one, device, seeds, workers, anew=anew, command=command, first=first)


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write a record, and the summary of all."""
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_atomically(path, re.sub(r"\[\s*([^\[\]{}]*?)\s*\]", on_one_line, text) + "\n")
    write_summary()


def on_one_line(found: re.Match[str]) -> str:
    """A list of plain values without its line ends."""
    return "[" + " ".join(found[1].split()) + "]"


def write_summary() -> None:
    """Write results/evidence.json, from which the page of all twelve is made."""
    rows = [reports.overview_row(one, read_record(record_path(one.name, False))) for one in EXPERIMENTS]
    verdicts = [finding["verdict"] for row in rows for finding in row["findings"]]
    numbers = {
        "recorded": sum(bool(row["findings"]) for row in rows),
        "findings": len(verdicts),
        "as-claimed": sum(verdict.endswith("as claimed") for verdict in verdicts),
        "against": verdicts.count("against the claim"),
        "no-effect": verdicts.count("no effect at this scale"),
    }
    contents = {"format": 1, "numbers": numbers, "experiments": rows}
    summary = json.dumps(contents, indent=1, ensure_ascii=False)
    write_atomically(ROOT / "results" / "evidence.json", summary + "\n")


def verify(one: Experiment, device: str, workers: int, other_seeds: bool = False) -> bool:
    """Run again, with the record's seeds or the next ones; whether each effect lies in its interval."""
    record = read_record(record_path(one.name, device == "cuda"))
    if record is None:
        raise UserError(f"{one.name} has no record to compare with: leave out --verify to make one")
    count = len(record["seeds"])
    again = run(one, device, count, workers, anew=True, first=count if other_seeds else 0)
    good = True
    for before, now in zip(record["findings"], again["findings"], strict=True):
        if before["mean"] is None or now["mean"] is None:
            inside = before["verdict"] == now["verdict"]
        else:
            slack = 1e-9 * max(1.0, abs(before["mean"]))
            inside = before["low"] - slack <= now["mean"] <= before["high"] + slack
        good = good and inside
        was, is_now = reports.effect(before), reports.effect(now)
        place = "inside " if inside else "OUTSIDE"
        print(f"{place}  {before['about']}: {is_now[0]}, recorded {was[0]} ({was[1]})")
    return good


def own_question(variations: Sequence[Sequence[str]], base: Sequence[str], seeds: int) -> Experiment:
    """The experiment that a reader's flags describe. Raises UserError for a wrong field or value."""
    usual = varied(Setting(), base)
    common = changes(Setting(), usual)
    named = {" ".join(words): changes(usual, varied(usual, words)) for words in variations}
    for name, differing in named.items():
        if not differing:
            raise UserError(f"{name}: that is the book's choice already; give another value")
    findings = tuple(Finding(f"{name}, against the book's", (name,), "") for name in named)
    return Experiment(
        name="vary-" + slug("-".join(named))[:80],
        question=f"What does {' or '.join(named)} change?",
        answer="",
        claim="",
        reconsider="",
        variations={BOOK: {}} | named,
        findings=findings,
        base=common,
        columns=(BPB, "parameters", "seconds", "largest score", "largest logit", "zeros in the MLP"),
        seeds=seeds or 3,
    )


def changes(before: Setting, after: Setting) -> dict[str, Any]:
    """The fields in which two settings differ, as the second has them."""
    old = asdict(before)
    return {name: value for name, value in asdict(after).items() if value != old[name]}


def answer_own_question(options: ExperimentConfig, device: str, workers: int) -> None:
    """Run a reader's own variations against the book's, print the report and write it to a file."""
    one = own_question(options.vary, options.base, options.seeds)
    words = [f"--vary {' '.join(change)}" for change in options.vary]
    words += [f"--base {' '.join(options.base)}"] if options.base else []
    record = run(one, device, options.seeds, workers)
    record["command"] = " ".join(["python -m scripts.experiment", *words])
    record["declared"] = {**asdict(one), "findings": []}
    text = reports.report(record)
    path = Path(options.out) if options.out else base_dir() / "evidence" / f"{one.name}.md"
    write_atomically(path, text)
    print(f"\n{text}\nThis report is in {path}")


def main() -> int:
    """Do what the command line asks; 1 if a verification fails."""
    about = "Run the book's experiments, or your own."
    options = parse_flags(ExperimentConfig, sys.argv[1:], "python -m scripts.experiment", about)
    chosen = [experiment(name) for name in options.names]
    if options.status:
        status()
        return 0
    if options.show:
        for one in chosen or EXPERIMENTS:
            record = read_record(record_path(one.name, False))
            print(reports.report(record) if record else f"{one.name} has not been run")
        return 0
    if options.seeds and options.seeds < 2:
        raise UserError(f"--seeds={options.seeds}: an interval needs at least 2, and better 3")
    if not chosen and not options.all and not options.vary:
        names = ", ".join(one.name for one in EXPERIMENTS)
        raise UserError(f"which experiment? Give a name, --all, --status or --vary; there are {names}")
    if options.vary:
        own_question(options.vary, options.base, options.seeds)
    device = pick_device(options.device_type).type
    device = device if device == "cuda" else "cpu"
    workers = options.workers or (1 if device == "cuda" else min(2, own_cores()))
    if options.vary:
        answer_own_question(options, device, workers)
        return 0
    if options.all:
        book = read_book()
        chosen = [one for one in EXPERIMENTS if why_stale(one, device == "cuda", book)]
        if not chosen:
            print("every experiment has a fresh record")
    good = True
    for one in chosen:
        if options.verify:
            good = verify(one, device, workers, options.other_seeds) and good
            continue
        record = run(one, device, options.seeds, workers)
        path = record_path(one.name, device == "cuda")
        write_record(record, path)
        print(f"\n{reports.report(record)}\nwrote results/{path.name}")
    return 0 if good else 1


def tables(record: dict[str, Any]) -> dict[str, str]:
    """The tables of a record for the chapters, or, of results/evidence.json, the page of all twelve."""
    if "experiments" in record:
        return {"overview": reports.overview_table(record["experiments"])}
    return reports.tables(record)


if __name__ == "__main__":
    run_program(lambda: sys.exit(main()))
