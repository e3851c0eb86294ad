"""Rewrite the GPT function by function: python -m scripts.learn --help lists the commands."""

from __future__ import annotations

import ast
import difflib
import errno
import json
import os
import re
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat.common import UserError, nearest, run_program, write_atomically
from nanochat.flags import REQUIRED, flag, parse_command
from nanochat.learning.court import Judge
from nanochat.learning.gaps import explain_gap
from nanochat.learning.grading import grade_folder, write_tables
from nanochat.learning.hybrid import Source, Unjudgeable, home_of, read_source, round_of_file
from nanochat.learning.progress import MILESTONES, Milestone, Verdict, Workshop
from nanochat.learning.report import PROMPT, Rehearsal, Report
from nanochat.learning.steps import (
    ALL_PHASES,
    ALL_STEPS,
    FIRST_ROUND,
    ROUNDS,
    SECOND_ROUND,
    STEPS,
    Round,
    Step,
    round_of,
    section_of,
    step_named,
)
from nanochat.models import ROOT, Frame, shown, workshop_folder


def select(text: str) -> list[Step]:
    """The steps that a word means: an id, its last part, a class, a number or a phase. Raises UserError."""
    wanted = text.strip().lower().removesuffix("()")
    if wanted.isdecimal() and 1 <= int(wanted) <= len(ALL_STEPS):
        return [ALL_STEPS[int(wanted) - 1]]
    if phase := re.fullmatch(r"phase[ _=-]?(\d+)", wanted):
        found = [step for step in ALL_STEPS if step.phase == int(phase[1])]
    elif number := re.fullmatch(r"round[ _=-]?(\d)", wanted):
        found = [step for part in ROUNDS if part.number == int(number[1]) for step in part.steps]
    else:
        found = [s for s in ALL_STEPS if s.id.lower() == wanted]
        found = found or [s for s in ALL_STEPS if wanted in s.id.lower().split(".")]
        found = found or [s for s in ALL_STEPS if len(wanted) > 2 and wanted in s.id.lower()]
    if found:
        return found
    words = [word for step in ALL_STEPS for word in (step.id, *re.findall("[A-Z]?[a-z]+|[A-Z]+", step.id))]
    raise UserError(
        f"there is no step {text!r}{nearest(text, words)} (a step is a name such as GPT.forward or forward, "
        f"a number from 1 to {len(ALL_STEPS)}, phase1 to phase{len(ALL_PHASES)}, or round1 or round2)"
    )


WHICH_STEP = "a name such as GPT.forward or forward, a number, or phase1"


def select_one(text: str) -> Step:
    """The step that a word means. Raises UserError if there are several."""
    found = select(text)
    if len(found) > 1:
        raise UserError(
            f"{text} is {len(found)} steps: {', '.join(step.id for step in found)}. Name one of them"
        )
    return found[0]


WIDTH = 100


def paragraph(text: str | None, indent: str = "        ") -> list[str]:
    """A text as indented lines; its own line breaks are kept."""
    lines = [
        line
        for part in (text or "").splitlines()
        for line in textwrap.wrap(part, WIDTH - len(indent)) or [""]
    ]
    return [indent + line for line in lines]


def describe_verdict(verdict: Verdict, file: Path) -> str:
    """What the judge said about one step: one line, and what explains it below."""
    line = f", {shown(file)}:{verdict['line']}" if verdict.get("line") else ""
    head = f"{verdict['status']:<7} {verdict['step']}"
    if verdict["status"] == "passed":
        lines = [head, *paragraph(verdict.get("remark"))]
    elif verdict["status"] == "todo":
        lines = [head + line]
    elif verdict["status"] == "not judged":
        lines = [head, *paragraph(verdict["difference"]), *paragraph(verdict["next"])]
    else:
        lines = [f"{head}{line}: {verdict['summary'].removeprefix(verdict['step']).strip()}"]
        for part in ("explanation", "difference", "next"):
            lines += paragraph(verdict.get(part))
    if verdict.get("printed"):
        lines += ["        it printed:", *paragraph(verdict["printed"], "        | ")]
    return "\n".join(lines)


