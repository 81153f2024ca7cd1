"""The canonical allotment of moldable work: every clip on the fewest GPU-seconds that finish it within a guess of the makespan.

The smallest guess for which all clips fit the ranks is a lower bound of any schedule (Turek, Wolf and Yu 1992; Ludwig and
Tiwari 1994: more ranks make a clip neither slower nor cheaper), and the widths at that guess are where a good schedule starts.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from orchestrator.sizing import Choice

TOLERANCE = 1e-4
"""Of the makespan: a better answer than any cost model deserves."""


@dataclass(frozen=True, slots=True)
class Option:
    """One way to run some stages of a clip: a width for each, and what they come to."""

    widths: tuple[int, ...]
    seconds: float
    gpu_s: float


@dataclass(frozen=True)
class Frontier:
    """The ways of which no other is both faster and cheaper, fewest GPU-seconds (and so the slowest) first."""

    options: tuple[Option, ...]

    @property
    def cheapest(self) -> Option:
        return self.options[0]

    @property
    def fastest(self) -> Option:
        return self.options[-1]

    @cached_property
    def _speeds(self) -> list[float]:
        return [-option.seconds for option in self.options]

    def within(self, seconds: float) -> Option:
        """The cheapest that takes no longer; the fastest when every one does."""
        return self.options[min(bisect.bisect_left(self._speeds, -seconds), len(self.options) - 1)]


def frontier(stages: Sequence[Sequence[Choice]]) -> Frontier:
    """Of every combination of the stages' options. Raises ValueError for a stage without any."""
    if not all(stages):
        raise ValueError(f"stage {next(n for n, options in enumerate(stages) if not options) + 1} has no width to choose from")
    ways = [
        Option(tuple(c.width for c in clip), sum(c.stage_s for c in clip), sum(c.gpu_s for c in clip))
        for clip in itertools.product(*stages)
    ]
    kept: list[Option] = []
    for way in sorted(ways, key=lambda way: (way.gpu_s, way.seconds)):
        if not kept or way.seconds < kept[-1].seconds:
            kept.append(way)
    return Frontier(tuple(kept))


def makespan_s(work: Iterable[tuple[Frontier, float]], num_ranks: int, busy_s: float = 0.0) -> float:
    """The least makespan that the canonical allotment allows ``(frontier, how many clips)`` on ``num_ranks`` ranks.

    ``busy_s`` are GPU-seconds that the ranks are already promised to. A lower bound of every schedule that starts now.
    Raises ValueError without a rank.
    """
    if num_ranks < 1:
        raise ValueError(f"{num_ranks} ranks cannot run anything; give at least 1")
    clips = [(ways, number) for ways, number in work if number > 0]
    least_s = max((ways.fastest.seconds for ways, _ in clips), default=0.0)
    low = max(least_s, (busy_s + sum(number * ways.cheapest.gpu_s for ways, number in clips)) / num_ranks)
    if _gpu_s(clips, low, busy_s) <= low * num_ranks:
        return low
    high = max(low, (busy_s + sum(number * ways.fastest.gpu_s for ways, number in clips)) / num_ranks)
    while high - low > TOLERANCE * high:
        guess = (low + high) / 2
        low, high = (low, guess) if _gpu_s(clips, guess, busy_s) <= guess * num_ranks else (guess, high)
    return low


def _gpu_s(clips: Sequence[tuple[Frontier, float]], makespan: float, busy_s: float) -> float:
    return busy_s + sum(number * ways.within(makespan).gpu_s for ways, number in clips)
