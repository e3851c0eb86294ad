"""What is declared before anything is run: experiments as data, their checksums, their place in git's log.

Imports no PyTorch and no library of statistics, so that `make check` can look at declarations and records.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from nanochat.common import UserError, base_dir, nearest
from nanochat.evidence.settings import Setting, refuse_impossible
from nanochat.provenance import ROOT

FILE = "nanochat/evidence/declared.toml"
BPB = "bits per byte"
DEVICES = ("cpu", "cuda")
TAKE_AWAY = "Take it away. To run it again, first move the trials that are kept in"
WORDS = ("question", "answer", "claim")  # sentences: rewording them does not change what is run


@dataclass(frozen=True)
class Axis:
    """Fields of a Setting that are tuned together, and the values that are tried, in rising order."""

    fields: tuple[str, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Arm:
    """A variation of the book's model and the axes along which its rates are tuned, one after the other."""

    name: str
    changes: dict[str, Any]
    axes: tuple[Axis, ...]
    sizes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """An arm against the book's model, in one quantity, with what is expected and what would matter."""

    about: str
    arm: str
    expected: str  # better, worse or equivalent
    margin: float  # bits per byte; of a ratio's distance from 1; of an exponent
    quantity: str = BPB  # or "decoding, ms" (a ratio) or "exponent"
    equal: str = "tokens"  # or "time"
    times: dict[str, float] = field(default_factory=dict)  # factors on tuned rates, of both sides
    null: float = 0.0  # what no effect would be, of an exponent
    sizes: tuple[str, ...] = ()  # () for all of the experiment's