def describe_report(report: Report, file: Path) -> str:
    """What a rehearsal came to: the gap, the exception, or the training that went well."""
    source = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    if report.stopped == "gap" and report.place:
        return explain_gap(report.says, Frame(*report.place), file)
    if report.stopped == "unreadable":
        return f"stopped    {report.says}"
    if report.stopped:
        lines = [f"stopped    {report.says}"]
        if report.place:
            function, line = report.place
            lines.append(f"  in         {function}, {shown(file)}:{line}")
            if line <= len(source):
                lines.append(f"             {source[line - 1].strip()}")
            if callers := [f"{name}:{at}" for name, at in reversed(report.frames[:-1])]:
                lines.append(f"  called by  {', '.join(callers[:6])}")
        lines.append("  next       python -m scripts.learn check")
        return "\n".join(lines)
    if report.notes:
        return (
            "every function of the second round is written, and all of them together do what the program does"
        )
    first, last = report.losses[0], sum(report.losses[-5:]) / 5
    return f"""trained    {len(report.losses)} steps; the loss went from {first:.3f} to {last:.3f} nats a byte
wrote      {report.text!r} after {PROMPT!r}
compared   {report.agreement or "the losses are not the book's: python -m scripts.learn check"}"""


WHAT_NEXT = """
Every function is written, and training runs to its end. What comes next:
  python -m scripts.learn check                       each function on its own, against the book's
  make train GPT=mine                                 five minutes on real text, with samples at the end
  bash scripts/local_cpu_own_gpt_transformer.sh       one step of the real program
  python -m scripts.base_train --gpt=mine --help      everything else
  make learn ROUND=2                                  the second round: write what trains it"""


def describe_standing(
    standing: dict[str, Verdict | None], milestones: list[Milestone], file: Path, part: Round, first: int = 1
) -> str:
    """A round's phases and steps, and its milestones, counted from `first`."""
    lines = []
    for phase, title in part.phases.items():
        steps = [step for step in part.steps if step.phase == phase]
        states = {step.id: (standing[step.id] or {"status": "not judged"}) for step in steps}
        done = sum(state["status"] == "passed" for state in states.values())
        lines += ["", f"Phase {phase}: {title} ({done} of {len(steps)})"]
        for step in steps:
            state = states[step.id]
            place = (
                f"  {shown(file)}:{state['line']}"
                if state["status"] != "passed" and state.get("line")
                else ""
            )
            mistake = f"  {state['mistake']}" if state.get("mistake") else ""
            number = ALL_STEPS.index(step) + 1
            lines.append(f"  {number:>2}  {state['status']:<11}  {step.id:<33}{place}{mistake}".rstrip())
    lines += ["", "Milestones"]
    for number, one in enumerate(milestones, first):
        words = f"reached {one.since}" if one.reached else f"not yet: {one.reason}"
        if one.since and not one.reached:
            words = f"was reached {one.since}; not by the file as it is: {one.reason}"
        lines.append(f"  {number:>2}  {one.name:<24} {words}")
    return "\n".join(lines[1:])


