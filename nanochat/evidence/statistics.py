"""Intervals for paired differences, and what may be said of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev


def share_inside(t: float, freedom: int) -> float:
    """The probability that Student's t with this many degrees of freedom lies between -t and t."""
    angle = math.atan(t / math.sqrt(freedom))
    total, term = 0.0, math.cos(angle) if freedom % 2 else 1.0
    for k in range(freedom % 2, freedom, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k + 1) / (k + 2)
    if freedom % 2:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total


def t_quantile(freedom: int, level: float = 0.95) -> float:
    """The t whose share_inside is `level`."""
    low, high = 0.0, 1e6
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if share_inside(middle, freedom) < level else (low, middle)
    return high


@dataclass(frozen=True)
class Interval:
    """A mean and the 95 % interval around it."""

    mean: float
    low: float
    high: float

    def side(self, null: float) -> int:
        """1 if all of the interval lies above `null`, -1 below, 0 if it covers it."""
        return (self.low > null) - (self.high < null)


def interval(values: Sequence[float]) -> Interval:
    """The t interval of the mean. Raises ValueError for fewer than two values."""
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, not {len(values)}; run more seeds")
    middle = mean(values)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(middle, middle - half, middle + half)


def verdict(found: Interval, null: float, claimed: str) -> str:
    """What may be said: `claimed` is "more", "less" or "same", or "" where nobody said anything before."""
    side = found.side(null)
    if side == 0:
        same = claimed == "same"
        exact = found.low == found.high
        return "exactly equal" if exact else "no effect at this scale" + (", as claimed" if same else "")
    if not claimed:
        return "a difference"
    wanted = {"more": 1, "less": -1, "same": 0}[claimed]
    return "as claimed" if side == wanted else "against the claim"