@dataclass(frozen=True)
class Experiment:
    """A question, the arms that are run to answer it, and the comparisons that do."""

    name: str
    question: str
    answer: str  # chapter#heading
    claim: str
    checksum: str
    base: dict[str, Any] = field(default_factory=dict)  # changes common to all arms
    arms: tuple[Arm, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    sizes: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()
    sweep: Axis | None = None
    tests: tuple[str, ...] = ()  # identities, which tests show

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def compared(self, size: str) -> list[Comparison]:
        """The comparisons that are made at a size."""
        found = []
        for one in self.comparisons:
            allowed = self.arm(one.arm).sizes if one.arm else self.sizes
            if size in (one.sizes or self.sizes) and size in allowed:
                found.append(one)
        return found


@dataclass(frozen=True)
class Rules:
    """What all experiments have in common."""

    declared: str  # the day
    level: float
    tuning_seeds: tuple[int, ...]
    fresh_seeds: tuple[int, ...]
    control_steps: float
    extensions: int
    axes: tuple[Axis, ...]
    sizes: dict[str, dict[str, Any]]
    on_cuda: dict[str, str]

    def setting(self, size: str, device: str, changes: dict[str, Any]) -> Setting:
        """The book's model of a size with changes; on CUDA the size that takes its place.

        Raises UserError for changes that make no model.
        """
        size = self.on_cuda[size] if device == "cuda" else size
        return refuse_impossible(Setting(**(self.sizes[size] | changes)))


@dataclass(frozen=True)
class Declaration:
    """The whole file."""

    protocol: Rules
    experiments: tuple[Experiment, ...]

    def experiment(self, name: str) -> Experiment:
        """The experiment of this name. Raises UserError, suggesting the nearest, if there is none."""
        names = [one.name for one in self.experiments]
        if name not in names:
            hint = nearest(name, names)
            raise UserError(f"there is no experiment {name!r}{hint} (there are {', '.join(names)})")
        return self.experiments[names.index(name)]


def read_declaration(root: Path = ROOT) -> Declaration:
    """What is declared in the project at `root`. Raises UserError if the file cannot be read."""
    path = root / FILE
    try:
        return declaration_of(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{FILE} cannot be read ({reason}): write it again with make tangle") from None


def declaration_of(text: str) -> Declaration:
    """The declaration that a text contains."""
    said = tomllib.loads(text)
    common = dict(said["protocol"])
    common.pop("not_determined")
    usual = {name: axis_of(values) for name, values in common.pop("axes").items()}
    protocol = Rules(axes=tuple(usual.values()), **listless(common))
    sums = checksums(said)
    experiments = tuple(experiment_of(one, usual, sums[one["name"]]) for one in said["experiment"])
    return Declaration(protocol, experiments)


def experiment_of(said: dict[str, Any], usual: dict[str, Axis], checksum: str) -> Experiment:
    """One experiment, its arms with the usual axes where they have none of their own."""
    said = dict(said)
    sizes = tuple(said.get("sizes", ()))
    arms = []
    for arm in said.pop("arm", ()):
        axes = usual | {name: axis_of(values) for name, values in arm.get("axes", {}).items()}
        own = tuple(arm.get("sizes", sizes))
        arms.append(Arm(arm["name"], arm["changes"], tuple(axes.values()), own))
    compared = [Comparison(**listless(one)) for one in said.pop("comparison", ())]
    sweep = axis_of(said.pop("sweep")) if "sweep" in said else None
    rest = listless(said)
    return Experiment(checksum=checksum, arms=tuple(arms), comparisons=tuple(compared), sweep=sweep, **rest)


def axis_of(values: dict[str, Any]) -> Axis:
    """An axis from its table."""
    return Axis(**listless(values))


def listless(values: dict[str, Any]) -> dict[str, Any]:
    """The values with tuples for lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def checksums(said: dict[str, Any]) -> dict[str, str]:
    """For each experiment a checksum of all that is declared about it, the common part included."""
    found = {}
    for one in said["experiment"]:
        about = {name: value for name, value in one.items() if name not in WORDS}
        text = json.dumps([said["protocol"], about], sort_keys=True, ensure_ascii=False)
        found[one["name"]] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return found


def git(root: Path, *words: str) -> str | None:
    """What git says, or None where there is no git or it refuses."""
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


def commits_of(root: Path, path: str) -> list[str]:
    """The commits that changed a file, newest first; none without git."""
    return (git(root, "log", "--topo-order", "--format=%H", "--", path) or "").split()


def declared_at(root: Path, one: Experiment) -> str | None:
    """The commit since which an experiment is declared as it is now, or None: in no commit, or no git."""
    since = None
    for commit in commits_of(root, FILE):
        text = git(root, "show", f"{commit}:{FILE}") or ""
        try:
            then = checksums(tomllib.loads(text)).get(one.name)
        except (ValueError, KeyError):
            break
        if then != one.checksum:
            break
        since = commit
    return since


def too_old(root: Path, one: Experiment, record: dict[str, Any], path: str) -> str | None:
    """How a record comes before the declaration that it claims to test; None if it does not."""
    if record["declaration"] != one.checksum:
        return None  # then it is stale, and says so itself
    started = record["started"]
    if started[:10] < record["declared"]:
        return f"it was begun on {started[:10]}, before the declaration of {record['declared']}"
    if (git(root, "rev-parse", "--is-shallow-repository") or "").strip() != "false":
        return None  # no git, or only the end of its history: the dates have to do
    since = declared_at(root, one)
    holding = [c for c in commits_of(root, path) if in_commit(root, c, path, one.checksum, started)]
    if since is None:
        return "its declaration is in no commit" if holding else None
    written = int(git(root, "log", "-1", "--format=%at", since) or 0)
    if datetime.fromisoformat(started).timestamp() < written:
        return f"its first trial began at {started}, before its declaration was written in {since[:10]}"
    order = (git(root, "rev-list", "--topo-order", "HEAD") or "").split()
    if not holding or order.index(since) > order.index(holding[-1]):
        return None  # not committed yet, or after its declaration
    return f"it was committed in {holding[-1][:10]}, not after its declaration in {since[:10]}"


def record_name(one: Experiment, device: str = "cpu") -> str:
    """Where the record of a declared experiment is kept, below the project's folder."""
    return f"results/declared-{one.name}{'-cuda' if device == 'cuda' else ''}.json"


def refused_records(root: Path = ROOT) -> list[str]:
    """A line for each record that is damaged or older than its declaration: what `make check` refuses."""
    lines = []
    experiments = read_declaration(root).experiments
    for one, name in ((one, record_name(one, device)) for one in experiments for device in DEVICES):
        path = root / name
        if not path.exists():
            continue
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            reason = too_old(root, one, record, name)
            advice = f"{TAKE_AWAY} {base_dir() / 'evidence'} elsewhere"
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"it is damaged ({type(error).__name__}: {str(error).splitlines()[0]})"
            advice = "Bring it back with git, or run it again"
        if reason:
            lines.append(f"{name} is no evidence: {reason}. {advice}")
    return lines


def in_commit(root: Path, commit: str, path: str, *words: str) -> bool:
    """Whether a file held all of these words in a commit."""
    text = git(root, "show", f"{commit}:{path}") or ""
    return all(word in text for word in words)