class Session:
    """The workshop, and a judge that is started when it is first needed."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.second = Workshop(shop.folder, SECOND_ROUND, shop.notes)
        self.court: Judge | None = None
        self.unjudged: dict[str, Verdict] = {}  # why there is no verdict on a step

    def close(self) -> None:
        """Stop the judge and its process."""
        if self.court is not None:
            self.court.close()

    def shop_of(self, step: Step) -> Workshop:
        """The round that a step belongs to, as a workshop."""
        return self.second if round_of(step) is SECOND_ROUND else self.shop

    def begun(self) -> list[Workshop]:
        """The rounds that have a file."""
        return [shop for shop in (self.shop, self.second) if shop.file.is_file()]

    def judge(self, steps: Sequence[Step], file: Path | None = None) -> Iterator[Verdict]:
        """Judge steps of the learner's files and remember the verdicts, or of another file and do not."""
        if self.court is None:
            self.court = Judge()
        for shop in (self.shop, self.second):
            path, chosen = file or shop.file, [step.id for step in steps if step in shop.round.steps]
            for verdict in self.court.judge(shown(path), chosen) if chosen else ():
                given = verdict.to_json()
                if path.resolve() == shop.file.resolve():
                    shop.record([given])
                    if given["status"] == "not judged":
                        self.unjudged[given["step"]] = given
                yield given

    def outdated(self, shop: Workshop | None = None) -> list[Step]:
        """The written steps, of one round or all that are begun, whose verdict no longer holds."""
        found: list[Step] = []
        for one in [shop] if shop else self.begun():
            try:
                standing = one.standing()
            except Unjudgeable:
                continue
            found += [step for step in one.round.steps if standing[step.id] is None]
        return found

    def start_rehearsal(
        self, trace: bool = False, quiet: bool = True, shop: Workshop | None = None
    ) -> Callable[[], Report]:
        """Begin a rehearsal; what is returned waits for its end, remembers the report and returns it."""
        shop = shop or self.shop
        key, second = shop.rehearsal_key(), shop is self.second
        running = Rehearsal.start(shop.file.resolve(), trace=trace, quiet=quiet, second=second)

        def finish() -> Report:
            report = running.finish()
            shop.record_rehearsal(report, key)
            return report

        return finish

    def catch_up(self) -> None:
        """Judge what is outdated, and rehearse where a file has changed since the last time."""
        waiting = [self.start_rehearsal(shop=shop) for shop in self.begun() if shop.rehearsal() is None]
        for _ in self.judge(changed) if (changed := self.outdated()) else ():
            pass
        for finish in waiting:
            finish()

    def tell_notes(self) -> None:
        """Print what the workshop wants to be known."""
        while self.shop.notes:
            print(f"warning: {self.shop.notes.pop(0)}", file=sys.stderr)


@dataclass(frozen=True)
class Run:
    """Rehearse the training up to the first gap, and judge what has changed."""

    no_trace: bool = flag(False, "do not print every call of the model")
    then_train: bool = flag(False, "status 0 wherever the training runs to its end")
    any_answer: bool = flag(False, "status 0 whatever the answer is")
    round: int = flag(0, "1 the model, 2 what trains it; 0: 2 if it is begun and 1 complete")


def run(session: Session, args: Run) -> int:
    """Rehearse the training and explain where it stops; judge what has changed. 0: all is well."""
    code = rehearse_and_judge(session, args)
    return 0 if args.any_answer else code


def round_to_run(session: Session, args: Run) -> Workshop:
    """The round that a run is about. Raises UserError for a number that is none."""
    if args.round not in (0, 1, 2):
        raise UserError(f"--round={args.round}: 1 is the model, 2 what trains it")
    if args.round or args.then_train:
        return session.second if args.round == 2 else session.shop
    complete = (
        session.shop.file.is_file()
        and session.second.file.is_file()
        and all(
            verdict and verdict["status"] == "passed" for verdict in readable_standing(session.shop).values()
        )
    )
    return session.second if complete else session.shop


def rehearse_and_judge(session: Session, args: Run) -> int:
    """What `run` does; 1 where something is missing or wrong."""
    shop = round_to_run(session, args)
    second = shop is session.second
    if shop.create():
        what = "the second round's skeleton" if second else "the model's skeleton"
        print(f"{shown(shop.file)} is yours now: {what}. It is never overwritten.")
    report = session.start_rehearsal(trace=not args.no_trace and not second, quiet=False, shop=shop)()
    if report.notes:
        print("\n".join(["", *(f"ran        {note}" for note in report.notes)]))
    print("\n" + describe_report(report, shop.file), flush=True)
    try:
        skeleton, learner = read_source(shop.skeleton), read_source(shop.file)
        changed = [step for step in session.outdated(shop) if not as_in(skeleton, learner, step)]
    except Unjudgeable:
        changed = []
    verdicts = list(session.judge(changed)) if changed else []
    if verdicts:
        print("\nchecked    what has changed since the last time:")
    for verdict in sorted(verdicts, key=lambda verdict: verdict["status"] == "passed"):
        print(describe_verdict(verdict, shop.file))
    standing = shop.standing() if report.stopped != "unreadable" else {}
    failing = [name for name, v in standing.items() if v and v["status"] in ("failed", "error")]
    if failing:
        print(
            f"\nbefore you go on: {', '.join(failing)} {'is' if len(failing) == 1 else 'are'} not right yet"
        )
    if report.stopped:
        return 1
    if args.then_train:
        return 0
    if not second:
        print(WHAT_NEXT)
    return 1 if failing else 0


