"""Run what the book declares, or your own question: `python -m scripts.experiment --help`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanochat.common import UserError, base_dir, one_at_a_time, pick_device, run_program, write_atomically
from nanochat.evidence import report as reports
from nanochat.evidence.declared import (
    DEVICES,
    Arm,
    Comparison,
    Declaration,
    Experiment,
    Rules,
    read_declaration,
    record_name,
)
from nanochat.evidence.records import read_record, why_stale
from nanochat.evidence.settings import Setting, varied
from nanochat.flags import flag, parse_flags
from nanochat.machine import own_cores
from nanochat.provenance import ROOT

if TYPE_CHECKING:
    from nanochat.evidence.runs import Bench, Trial

SUMMARY = "results/evidence.json"
YOURS = "yours"


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

    only: tuple[str, ...] = flag((), "these experiments and no others", consume_multiple=True)
    plan: bool = flag(False, "say how long it will take here, run nothing")
    status: bool = flag(False, "say of each whether it has a record, and what makes it stale")
    show: bool = flag(False, "print the recorded verdicts, write results/evidence.json again, run nothing")
    again: bool = flag(False, "run on ten other seeds and compare with the record")
    budget: float = flag(0.0, "minutes after which no further trial begins (0: no end)")
    background: bool = flag(False, "go on in the background, and say where it writes")
    workers: int = flag(0, "trials at a time (0: one for each core, one on a GPU)")
    device_type: str = flag("", "cuda or cpu", choices=("", "cuda", "cpu"))
    vary: tuple[tuple[str, ...], ...] = flag(
        (), "your own variation: FIELD=VALUE …", converter=variations, consume_multiple=True
    )
    base: tuple[str, ...] = flag((), "FIELD=VALUE … for all variations", consume_multiple=True)
    margin: float = flag(0.01, "of --vary: the smallest difference that would matter, bits per byte")
    seeds: int = flag(10, "of --vary: fresh seeds")
    out: str = flag("", "of --vary: where the report goes")


def status(declaration: Declaration) -> None:
    """Print a line for each experiment: run or not, fresh, or what makes it stale."""
    for one in declaration.experiments:
        for device in DEVICES:
            record = read_record(one, device)
            if record is None and (device == "cuda" or not one.comparisons):
                continue
            text = "" if record is None else corpus_here(one, declaration.protocol, device)
            reasons = ["not run"] if record is None else why_stale(one, record, text=text)
            print(f"{one.name + (' on CUDA' if device == 'cuda' else ''):28} {'; '.join(reasons) or 'fresh'}")


def corpus_here(one: Experiment, rules: Rules, device: str) -> str:
    """The fingerprint of the corpus that an experiment reads, "" if it is not here."""
    from nanochat.evidence.runs import text_of
    from nanochat.evidence.texts import at_hand

    setting = rules.setting(one.sizes[0], device, one.base)
    return text_of(setting) if at_hand(setting.data, setting.vocab_size) else ""


def in_the_background() -> None:
    """Start this command again, without --background, in a process that outlives this one."""
    log = base_dir() / "evidence" / "log.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = [word for word in sys.argv[1:] if word.partition("=")[0] != "--background"]
    with log.open("a", encoding="utf-8") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "scripts.experiment", *words],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    print(f"process {process.pid} goes on in the background: tail -f {log}; end it with kill {process.pid}")


def bench_of(options: ExperimentConfig, workers: int) -> Bench:
    """Where the trials will run, with a line for each as it ends."""
    from nanochat.evidence.runs import Bench

    def say(trial: Trial, outcome: dict[str, Any]) -> None:
        losses = outcome.get("losses")
        loss = f"{sum(losses) / len(losses):.4f} bits per byte" if losses else "diverged or no loss"
        setting = trial.settings[-1]
        changed = ", ".join(f"{name}={value}" for name, value in changes(Setting(), setting).items())
        print(
            f"seed {trial.seed}: {loss}, {outcome.get('seconds', 0):.0f} s; {changed or 'as the book'}",
            flush=True,
        )

    until = time.monotonic() + 60 * options.budget if options.budget else None
    return Bench(workers, until, say)


def changes(before: Setting, after: Setting) -> dict[str, Any]:
    """The fields in which two settings differ, as the second has them."""
    old = asdict(before)
    return {name: value for name, value in asdict(after).items() if value != old[name]}


def run_declared(declaration: Declaration, chosen: Sequence[Experiment], device: str, bench: Bench) -> bool:
    """Run experiments and write each record when it is whole; False if the time was up before the last."""
    from nanochat.evidence.runs import Examination, OutOfTime

    for one in chosen:
        try:
            record = Examination(one, declaration.protocol, device, bench).record()
        except OutOfTime:
            print(f"the time is up within {one.name}; what has ended is kept, the same command goes on")
            return False
        path = ROOT / record_name(one, device)
        write_atomically(path, in_lines(record))
        write_summary(declaration)
        print(f"wrote {path.name}; commit it\n", flush=True)
    return True


def in_lines(record: dict[str, Any]) -> str:
    """A record as JSON, lists of plain values on one line."""

    def on_one_line(found: re.Match[str]) -> str:
        return "[" + " ".join(found[1].split()) + "]"

    text = json.dumps(record, indent=1, ensure_ascii=False)
    return re.sub(r"\[\s*([^\[\]{}]*?)\s*\]", on_one_line, text) + "\n"


def summarize(declaration: Declaration) -> dict[str, Any]:
    """What all records of this project say, on a CPU, and on CUDA if there is a record of it."""
    from nanochat.evidence.verdicts import conclude

    records = {d: {one.name: read_record(one, d) for one in declaration.experiments} for d in DEVICES}
    summary = conclude(declaration, records["cpu"])
    if any(records["cuda"].values()):
        summary["cuda"] = conclude(declaration, records["cuda"])
    return summary


def write_summary(declaration: Declaration) -> None:
    """Write results/evidence.json, from which the page of all twelve is made."""
    write_atomically(ROOT / SUMMARY, in_lines(summarize(declaration)))


def on_other_seeds(rules: Rules) -> Rules:
    """The rules with as many fresh seeds, none of which a record has."""
    return replace(rules, fresh_seeds=tuple(seed + 1000 for seed in rules.fresh_seeds))


def run_again(one: Experiment, declaration: Declaration, device: str, bench: Bench) -> bool:
    """The recorded comparisons on ten other seeds; whether each effect lies where the record predicts it.

    Raises OutOfTime if the budget is spent before the last trial.
    """
    from nanochat.evidence.runs import Examination
    from nanochat.evidence.verdicts import conclude, predicted

    record, rules = read_record(one, device), on_other_seeds(declaration.protocol)
    if record is None:
        raise UserError(f"{one.name} has no record to compare with: leave out --again to make one")
    again = Examination(one, rules, device, bench).record()
    lines = [conclude(replace(declaration, experiments=(one,)), {one.name: each}) for each in (record, again)]
    good = True
    for was, is_now in zip(*(each["experiments"][0]["comparisons"] for each in lines), strict=True):
        inside = predicted(was, is_now)
        good = good and inside
        place = "inside " if inside else "OUTSIDE"
        print(f"{place}  {reports.about_of(was)}: {reports.effect(is_now)}, recorded {reports.effect(was)}")
    return good


def own_question(options: ExperimentConfig, rules: Rules) -> tuple[Experiment, Rules]:
    """The experiment that a reader's flags describe, and its rules.

    Raises UserError for a wrong field or value.
    """
    if options.seeds < 2:
        raise UserError(f"--seeds={options.seeds}: an interval needs at least 2, and better 10")
    if not options.margin > 0:
        raise UserError(
            f"--margin={options.margin}: it must be above 0, the smallest difference that would matter"
        )
    usual = varied(Setting(**rules.sizes["small"]), options.base)
    fixed, arms, compared = set(changes(Setting(**rules.sizes["small"]), usual)), [], []
    for words in options.vary:
        name = " ".join(words)
        differing = changes(usual, varied(usual, words))
        if not differing:
            raise UserError(f"{name}: that is the book's choice already; give another value")
        axes = tuple(axis for axis in rules.axes if not (fixed | set(differing)) & set(axis.fields))
        arms.append(Arm(name, differing, axes, (YOURS,)))
        compared.append(Comparison(f"loss with {name}", name, "", options.margin))
    own_axes = tuple(axis for axis in rules.axes if not fixed & set(axis.fields))
    title = " or ".join(arm.name for arm in arms)
    one = Experiment(
        name="vary-" + re.sub(r"[^a-z0-9.]+", "-", title.lower())[:80],
        question=f"What does {title} change?",
        answer="",
        claim="",
        checksum="",
        arms=tuple(arms),
        comparisons=tuple(compared),
        sizes=(YOURS,),
    )
    large = {**rules.sizes[rules.on_cuda["small"]], **{name: getattr(usual, name) for name in fixed}}
    sizes = {YOURS: asdict(usual), "yours on CUDA": large}
    mine = replace(rules, axes=own_axes, sizes=sizes, on_cuda={YOURS: "yours on CUDA"})
    return one, replace(mine, fresh_seeds=tuple(range(options.seeds)))


def answer_own_question(options: ExperimentConfig, rules: Rules, device: str, workers: int) -> None:
    """Say how long it takes, run a reader's own variations, print the report and write it to a file."""
    from nanochat.evidence import plans
    from nanochat.evidence.runs import Examination, OutOfTime
    from nanochat.evidence.verdicts import conclude

    one, rules = own_question(options, rules)
    print(plans.in_words(*plans.make_plans([one], rules, device), device, workers), flush=True)
    if options.plan:
        return
    with bench_of(options, workers) as bench:
        try:
            record = Examination(one, rules, device, bench).record()
        except OutOfTime:
            print("the time is up; what has ended is kept, the same command goes on")
            return
    text = reports.report(conclude(Declaration(rules, (one,)), {one.name: record}), one.question)
    path = Path(options.out) if options.out else base_dir() / "evidence" / f"{one.name}.md"
    write_atomically(path, text)
    print(f"\n{text}\nThis report is in {path}")


