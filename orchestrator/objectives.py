"""Which waiting clip goes next, on how many ranks, and for how many of its stages: one class per kind of goal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from orchestrator.allotment import makespan_s
from orchestrator.books import Books, Entry, State
from orchestrator.forecast import ClipClass, Forecast
from orchestrator.policy import Policy, Sizing
from orchestrator.sizing import Choice, total_s
from orchestrator.types import Item, Phase

REPLAN = 0.01
"""Share of the open items that must have moved before the makespan is looked at again."""


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to start a clip now: until ``stop`` stages are done, on ``width`` ranks."""

    width: int
    stop: int
    seconds: float | None
    """Predicted; None: nobody knows."""
    why: str


class Objective(Protocol):
    """Decides from the books and the forecast alone; keeps nothing that these do not say."""

    def priority(self, entry: Entry) -> float:
        """Of a clip that waits to be refined: the smallest goes first; among equals, the first to arrive."""
        ...

    def sketch_priority(self, item: Item) -> float: ...

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        """Ways to start the clip's next phase, the best first. For the last one it may be worth waiting."""
        ...

    def max_ahead(self, now_s: float) -> int | None:
        """Sketches that may run or wait for a slice; None: as many as allowed."""
        ...


def objective_of(policy: Policy, books: Books, forecast: Forecast) -> Objective:
    if isinstance(policy, Sizing) and policy.config.rule == "throughput":
        return Canonical(policy, books, forecast)
    return ByPolicy(policy, books, forecast)


class ByPolicy:
    """Each clip by itself: the policy says once how its stages are run, and again when the pods it counted on are gone."""

    def __init__(self, policy: Policy, books: Books, forecast: Forecast) -> None:
        self.policy = policy
        self.books = books
        self.forecast = forecast

    def priority(self, entry: Entry) -> float:
        return self.policy.priority(entry.item, entry.decided)

    def sketch_priority(self, item: Item) -> float:
        return 0.0

    def max_ahead(self, now_s: float) -> int | None:
        return None

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        max_width, begin = self.books.pool.widest, entry.num_stages_done
        phase = _next(entry.plan, begin)
        if phase is None or phase.width > max_width:
            entry.plan = self.policy.phases(entry.item, entry.decided, max_width)
            phase = _next(entry.plan, begin)
        if phase is None:
            raise ValueError(f"item {entry.item.item_key!r} has no phase after stage {begin}: {entry.plan}")
        return (Offer(phase.width, phase.stop, self._seconds(entry, begin, phase), phase.why),)

    def _seconds(self, entry: Entry, begin: int, phase: Phase) -> float | None:
        lane = self.forecast.lane(entry.item.arm, entry.decided.action, begin)
        clip = self.forecast.clip(lane, self.books.pool.widest)
        if clip is None:
            return None
        return sum(_on(options, phase.width).stage_s for options in clip.stages[: phase.stop - begin])


def _next(plan: Sequence[Phase], begin: int) -> Phase | None:
    return next((phase for phase in plan if phase.stop > begin), None)


def _on(options: Sequence[Choice], width: int) -> Choice:
    """The widest choice of no more than ``width`` ranks; the narrowest when all are wider."""
    return next((c for c in reversed(options) if c.width <= width), options[0])


