"""From trials to findings, tables and verdicts. No PyTorch."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable
from statistics import mean
from typing import Any

from nanochat.evidence.experiments import BPB, Experiment, Finding, experiment, slug
from nanochat.evidence.records import read_record, record_path
from nanochat.evidence.statistics import interval, verdict

Trials = dict[str, dict[str, Any]]  # variation, seed as a text: {"numbers": …, "curves": …}


def find_the_best_rates(trials: Trials, settings: dict[str, Any]) -> Trials:
    """For each seed: the best multiple of the rates at each width, and the exponent with which it changes."""
    seeds = list(next(iter(trials.values())))
    widths = sorted({setting["n_embd"] for setting in settings.values()})
    found: Trials = {name: {} for name in [*(f"width {width}" for width in widths), "all widths"]}
    for seed in seeds:
        best = []
        for width in widths:
            points = []
            for name, setting in settings.items():
                bpb = trials[name][seed]["numbers"][BPB]
                if setting["n_embd"] == width and bpb is not None:
                    points.append((math.log2(setting["embedding_lr"] / 0.2), bpb))
            best.append(lowest_point(sorted(points)))
            found[f"width {width}"][seed] = {"numbers": {"best multiple": 2 ** best[-1]}, "curves": {}}
        x = [math.log2(width) for width in widths]
        middle = mean(x)
        above = sum((a - middle) * b for a, b in zip(x, best, strict=True))
        slope = above / sum((a - middle) ** 2 for a in x)
        found["all widths"][seed] = {"numbers": {"exponent": slope}, "curves": {}}
    return found


def lowest_point(points: list[tuple[float, float]]) -> float:
    """Where a parabola through the lowest of evenly spaced points and its neighbours is lowest."""
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    if lowest in (0, len(points) - 1):
        return points[lowest][0]
    (left, a), (middle, b), (_, c) = points[lowest - 1 : lowest + 2]
    return middle + (middle - left) * (a - c) / (2 * (a - 2 * b + c))


DERIVED: dict[str, Callable[[Trials, dict[str, Any]], Trials]] = {"find the best rates": find_the_best_rates}


def values_of(trials: Trials, variation: str, quantity: str) -> list[float | None]:
    """A quantity of each seed; None where the run diverged."""
    return [trial["numbers"].get(quantity) for trial in trials[variation].values()]


def whole(values: list[float | None]) -> list[float] | None:
    """The values, if no run has diverged."""
    numbers = [value for value in values if value is not None]
    return numbers if len(numbers) == len(values) else None


def weigh(finding: Finding, trials: Trials) -> dict[str, Any]:
    """The effect, its interval and the verdict."""
    candidates = {name: whole(values_of(trials, name, finding.quantity)) for name in finding.of}
    alive = {name: values for name, values in candidates.items() if values is not None}
    result: dict[str, Any] = {
        "about": finding.about,
        "quantity": finding.quantity,
        "kind": finding.kind(),
        "claimed": finding.claimed,
    }
    if not alive:
        lost = sum(value is None for value in values_of(trials, finding.of[0], finding.quantity))
        count = len(trials[finding.of[0]])
        says = f"it diverged in {lost} of {count} runs"
        return result | {"of": finding.of[0], "verdict": says, "mean": None, "low": None, "high": None}
    best = min(alive, key=lambda name: mean(alive[name]))
    values = alive[best]
    if finding.against:
        usual = whole(values_of(trials, finding.against, finding.quantity))
        if usual is None:
            return (
                result
                | {"of": best, "verdict": "what it is compared with diverged", "mean": None}
                | {
                    "low": None,
                    "high": None,
                }
            )
        pairs = zip(values, usual, strict=True)
        values = [a / b if finding.ratio else a - b for a, b in pairs]
    found = interval(values)
    return result | {
        "of": best,
        "values": values,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "null": finding.nothing(),
        "verdict": verdict(found, finding.nothing(), finding.claimed),
    }


def conclude(one: Experiment, record: dict[str, Any]) -> dict[str, Any]:
    """What follows from a record's trials: "derived", "findings", and "numbers" for the prose to quote."""
    trials: Trials = dict(record["trials"])
    derived = DERIVED[one.derived](trials, record["configuration"]["settings"]) if one.derived else {}
    trials |= derived
    findings = [weigh(finding, trials) for finding in one.findings]
    numbers: dict[str, Any] = {"seeds": len(record["seeds"])}
    for name, runs in trials.items():
        for quantity in next(iter(runs.values()))["numbers"]:
            values = whole(values_of(trials, name, quantity))
            if values:
                key = f"{slug(name)}/{slug(quantity)}".replace("/", ".")
                numbers[key] = mean(values)
    for count, finding in enumerate(findings, 1):
        for part in ("mean", "low", "high", "verdict"):
            numbers[f"finding-{count}-{part}"] = finding[part]
    return {"derived": derived, "findings": findings, "numbers": numbers}


