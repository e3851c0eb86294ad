"""Effects of paired differences over seeds and speeches, tests, verdicts, and a simulation of all of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from statsmodels.stats.multitest import multipletests

from nanochat.common import run_program, write_atomically
from nanochat.evidence.simulated import tables
from nanochat.provenance import ROOT

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A mean effect with its standard error, each a number or an array of them."""

    mean: Any
    error: Any
    freedom: int

    def interval(self, level: float = 0.95) -> tuple[Any, Any]:
        """The interval of Student's t around the mean."""
        half = stats.t.ppf((1 + level) / 2, self.freedom) * self.error
        return self.mean - half, self.mean + half


def estimate(differences: Floats) -> Estimate:
    """The mean of differences (…, seeds, speeches); its error adds what seeds and what speeches contribute.

    With one speech, only seeds contribute. Two-way clustered: Cameron, Gelbach and Miller 2011, without the
    term that is subtracted there, which makes the error larger and never negative (Davezies et al. 2021).
    """
    seeds, speeches = differences.shape[-2:]
    error, counts = stats.sem(differences.mean(axis=-1), axis=-1), [seeds]
    if speeches > 1:
        error = np.hypot(error, stats.sem(differences.mean(axis=-2), axis=-1))
        counts.append(speeches)
    return Estimate(differences.mean(axis=(-2, -1)), error, min(counts) - 1)


def p_difference(found: Estimate, null: float = 0.0) -> Any:
    """The two-sided p of no effect."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.abs(found.mean - null) / found.error
    return 2 * stats.t.sf(np.nan_to_num(t, nan=0.0, posinf=np.inf), found.freedom)


def p_equivalence(found: Estimate, margin: float, null: float = 0.0) -> Any:
    """The larger p of two one-sided tests that the effect is at least the margin (Schuirmann 1987)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = (margin - np.abs(found.mean - null)) / found.error
    return stats.t.sf(np.nan_to_num(t, nan=0.0, posinf=np.inf, neginf=-np.inf), found.freedom)


def holm(values: Sequence[float]) -> list[float]:
    """The p values corrected by Holm's method, so that all of them together err at the level of one."""
    return [float(p) for p in multipletests(values, method="holm")[1]] if len(values) else []


def verdict(mean: float, different: float, equivalent: float, level: float, seen: bool = True) -> str:
    """What corrected p values allow to say of an effect; `seen`: whether the control was seen there.

    An effect that is certain and yet smaller than the margin is called equivalent.
    """
    if not seen and (equivalent <= level or different > level):
        return "could not have been seen"
    if equivalent <= level:
        return "equivalent within the margin"
    if different <= level:
        return "worse" if mean > 0 else "better"
    return "not determined"


@dataclass(frozen=True)
class World:
    """What the simulation assumes: spreads of one arm, in bits per byte, and the sizes of true effects."""

    comparisons: int = 26
    seeds: int = 10
    speeches: int = 12
    of_seeds: float = 0.003  # how an arm's luck differs from seed to seed, beyond what the pairs share
    of_speeches: float = 0.003  # from speech to speech
    of_both: float = 0.006  # from speech to speech within a seed
    margin: float = 0.01
    control: float = -0.008  # what a tenth more steps bring

    def differences(self, runs: int, effects: Floats, rng: np.random.Generator) -> Floats:
        """Differences (runs, comparisons, seeds, speeches) between arms and one book's model, as measured."""
        shape = (runs, len(effects) + 1)
        noise = rng.normal(0, self.of_seeds, (*shape, self.seeds, 1))
        noise = noise + rng.normal(0, self.of_speeches, (*shape, 1, self.speeches))
        noise = noise + rng.normal(0, self.of_both, (*shape, self.seeds, self.speeches))
        return np.asarray(noise[:, 1:] - noise[:, :1] + effects[:, None, None])


def simulate(world: World, runs: int, seed: int = 0, level: float = 0.05) -> dict[str, float]:
    """How often the procedure errs and finds, over `runs` made-up books.

    "false difference": at least one of the comparisons without an effect is called better or worse.
    "false equivalence": at least one with an effect as large as the margin is called equivalent.
    Holm's method finds something exactly where Bonferroni's does, so these two need the smallest p only;
    "equivalence found" is Bonferroni's, of which Holm finds at least as many.
    """
    rng, bound = np.random.default_rng(seed), level / world.comparisons
    found: dict[str, list[Any]] = {}
    for start in range(0, runs, 200):
        size = min(200, runs - start)
        effects = np.zeros(world.comparisons + 1)
        effects[-1] = world.control
        null = estimate(world.differences(size, effects, rng))
        edge = estimate(world.differences(size, np.full(world.comparisons, world.margin), rng))
        low, high = (end[:, :-1] for end in null.interval(1 - level))
        different, same = p_difference(null), p_equivalence(null, world.margin)[:, :-1]
        rates = {
            "false difference": (different[:, :-1] <= bound).any(axis=1),
            "false equivalence": (p_equivalence(edge, world.margin) <= bound).any(axis=1),
            "control seen": (different[:, -1] <= level) & (null.mean[:, -1] < 0),
            "equivalence found": same <= bound,
            "interval covers": (low <= 0) & (high >= 0),
        }
        for name, values in rates.items():
            found.setdefault(name, []).append(values)
    return {name: float(np.concatenate(values).mean()) for name, values in found.items()}


def lowest_point(points: list[tuple[float, float]]) -> float:
    """Where a parabola through the lowest of evenly spaced points and its neighbours is lowest."""
    lowest = min(range(len(points)), key=lambda i: points[i][1])
    if lowest in (0, len(points) - 1):
        return points[lowest][0]
    (left, a), (middle, b), (_, c) = points[lowest - 1 : lowest + 2]
    return middle + (middle - left) * (a - c) / (2 * (a - 2 * b + c))


def exponent(points: dict[int, list[tuple[float, float]]]) -> float:
    """The power of the width in the best rate: points give, for each width, (rate, loss)."""
    widths = sorted(points)
    best = [lowest_point(sorted((math.log(rate), loss) for rate, loss in points[width])) for width in widths]
    return float(stats.linregress([math.log(width) for width in widths], best).slope)


RECORD = ROOT / "results" / "evidence-simulation.json"


def main() -> None:
    """Simulate 2,000 books and write results/evidence-simulation.json."""
    world = World()
    record = {"format": 1, "runs": 2000, "world": asdict(world), "rates": simulate(world, 2000)}
    write_atomically(RECORD, json.dumps(record, indent=1) + "\n")
    print(tables(record))


if __name__ == "__main__":
    run_program(main)