def as_in(skeleton: Source, learner: Source, step: Step) -> bool:
    """Whether a function still stands as the skeleton has it."""
    here, there = learner.find(step.id), skeleton.find(step.id)
    return here is not None and there is not None and ast.dump(here) == ast.dump(there)


@dataclass(frozen=True)
class Check:
    """Judge the steps that are named, or all of them."""

    step: str = flag("", WHICH_STEP, positional=True)
    file: str = flag("", "another file than yours; nothing is remembered")
    json: bool = flag(False, "for programs")


def check(session: Session, args: Check) -> int:
    """Judge the steps that are named, or all of the rounds that are begun. 0: every one passes."""
    other = Path(args.file) if args.file else None
    steps = (
        select(args.step)
        if args.step
        else list(round_of_file(other).steps)
        if other
        else steps_begun(session)
    )
    for file in [other] if other else dict.fromkeys(session.shop_of(step).file for step in steps):
        if not file.is_file():
            wanted = "--file wants a Python file" if other else skeleton_comes(session, file)
            raise UserError(f"{shown(file)} {'is no file' if file.exists() else 'does not exist'}; {wanted}")
    counts: Counter[str] = Counter()
    before = ""
    for verdict in session.judge(steps, other):
        file = other or session.shop_of(step_named(verdict["step"])).file
        if not args.json and not counts and session.court is not None and session.court.arrival.printed:
            print("import  the file printed:")
            print("\n".join(paragraph(session.court.arrival.printed, "        | ")))
        text = describe_verdict(verdict, file)
        head, _, reasons = text.partition("\n")
        if verdict["status"] == "not judged" and reasons == before:
            text = f"{head}, as above"
        before = reasons
        print(json.dumps(verdict) if args.json else text, flush=True)
        counts[verdict["status"]] += 1
    if not args.json and len(steps) > 1:
        print(f"\n{', '.join(f'{count} {status}' for status, count in counts.most_common())}")
    return 0 if counts["passed"] == len(steps) else 1


def steps_begun(session: Session) -> list[Step]:
    """The steps of all rounds that have a file; the first round's where none has."""
    return [step for shop in session.begun() or [session.shop] for step in shop.round.steps]


def skeleton_comes(session: Session, file: Path) -> str:
    """Which command makes a learner's file."""
    return f"make learn{' ROUND=2' if file == session.second.file else ''} puts a skeleton there"


@dataclass(frozen=True)
class Status:
    """Compute and show phases, steps and milestones."""

    json: bool = flag(False, "for programs")


def status(session: Session, args: Status) -> int:
    """Compute and show phases, steps and milestones."""
    require_some_file(session)
    session.catch_up()
    standing: dict[str, Verdict | None] = {}
    milestones: list[Milestone] = []
    texts = []
    for shop in session.begun():
        own = {
            name: verdict or session.unjudged.get(name) for name, verdict in readable_standing(shop).items()
        }
        reached = shop.milestones()
        first = 1 + (len(MILESTONES) if shop is session.second else 0)
        texts.append(describe_standing(own, reached, shop.file, shop.round, first))
        standing |= own
        milestones += reached
    if args.json:
        print(json.dumps({"steps": standing, "milestones": [asdict(one) for one in milestones]}, indent=1))
        return 0
    for verdict in list(session.unjudged.values())[:1]:
        print(f"nothing is judged: {verdict['difference']}\n")
    print("\n\n".join(texts))
    if session.second not in session.begun():
        print(f"\nThe second round, {len(SECOND_ROUND.steps)} more steps, is not begun: make learn ROUND=2")
    return 0