def shown(value: float | None, wanted: int = 3) -> str:
    """A number for a table, with so many digits that count; whole numbers have all of theirs."""
    if value is None:
        return "diverged"
    if not math.isfinite(value):
        return f"{value:g}"
    if value == int(value):
        return f"{value:,.0f}".replace("-", "−")
    digits = max(0, wanted - 1 - math.floor(math.log10(abs(value))))
    text = f"{value:,.{min(digits, 4)}f}" if abs(value) >= 1e-3 else f"{value:.2g}"
    return text.replace("-", "−")


def trial_table(record: dict[str, Any]) -> str:
    """Each variation's numbers: the mean over the seeds, and from the smallest to the largest."""
    one = experiment_of(record)
    trials = record["trials"] | record["derived"]
    lines = [
        "| | " + " | ".join(one.columns) + " |",
        "|---|" + "---|" * len(one.columns),
    ]
    for name in record["trials"]:
        cells = [
            mean_and_range(values_of(trials, name, column), 4 if column == BPB else 3)
            for column in one.columns
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def mean_and_range(values: list[float | None], digits: int = 3) -> str:
    """A mean with its range; a loss needs a digit more, since its differences are small."""
    numbers = [value for value in values if value is not None]
    if not numbers:
        return "diverged" if values else ""
    lost = len(values) - len(numbers)
    text = shown(mean(numbers), digits)
    if max(numbers) != min(numbers):
        text += f" ({shown(min(numbers), digits)} to {shown(max(numbers), digits)})"
    return text + (f", {lost} of {len(values)} diverged" if lost else "")


def finding_table(record: dict[str, Any]) -> str:
    """Each finding with its interval and verdict; beside them those of the larger run, if there is one."""
    large = larger(record)
    more = " on a GPU | 95 % interval | verdict |" if large else ""
    rule = "|---|---|---|---|" + "---|---|---|" * bool(more)
    lines = [f"| compared | {effect_heading(record)} | 95 % interval, paired by seed | verdict |{more}", rule]
    for count, finding in enumerate(record["findings"]):
        cells = [finding["about"], *effect(finding), finding["verdict"]]
        if large:
            cells += [*effect(large["findings"][count]), large["findings"][count]["verdict"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def effect_heading(record: dict[str, Any]) -> str:
    """What the effects of a table are counted in."""
    findings = record["findings"]
    units = [f"{BPB} for a loss"] if any(finding.get("quantity") == BPB for finding in findings) else []
    units += ["×: a factor"] if any(finding.get("kind") == "factor" for finding in findings) else []
    return "effect" + (f" ({'; '.join(units)})" if units else "")


def larger(record: dict[str, Any]) -> dict[str, Any] | None:
    """The record of the same experiment on a GPU, to be shown beside one from a CPU."""
    if "declared" in record or record["machine"]["threads of a trial"] is None:
        return None
    found = read_record(record_path(record["experiment"], True))
    return found if found and len(found["findings"]) == len(record["findings"]) else None


def effect(finding: dict[str, Any]) -> tuple[str, str]:
    """The effect and its interval, as texts."""
    if finding["mean"] is None:
        return "none", "none"
    kind = finding.get("kind", "")
    sign = "+" if finding["mean"] > 0 and kind == "difference" else ""
    times = " ×" if kind == "factor" else ""
    middle, low, high = alike([finding["mean"], finding["low"], finding["high"]], finding.get("null") or 0.0)
    if finding["low"] == finding["high"]:
        return f"{sign}{middle}{times}", "the same in every run"
    return f"{sign}{middle}{times}", f"{low} to {high}"


def alike(values: list[float], null: float) -> list[str]:
    """Numbers of one row with equally many decimals: three digits of the largest, at most four decimals.

    There are up to two more if otherwise one would look like `null`, which would contradict the verdict, or
    all would look the same.
    """
    size = max(abs(value) for value in values)
    if size < 1e-3:
        return [f"{value:.2g}".replace("-", "−") for value in values]
    if all(value == int(value) for value in values):
        return [shown(value) for value in values]
    first = min(4, max(0, 2 - math.floor(math.log10(size))))
    choices = [[f"{value:,.{decimals}f}" for value in values] for decimals in range(first, first + 3)]
    for texts in choices:
        apart = len(set(values)) == 1 or len(set(texts)) > 1
        clear = all(
            value == null or float(text.replace(",", "")) != null
            for value, text in zip(values, texts, strict=True)
        )
        if apart and clear:
            break
    else:
        texts = choices[0]
    return [text.replace("-", "−") for text in texts]


def experiment_of(record: dict[str, Any]) -> Experiment:
    """The declaration that a record belongs to; for a reader's own question, made from what it says."""
    if "declared" in record:
        return Experiment(**{**record["declared"], "findings": ()})
    return experiment(record["experiment"])


def about_run(record: dict[str, Any]) -> str:
    """One sentence on what was run, where and when."""
    setting = next(iter(record["configuration"]["settings"].values()))
    machine, seeds = record["machine"], len(record["seeds"])
    tokens = setting["steps"] * setting["passes"] * setting["batch_size"] * setting["sequence_len"]
    trained = (
        f"{setting['n_layer']} blocks of width {setting['n_embd']}, {tokens:,} tokens of {setting['data']}, "
        if "train" in record["configuration"]["procedures"]
        else ""
    )
    where = f"{machine['device']}, torch {machine['torch']}"
    ran = f"{trained}{seeds} seeds; {where}; recorded {record['date'][:10]} by `{record['command']}`."
    text = f"Above: {how_to_read(record)} {ran[0].upper()}{ran[1:]}"
    return textwrap.fill(text, 118, break_on_hyphens=False)


def how_to_read(record: dict[str, Any]) -> str:
    """What the brackets of the first table and the intervals of the second are."""
    kinds = [finding.get("kind") for finding in record["findings"]]
    taken = [f"{kind}s" for kind in ("difference", "factor", "value") if kind in kinds]
    second = " and ".join((", ".join(taken[:-1]), taken[-1]) if taken[1:] else taken)
    return (
        "first the mean of the seeds (smallest to largest), then "
        f"{second}, seed by seed: their mean and the 95 % interval around it."
    )


def tables(record: dict[str, Any]) -> dict[str, str]:
    """What a chapter can ask for: "trials", "findings", "run", or all of them."""
    parts = {"trials": trial_table(record), "findings": finding_table(record), "run": about_run(record)}
    return parts | {"all": "\n\n".join((parts["trials"], parts["findings"], parts["run"]))}


def report(record: dict[str, Any]) -> str:
    """A whole report as Markdown, for the terminal and for a reader's own question."""
    one = experiment_of(record)
    parts = [f"# {one.question}", one.claim, tables(record)["all"]]
    return "\n\n".join(part for part in parts if part) + "\n"


def overview_row(one: Experiment, record: dict[str, Any] | None) -> dict[str, Any]:
    """What the page of all twelve shows of one: the findings that decide about its claim."""
    row = {"name": one.name, "question": one.question, "answer": one.answer, "claim": one.claim}
    if record is None:
        return row | {"findings": []}
    decisive = [record["findings"][count - 1] for count in one.decisive]
    return row | {"findings": decisive, "seeds": len(record["seeds"])}


def overview_table(rows: list[dict[str, Any]]) -> str:
    """All twelve on one screen: a line for each decisive finding, the question at the first of them."""
    lines = ["| question | verdict | measured | effect (95 % interval) | claimed |", "|---|---|---|---|---|"]
    for row in rows:
        question = f"[{row['question']}]({row['answer']})"
        if not row["findings"]:
            lines.append(f"| {question} | not run | | | |")
        for count, finding in enumerate(row["findings"]):
            size, between = effect(finding)
            measured = size if size == "none" else f"{size} ({between})"
            cells = ["" if count else question, finding["verdict"]]
            lines.append(f"| {' | '.join([*cells, finding['about'], measured, finding['claimed']])} |")
    return "\n".join(lines)