def chosen_of(options: ExperimentConfig, declaration: Declaration, device: str) -> list[Experiment]:
    """Those named, or all that run something and have no fresh record; with --again, those that have one.

    Raises UserError for a named one that runs nothing, or that --again cannot compare with a fresh record.
    """
    found = []
    for one in map(declaration.experiment, options.only) if options.only else declaration.experiments:
        record = read_record(one, device)
        reasons = ["it has no record"] if record is None else why_stale(one, record)
        if options.only:
            refuse_idle(one, reasons if options.again else [])
        if options.only or (one.comparisons and bool(reasons) is not options.again):
            found.append(one)
    return found


def refuse_idle(one: Experiment, reasons: list[str]) -> None:
    """Raise UserError for an experiment that runs nothing, or has reasons not to be run on other seeds."""
    if not one.comparisons:
        tests = " or ".join(one.tests)
        raise UserError(f"{one.name} runs nothing, tests show it: python -m pytest -k {tests!r}")
    if reasons:
        raise UserError(f"{one.name} cannot be compared: {'; '.join(reasons)}. Run it without --again first")


def planned(
    options: ExperimentConfig, declaration: Declaration, device: str, workers: int
) -> list[Experiment]:
    """What will be run, the quickest first, after a plan of it is printed."""
    from nanochat.evidence.plans import in_words, make_plans

    chosen = chosen_of(options, declaration, device)
    if not chosen:
        print("no declared experiment has a fresh record" if options.again else "all records are fresh")
        return []
    rules = declaration.protocol
    plans, rests_on = make_plans(chosen, on_other_seeds(rules) if options.again else rules, device)
    plans.sort(key=lambda each: each.seconds[0])
    print(in_words(plans, rests_on, device, workers), flush=True)
    return [each.one for each in plans]