class Canonical:
    """Most videos per hour: every clip on the fewest GPU-seconds with which all of them end together, the longest first.

    While the backlog fills the ranks that is the narrowest width, at the tail a wider one. Ranks that would idle all the same
    make a clip wider as long as every clip that waits, and every sketch that comes due while it runs, still finds ranks.
    """

    def __init__(self, policy: Sizing, books: Books, forecast: Forecast) -> None:
        self.config = policy.config
        self.policy = policy
        self.books = books
        self.forecast = forecast
        self._planned_at = -1.0
        self._end_s = 0.0
        self._full_until_s = 0.0
        """Until then the backlog fills the ranks, whatever the widths."""

    def priority(self, entry: Entry) -> float:
        clip = self._clip(entry)
        return -clip.length_s * self.forecast.pace(entry.item.arm)

    def sketch_priority(self, item: Item) -> float:
        return -self.forecast.length_s(item.arm, self._max_width(item.arm))

    def max_ahead(self, now_s: float) -> int | None:
        """Enough for the ranks that idle and for those that come free while two sketches are made."""
        pool = self.books.pool
        if not pool.num_ranks:
            return None
        return 2 + pool.num_idle + int(1.25 * pool.ends.slices_before(now_s + 2 * self.forecast.sketch_s.value))

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        clip, pace = self._clip(entry, self.books.pool.widest), self.forecast.pace(entry.item.arm)
        left_s = self._left_s(now_s)
        way = clip.ways.within(left_s / pace)
        chosen = [_on(options, width) for options, width in zip(clip.stages, way.widths, strict=True)]
        whole = now_s + way.seconds * pace < self._full_until_s
        base = self._offer(clip, chosen, whole, pace)
        if self.books.pool.num_idle <= len(self.books.queues[State.SKETCHED]) * base.width:
            return (base,)
        return (*self._wider(clip, base, whole, pace, now_s), base)

    def _clip(self, entry: Entry, max_width: int = 0) -> ClipClass:
        lane = self.forecast.lane(entry.item.arm, entry.decided.action, entry.num_stages_done)
        clip = self.forecast.clip(lane, max_width or self._max_width(entry.item.arm))
        if clip is None:
            raise RuntimeError(f"item {entry.item.item_key!r} has no cost")
        return clip

    def _max_width(self, arm: str) -> int:
        return self.books.pool.widest or self.policy.arms[arm].limits.max_width

    def _offer(self, clip: ClipClass, chosen: Sequence[Choice], whole: bool, pace: float) -> Offer:
        """``whole``: all stages of one width are one phase; else the first stage, and more while it is short."""
        width, run = next((width, list(stages)) for width, stages in groupby(chosen, key=lambda choice: choice.width))
        num = len(run)
        if not whole:
            num = next((n for n in range(1, num) if total_s(run[:n]) >= self.config.min_phase_s), num)
        return Offer(width, clip.first + num, total_s(run[:num]) * pace, f"{width} of {len(self.books.queues[State.SKETCHED])}")

    def _wider(self, clip: ClipClass, base: Offer, whole: bool, pace: float, now_s: float) -> Iterator[Offer]:
        """Ways that use ranks which would idle, the widest first."""
        pool, num_waiting = self.books.pool, len(self.books.queues[State.SKETCHED])
        for width in sorted({c.width for c in clip.stages[0] if c.width > base.width}, reverse=True):
            if num_waiting * width > pool.num_idle:
                continue
            offer = self._offer(clip, [_on(options, width) for options in clip.stages], whole, pace)
            end_s = now_s + (offer.seconds or 0.0)
            supply = pool.num_idle + pool.ends.ranks_before(end_s)
            if num_waiting * width + self._num_due(end_s, now_s) * base.width <= supply:
                yield offer

    def _num_due(self, end_s: float, now_s: float) -> float:
        """Sketches that are expected to be ready by then."""
        sketch_s = self.forecast.sketch_s.value
        if not sketch_s:
            return float(self.books.number(State.SKETCHING))
        working = self.books.number(State.SKETCHING)
        left = working + self.books.number(State.ARRIVED)
        return min(left, working * (end_s - now_s) / sketch_s)

    # The makespan

    def _left_s(self, now_s: float) -> float:
        moved = self.books.num_moves - self._planned_at
        if self._planned_at < 0 or moved > REPLAN * self.books.num_open or now_s >= self._end_s:
            self._plan(now_s)
            self._planned_at = self.books.num_moves
        return self._end_s - now_s

    def _plan(self, now_s: float) -> None:
        pool, work = self.books.pool, list(self._work())
        busy_s = pool.ends.busy_s(now_s)
        self._end_s = now_s + makespan_s(work, pool.num_ranks, busy_s)
        backlog_s = sum(number * ways.cheapest.gpu_s for ways, number in work)
        self._full_until_s = now_s + backlog_s / pool.num_ranks

    def _work(self) -> Iterator[tuple[object, float]]:
        max_width = self.books.pool.widest
        for lane, number in self.books.queues[State.SKETCHED].counts.items():
            clip = self.forecast.clip(lane, max_width)
            yield clip.ways, number * self.forecast.pace(lane[0])
        for arm, number in self.books.undecided.items():
            for clip, share in self.forecast.expected(arm, max_width) if number else ():
                yield clip.ways, number * share * self.forecast.pace(arm)