def require_some_file(session: Session) -> None:
    """Raise UserError if there is nothing to work on."""
    if not session.begun():
        require_file(session.shop)


def require_file(shop: Workshop) -> None:
    """Raise UserError if a round has no file yet."""
    if not shop.file.is_file():
        again = "" if shop.round is FIRST_ROUND else " ROUND=2"
        raise UserError(f"{shown(shop.file)} does not exist; make learn{again} puts a skeleton there")


def readable_standing(shop: Workshop) -> dict[str, Verdict | None]:
    """The standing of all steps of a round. Raises UserError if the file cannot be read."""
    try:
        return shop.standing()
    except Unjudgeable as reason:
        raise UserError(str(reason)) from None


TIERS = ("question", "pointer", "plan in words")


@dataclass(frozen=True)
class Hint:
    """Show the next tier of a step's hints."""

    step: str = flag(REQUIRED, WHICH_STEP, positional=True)
    tier: int | None = flag(None, "1 question, 2 pointer, 3 plan")


def hint(session: Session, args: Hint) -> int:
    """Show the next tier of a step's hints, or the one that is asked for if those before it were shown."""
    step = select_one(args.step)
    shown_before = session.shop.recall()["hints"].get(step.id, 0)
    tier = min(shown_before + 1, len(TIERS)) if args.tier is None else args.tier
    if not 1 <= tier <= len(TIERS):
        raise UserError(f"--tier={tier}: there are {len(TIERS)}: {', '.join(TIERS)}")
    if tier > shown_before + 1:
        raise UserError(
            f"--tier={tier} of {step.id} opens after tier {tier - 1}: python -m scripts.learn hint {step.id}"
        )
    session.shop.remember(lambda ledger: ledger["hints"].update({step.id: max(tier, shown_before)}))
    print(f"{step.id}, hint {tier} of {len(TIERS)}: the {TIERS[tier - 1]}\n")
    print("\n".join(paragraph(step.hints[tier - 1], "  ")))
    if tier < len(TIERS):
        print(f"\nNext, the {TIERS[tier]}: python -m scripts.learn hint {step.id} --tier={tier + 1}")
    else:
        section = section_of(step, ROOT / "lit")
        place = f"{shown(section.path)}:{section.line}" if section else step.chapter
        print(f"\nThere are no more. The section that explains it: {place}")
    return 0


@dataclass(frozen=True)
class Solution:
    """Show the book's version of a step that passes."""

    step: str = flag(REQUIRED, WHICH_STEP, positional=True)


def solution(session: Session, args: Solution) -> int:
    """Show the book's version of a step that passes."""
    step = select_one(args.step)
    require_passed(session, step, "The book's version is shown")
    book = read_source(home_of(step))
    section = section_of(step, ROOT / "lit")
    if section:
        print(f"{shown(section.path)}:{section.line}, {section.heading}\n")
    print(textwrap.dedent("\n".join(lines_of(book, step))))
    return 0


def require_passed(session: Session, step: Step, what: str) -> None:
    """Raise UserError unless the step passes as the file is now."""
    if not has_passed(session, step):
        raise UserError(
            f"{what} once {step.id} passes: python -m scripts.learn check {step.id}"
            f" (a hint: python -m scripts.learn hint {step.id})"
        )


def has_passed(session: Session, step: Step) -> bool:
    """Whether a step passes, judging it if its verdict is outdated."""
    shop = session.shop_of(step)
    require_file(shop)
    verdict = readable_standing(shop)[step.id]
    if verdict is None:
        verdict = next(iter(session.judge([step])))
    return bool(verdict["status"] == "passed")


def lines_of(source: Source, step: Step) -> list[str]:
    """The lines of a function with its decorators, as they stand in the file."""
    first, last = source.segment(step.id)
    return source.text.split("\n")[first - 1 : last]


@dataclass(frozen=True)
class Diff:
    """Compare your functions with the skeleton's, or with the book's where they pass."""

    step: str = flag("", WHICH_STEP, positional=True)