def main() -> int:
    """Do what the command line asks; 1 if a second run does not agree with a record."""
    about = "Run what the book declares, or your own question."
    options = parse_flags(ExperimentConfig, sys.argv[1:], "python -m scripts.experiment", about)
    declaration = read_declaration()
    if options.status:
        status(declaration)
        return 0
    if options.show:
        write_summary(declaration)
        print(reports.report(summarize(declaration), "What the declared runs showed"))
        return 0
    device = "cuda" if pick_device(options.device_type).type == "cuda" else "cpu"
    workers = options.workers or (1 if device == "cuda" else own_cores())
    if options.background:
        in_the_background()
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from nanochat.evidence.runs import OutOfTime

    with one_at_a_time(base_dir() / "evidence" / ".lock", "runs experiments", wait=False):
        if options.vary:
            answer_own_question(options, declaration.protocol, device, workers)
            return 0
        chosen = planned(options, declaration, device, workers)
        if not chosen or options.plan:
            return 0
        with bench_of(options, workers) as bench:
            if not options.again:
                run_declared(declaration, chosen, device, bench)
                return 0
            try:
                agreed = [run_again(one, declaration, device, bench) for one in chosen]
            except OutOfTime:
                print("the time is up; what has ended is kept, the same command goes on")
                return 0
            return 0 if all(agreed) else 1
    return 0


def tables(summary: dict[str, Any]) -> dict[str, str]:
    """The tables of results/evidence.json for the chapters."""
    return reports.tables(summary)


if __name__ == "__main__":
    run_program(lambda: sys.exit(main()))
