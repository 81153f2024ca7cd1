"""When everything can be over: the least makespan that the work left allows, and how late each clip may end.

The canonical allotment (:mod:`orchestrator.allotment`) of all clips to go, with what comes before and after refining: sketches
that are still to be made, and decodes, which a pool of workers makes one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from orchestrator.allotment import Frontier
from orchestrator.books import Books, State
from orchestrator.forecast import Forecast
from orchestrator.split import DecodeOn

REPLAN = 0.01
"""Share of the open items that must have moved before it is looked at again."""
REFINING = 0.5
"""Weight of refining against decoding in the order of sketches. With none, arms of long clips and short decodes come late and
find no slice as wide as they need by then: 7.9 instead of 5.4 % over the bound on 256 pods with 4 clips a rank."""
TOLERANCE = 2e-3
"""Of the makespan."""


@dataclass(frozen=True, slots=True)
class Work:
    """Clips of a class, that are here or to come."""

    ways: Frontier
    number: float
    pace: float
    """Seconds that they take over those predicted."""
    rest_s: float
    """What the clip needs besides: the decode, and before it is sketched the wait for that."""
    decode_s: float

    def gpu_s(self, makespan: float) -> float:
        return self.number * self.pace * self.ways.within((makespan - self.rest_s) / self.pace).gpu_s


@dataclass(frozen=True, slots=True)
class ArmPlan:
    """Items of an arm that are not sketched yet."""

    number: int
    sketch_s: float
    fastest_s: float
    """Refined on the fastest slices."""
    decode_s: float
    wait_s: float
    """Until the middle one is sketched, when those with the most to go come first."""
    last_s: float
    """Until the last one is."""

    @property
    def after_s(self) -> float:
        """What comes after the sketch; of refining, which can do with more ranks where it is late, a part."""
        return self.decode_s + REFINING * self.fastest_s


class Horizon:
    def __init__(self, books: Books, forecast: Forecast, decode_on: DecodeOn = "workers") -> None:
        self.books = books
        self.forecast = forecast
        self._decoders: str | None = {"workers": "decode", "sketchers": "sketch", "pod": None}[decode_on]
        self.end_s = 0.0
        """When everything is decoded."""
        self.full_until_s = 0.0
        """Until then the backlog fills the ranks, whatever the widths."""
        self.slack_s = 0.0
        """What sketches with the most to go can wait for others."""
        self.arms: dict[str, ArmPlan] = {}
        self.clip_s = 0.0
        """What refining a clip that is to go takes on the widest slices, on average."""
        self._planned_at = -1

    def look(self, now_s: float) -> None:
        """Plan again where enough has changed."""
        moved = self.books.num_moves - self._planned_at
        if self._planned_at < 0 or moved > max(2, REPLAN * self.books.num_open) or now_s >= self.end_s:
            self._planned_at = self.books.num_moves
            self._plan(now_s)

    def left_s(self, arm: str, now_s: float) -> float:
        """What is left for refining a clip that starts now, in seconds as predicted."""
        return (self.end_s - now_s - self.forecast.decode_s(arm)) / self.forecast.pace(arm)

    @property
    def num_decoders(self) -> int:
        """Workers that decode; 0 where pods do."""
        return self.books.staff[self._decoders] if self._decoders else 0

    def _drain_s(self, work: Sequence[Work]) -> float:
        """From the last clip's end to the last video: a decode of what is to go, and the queue before it."""
        if not self.num_decoders:
            return 0.0
        number = sum(w.number for w in work)
        decode_s = sum(w.number * w.decode_s for w in work) / number if number else self.forecast.mean_decode_s
        at_once = self.books.pool.num_ranks / max(1, self.books.pool.widest)
        return decode_s + decode_s / self.num_decoders * at_once / 2

    def _plan(self, now_s: float) -> None:
        num_ranks, busy_s = self.books.pool.num_ranks, self.books.pool.ends.busy_s(now_s)
        self.arms = dict(self._arm_plans())
        work = list(self._work())
        drain_s = self._drain_s(work)
        backlog_s = sum(w.number * w.pace * w.ways.cheapest.gpu_s for w in work)
        least_s = max((w.rest_s + w.pace * w.ways.fastest.seconds for w in work), default=0.0)
        low = max(least_s, (busy_s + backlog_s) / num_ranks + drain_s)
        high = max(low, drain_s + (busy_s + sum(w.number * w.pace * w.ways.fastest.gpu_s for w in work)) / num_ranks)
        while high - low > TOLERANCE * high:
            guess = (low + high) / 2
            fits = busy_s + sum(w.gpu_s(guess) for w in work) <= (guess - drain_s) * num_ranks
            low, high = (low, guess) if fits else (guess, high)
        self.end_s = now_s + high
        self.full_until_s = now_s + backlog_s / num_ranks
        self.clip_s = sum(w.number * w.pace * w.ways.fastest.seconds for w in work) / max(1.0, sum(w.number for w in work))
        self.slack_s = min((high - a.last_s - a.fastest_s - a.decode_s for a in self.arms.values()), default=0.0)

    def _work(self) -> Iterator[Work]:
        max_width, forecast = self.books.pool.widest, self.forecast
        for lane, number in self.books.queues[State.SKETCHED].counts.items():
            clip = forecast.clip(lane, max_width)
            decode_s = forecast.decode_s(clip.arm)
            yield Work(clip.ways, number, forecast.pace(clip.arm), decode_s, decode_s)
        for arm, plan in self.arms.items():
            if typical := forecast.expected(arm, max_width):
                yield Work(typical.ways, plan.number, forecast.pace(arm), plan.decode_s + plan.wait_s, plan.decode_s)

    def _arm_plans(self) -> Iterator[tuple[str, ArmPlan]]:
        max_width, forecast = self.books.pool.widest, self.forecast
        workers, before_s = max(1, self.books.staff["sketch"]), 0.0
        found = []
        for arm, number in self.books.undecided.items():
            if number:
                pace, clip, decode_s = forecast.pace(arm), forecast.expected(arm, max_width), forecast.decode_s(arm)
                found.append((decode_s, pace * clip.ways.fastest.seconds if clip else 0.0, arm))
        for decode_s, fastest_s, arm in sorted(found, reverse=True):
            number, each_s = self.books.undecided[arm], forecast.sketch_s(arm)
            own_s = number * each_s / workers
            waits_s = max(each_s, before_s + own_s / 2), max(each_s, before_s + own_s)
            yield arm, ArmPlan(number, each_s, fastest_s, decode_s, *waits_s)
            before_s += own_s