def diff(session: Session, args: Diff) -> int:
    """Compare the learner's functions with the skeleton's, or with the book's where they pass."""
    if not args.step:
        require_some_file(session)
        for shop in session.begun():
            if not [step for step in shop.round.steps if show_difference(session, step, quietly=True)]:
                print(f"{shown(shop.file)} is the skeleton")
        return 0
    for step in select(args.step):
        show_difference(session, step)
    return 0


def show_difference(session: Session, step: Step, quietly: bool = False) -> bool:
    """Print how a function differs, and return whether it is no longer the skeleton's."""
    shop = session.shop_of(step)
    require_file(shop)
    readable_standing(shop)
    learner, skeleton = read_source(shop.file), shop.skeleton
    if learner.find(step.id) is None:
        print(f"{step.id} is not in {shown(shop.file)}")
        return False
    if as_in(read_source(skeleton), learner, step):
        if not quietly:
            print(f"{step.id} is as in the skeleton")
        return False
    other = home_of(step) if has_passed(session, step) else skeleton
    theirs, mine = lines_of(read_source(other), step), lines_of(learner, step)
    names = f"{shown(other)}, {step.id}", f"{shown(shop.file)}, {step.id}"
    lines = list(difflib.unified_diff(theirs, mine, *names, lineterm=""))
    print("\n".join(lines) if lines else f"{step.id} is written as in the book, letter by letter")
    return True


@dataclass(frozen=True)
class Reset:
    """Put the skeleton back for some steps, or altogether, after keeping a dated copy of the file."""

    step: str = flag("", WHICH_STEP, positional=True)
    all: bool = flag(False, "the whole file")
    round: int = flag(1, "with --all: whose file, 1 the model's, 2 the second round's")


def reset(session: Session, args: Reset) -> int:
    """Put the skeleton back for some steps, or altogether, after keeping a dated copy of the file."""
    if bool(args.step) == args.all:
        raise UserError("reset needs a STEP, or --all for the whole file")
    if args.round not in (1, 2):
        raise UserError(f"--round={args.round}: 1 is the model, 2 what trains it")
    steps = [] if args.all else select(args.step)
    shop = session.shop_of(steps[0]) if steps else session.second if args.round == 2 else session.shop
    if any(round_of(step) is not shop.round for step in steps):
        raise UserError(f"{args.step} is steps of both rounds, in two files; name one of them")
    require_file(shop)
    skeleton = read_source(shop.skeleton)
    if args.all:
        text, what = skeleton.text, "the whole file"
    else:
        try:
            text = read_source(shop.file).text
            for step in steps:
                text = exchange(Source(shown(shop.file), text), skeleton, step)
        except Unjudgeable as reason:
            raise UserError(f"{reason} (reset --all puts the whole skeleton back)") from None
        what = ", ".join(step.id for step in steps)
    kept = shop.keep_a_copy()
    write_atomically(shop.file, text)
    print(f"{what} is as in the skeleton again; the file as it was is kept in {shown(kept)}")
    return 0


def exchange(learner: Source, skeleton: Source, step: Step) -> str:
    """The learner's text with one function as the skeleton has it. Raises UserError if there is none."""
    try:
        first, last = learner.segment(step.id)
    except KeyError:
        raise UserError(
            f"{learner.path} has no {step.id} to reset; reset --all puts everything back"
        ) from None
    lines = learner.text.split("\n")
    return "\n".join([*lines[: first - 1], *lines_of(skeleton, step), *lines[last:]])


@dataclass(frozen=True)
class Watch:
    """Check what has changed whenever your file is saved, until Ctrl-C."""

    interval: float = flag(0.3, "seconds between looks")


def watch(session: Session, args: Watch) -> int:
    """Check what has changed whenever a file of the learner's is saved, until Ctrl-C."""
    require_some_file(session)
    print(
        f"watching {' and '.join(shown(shop.file) for shop in session.begun())}; Ctrl-C ends it", flush=True
    )
    seen: dict[int, object] = {}
    while True:
        for shop in (session.shop, session.second):
            now = state_of(shop.file)
            if now != seen.get(shop.round.number) and now is not None:
                seen[shop.round.number] = now
                look_again(session, shop)
        session.tell_notes()
        time.sleep(args.interval)


