"""How sure a difference between two arms is. Pure numpy, and the same figures on every call.

Prompts are what is sampled: seeds of one prompt resemble each other and stay together in every resample (cluster
bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8). Intervals are percentiles,
taken further out for few prompts (expanded percentile interval: Hesterberg, What Teachers Should Know About the Bootstrap,
2015, section 5.1).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal

import numpy as np

Values = Mapping[tuple[str, int], float]
"""A metric of one arm, by prompt and seed; all finite."""

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95
FEW_PROMPTS = 6
"""Below this many prompts no resampling gives an interval that is wide enough; worth telling."""

_SEED = 20_260_101
_AT_ONCE = 100
"""Resamples cast to float64 together: bounds memory."""


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval, which holds it; no interval (None) for fewer than two prompts."""

    mean: float
    low: float | None
    high: float | None
    n: int
    """Videos, or pairs of videos."""
    num_prompts: int

    def excludes(self, value: float) -> bool:
        """Whether the interval leaves ``value`` out: 0 of a difference, 1 of a ratio. False without an interval."""
        return self.low is not None and self.high is not None and not self.low <= value <= self.high


@dataclass(frozen=True)
class Paired(Estimate):
    """Mean of ``a - b`` over the prompts and seeds that both have."""

    win_rate: float
    """Share of pairs in which ``a`` is the better one; ties count half."""


def paired(a: Values, b: Values, better: Literal["higher", "lower"] = "higher") -> Paired | None:
    """``a`` against ``b``, prompt by prompt and seed by seed; None when they have none in common."""
    keys = sorted(a.keys() & b.keys())
    if not keys:
        return None
    differences = np.array([a[key] - b[key] for key in keys])
    wins = differences if better == "higher" else -differences
    found = _estimate(keys, differences, np.ones(len(keys)))
    return Paired(**vars(found), win_rate=float(np.mean((1 + np.sign(wins)) / 2)))


def mean_of(values: Values) -> Estimate | None:
    """The mean over videos; None without any."""
    keys = sorted(values)
    return _estimate(keys, np.array([values[key] for key in keys]), np.ones(len(keys))) if keys else None


def ratio(a: Values, b: Values) -> Estimate | None:
    """Sum of ``a`` over sum of ``b`` on what both have: a speedup, of seconds. None without a common pair or where ``b`` has
    a value that is not positive."""
    keys = sorted(a.keys() & b.keys())
    if not keys or min(b[key] for key in keys) <= 0:
        return None
    return _estimate(keys, np.array([a[key] for key in keys]), np.array([b[key] for key in keys]))


def _estimate(keys: Sequence[tuple[str, int]], above: np.ndarray, below: np.ndarray) -> Estimate:
    """Of ``sum(above) / sum(below)``, both [N] in the order of ``keys``."""
    _, prompt = np.unique([prompt for prompt, _ in keys], return_inverse=True)
    sums = np.stack([np.bincount(prompt, weights=weights) for weights in (above, below)], axis=1)
    sums = sums[np.lexsort(sums.T)]  # by value: what prompts are called changes nothing
    mean = float(sums[:, 0].sum() / sums[:, 1].sum())
    if len(sums) < 2:
        return Estimate(mean, None, None, len(keys), len(sums))
    tail = _tail(len(sums))
    low, high = np.quantile(np.concatenate(list(_resampled(sums))), (tail, 1 - tail))
    return Estimate(mean, min(float(low), mean), max(float(high), mean), len(keys), len(sums))


def _tail(num_prompts: int) -> float:
    """Share of resamples beyond each end: that of a normal beyond the t interval's ends, which allows for a spread that is
    itself an estimate. The t quantile is Abramowitz and Stegun's expansion 26.7.5."""
    z, freedom = -NormalDist().inv_cdf((1 - CONFIDENCE) / 2), num_prompts - 1
    t = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return NormalDist().cdf(-t * math.sqrt(num_prompts / freedom))


def _resampled(sums: np.ndarray) -> Iterator[np.ndarray]:
    """The figure of every resample of the prompts' sums [P, 2]."""
    counts = _counts(len(sums))
    for start in range(0, NUM_RESAMPLES, _AT_ONCE):
        above, below = (counts[start : start + _AT_ONCE].astype(np.float64) @ sums).T
        yield above / below


@lru_cache(maxsize=4)
def _counts(num_prompts: int) -> np.ndarray:
    """How often each resample draws each prompt: int16 [resamples, prompts]. Many metrics share it."""
    rng = np.random.default_rng(_SEED)
    counts = np.empty((NUM_RESAMPLES, num_prompts), np.int16)
    for row in counts:
        row[:] = np.bincount(rng.integers(0, num_prompts, num_prompts), minlength=num_prompts)
    return counts


def pareto(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which of the points (x: lower is better, y: higher is better) are on the front.

    A point is off it when another is at least as good in both and better in one, so equal points stay together; one with
    a NaN is never on it.
    """
    front = [False] * len(points)
    best = -math.inf
    order = sorted(
        (i for i, point in enumerate(points) if not any(map(math.isnan, point))), key=lambda i: (points[i][0], -points[i][1])
    )
    for position, index in enumerate(order):
        twin = position > 0 and points[order[position - 1]] == points[index]
        front[index] = front[order[position - 1]] if twin else position == 0 or points[index][1] > best
        best = max(best, points[index][1])
    return front