def state_of(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is saved; None while an editor is replacing it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def look_again(session: Session, shop: Workshop) -> None:
    """Judge what is outdated in a round, and say what is left."""
    try:
        shop.standing()
    except Unjudgeable as reason:
        print(f"{reason}", flush=True)
        return
    changed = session.outdated(shop)
    for verdict in session.judge(changed) if changed else ():
        print(describe_verdict(verdict, shop.file), flush=True)
    standing = readable_standing(shop)
    counts = Counter(verdict["status"] if verdict else "changed again" for verdict in standing.values())
    print(
        f"{time.strftime('%H:%M:%S')}  {', '.join(f'{n} {status}' for status, n in counts.most_common())}",
        flush=True,
    )


@dataclass(frozen=True)
class GradeFiles:
    """Judge all files of a folder, each by itself, and write grades.csv and grades.md into it."""

    folder: str = flag("", "the folder with learners' files, or with a folder for each", positional=True)


def grade(session: Session, args: GradeFiles) -> int:
    """Judge every file, say how far each is, and write the table. 0: all were judged."""
    folder = Path(args.folder)
    if not args.folder or not folder.is_dir():
        raise UserError(f"grade wants a folder of learners' files; {args.folder or 'nothing'} is none")
    grades = []
    for one in grade_folder(folder):
        row = one.row()
        print(f"{row['passed']:>2} of {len(STEPS)}  {one.name}  {row['why not judged']}".rstrip(), flush=True)
        grades.append(one)
    made = write_tables(grades, folder / "grades")
    print(f"wrote {' and '.join(shown(path) for path in made)}")
    return 0 if all(row["not judged"] == "0" for row in (one.row() for one in grades)) else 1


COMMANDS: dict[str, tuple[type, Callable[[Session, Any], int]]] = {
    "run": (Run, run),
    "check": (Check, check),
    "status": (Status, status),
    "hint": (Hint, hint),
    "solution": (Solution, solution),
    "diff": (Diff, diff),
    "reset": (Reset, reset),
    "watch": (Watch, watch),
    "grade": (GradeFiles, grade),
}


def parse(argv: Sequence[str]) -> Any:
    """The flags of the command that was given, or of `run`; a wrong command line ends the program."""
    kinds = {name: kind for name, (kind, _) in COMMANDS.items()}
    return parse_command(kinds, argv or ["run"], "python -m scripts.learn", "Rewrite the GPT.")


def execute(argv: Sequence[str], session: Session) -> int:
    """One command; returns its exit status: 0 well, 1 something is missing or wrong. Raises UserError."""
    args = parse(argv)
    obey = next(function for kind, function in COMMANDS.values() if kind is type(args))
    try:
        return obey(session, args)
    except (OSError, UserError) as error:
        if text := refused_by_system(error, session.shop.folder):
            raise UserError(text) from error
        raise
    finally:
        session.tell_notes()


def refused_by_system(error: Exception, folder: Path) -> str | None:
    """What to do about an error, if it says that the workshop's folder cannot be written to."""
    cause = error if isinstance(error, OSError) else error.__cause__
    if not isinstance(cause, OSError):
        return None
    folder = folder.absolute()
    if cause.filename:
        place = Path(os.fsdecode(cause.filename)).absolute()
        if not (place.is_relative_to(folder) or folder.is_relative_to(place)):
            return None
    elif cause.errno not in (errno.ENOSPC, errno.EDQUOT):  # a full disk names no file
        return None
    return (
        f"{shown(folder)}, where your file and its log live, cannot be written to: {cause.strerror}. Make "
        "room or mend its permissions, or name another folder: NANOCHAT_WORKSHOP=/path/to/one make learn"
    )


def main() -> None:
    """Read the command line and obey; a wrong command ends with status 2."""
    session = Session(Workshop(workshop_folder()))
    try:
        code = execute(sys.argv[1:], session)
    finally:
        session.close()
    sys.exit(code)


if __name__ == "__main__":
    run_program(main)
