"""Which waiting clip goes next, on how many ranks, and for how many of its stages: one class per kind of goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.books import Books, Entry, State
from orchestrator.forecast import ClipClass, Forecast
from orchestrator.policy import Policy, Sizing
from orchestrator.sizing import Voice, reason
from orchestrator.types import Phase


@dataclass(frozen=True, slots=True)
class Offer:
    """A way to start a clip now: until ``stop`` stages are done, on ``width`` ranks."""

    width: int
    stop: int
    seconds: float | None
    """Predicted; None: nobody knows."""
    to_go_s: float
    """Of all stages that are left, on such slices."""
    why: str
    """Or, of a width that was chosen for costs, what it is chosen for."""


class Objective(Protocol):
    """Decides from the books and the forecast alone."""

    def priority(self, entry: Entry) -> float:
        """Of a clip that waits to be refined: the smallest goes first; among equals, the first to arrive."""
        ...

    def sketch_priority(self, entry: Entry) -> float:
        """The same among the items of an arm that wait for their sketch."""
        ...

    def next_sketch(self, now_s: float) -> str:
        """The item that is sketched next, of those that wait for it."""
        ...

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        """Ways to start the clip's next phase, the best first. For the last one it is worth waiting."""
        ...

    def late_offers(self, entry: Entry, wanted: Offer, now_s: float) -> Sequence[Offer]:
        """Ways that are worth it only if they end before ``wanted`` would, which must wait for a slice."""
        ...

    def why(self, entry: Entry, offer: Offer, now_s: float) -> str:
        """One line for people."""
        ...

    def max_ahead(self, now_s: float) -> int | None:
        """Sketches that may run or wait for a slice; None: as many as allowed."""
        ...


class ByPolicy:
    """Each clip by itself: the policy says once how its stages are run, and again when the pods it counted on are gone."""

    def __init__(self, policy: Policy, books: Books, forecast: Forecast) -> None:
        self.policy = policy
        self.books = books
        self.forecast = forecast
        self._plans: dict[tuple[object, int], tuple[Phase, ...]] = {}
        """Of a policy to which all clips of a class are one."""

    def priority(self, entry: Entry) -> float:
        return self.policy.priority(entry.item, entry.decided)

    def sketch_priority(self, entry: Entry) -> float:
        return 0.0

    def next_sketch(self, now_s: float) -> str:
        return self.books.queues[State.ARRIVED].first() or ""

    def max_ahead(self, now_s: float) -> int | None:
        return None

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        max_width, begin = self.books.pool.widest, entry.num_stages_done
        phase = _next(entry.plan, begin)
        if phase is None or phase.width > max_width:
            entry.plan = self._plan(entry, max_width)
            phase = _next(entry.plan, begin)
        if phase is None:
            raise ValueError(f"item {entry.item.item_key!r} has no phase after stage {begin}: {entry.plan}")
        seconds = self._seconds(entry, begin, phase)
        return (Offer(phase.width, phase.stop, seconds, seconds or 0.0, phase.why),)

    def late_offers(self, entry: Entry, wanted: Offer, now_s: float) -> Sequence[Offer]:
        return ()

    def why(self, entry: Entry, offer: Offer, now_s: float) -> str:
        return offer.why

    def _plan(self, entry: Entry, max_width: int) -> tuple[Phase, ...]:
        if self.forecast.sizing is None:
            return self.policy.phases(entry.item, entry.decided, max_width)
        key = self.forecast.lane(entry.item.arm, entry.decided.action, entry.decided.action.num_sketched), max_width
        if key not in self._plans:
            self._plans[key] = self.policy.phases(entry.item, entry.decided, max_width)
        return self._plans[key]

    def _seconds(self, entry: Entry, begin: int, phase: Phase) -> float | None:
        if self.forecast.sizing is None:
            return None
        clip = self.forecast.clip(self.forecast.lane(entry.item.arm, entry.decided.action, begin), self.books.pool.widest)
        return self.forecast.pace(clip.arm) * clip.seconds_on(phase.width, phase.stop - begin)


def _next(plan: Sequence[Phase], begin: int) -> Phase | None:
    return next((phase for phase in plan if phase.stop > begin), None)


class Costed:
    """What the goals share that go by what clips are predicted to cost."""

    def __init__(self, policy: Sizing, books: Books, forecast: Forecast) -> None:
        self.config = policy.config
        self.policy = policy
        self.books = books
        self.forecast = forecast

    def clip(self, entry: Entry) -> ClipClass:
        """Raises ValueError when no slice of the widest pod can run it."""
        arm = entry.item.arm
        lane = self.forecast.lane(arm, entry.decided.action, entry.num_stages_done)
        return self.forecast.clip(lane, self.books.pool.widest or self.policy.arms[arm].limits.max_width)

    def max_ahead(self, now_s: float) -> int | None:
        """Enough for the ranks that idle and for those that come free while two sketches are made."""
        pool = self.books.pool
        if not pool.num_ranks:
            return None
        return 2 + pool.num_idle + int(1.25 * pool.ends.slices_before(now_s + 2 * self.forecast.mean_sketch_s))

    def offer(self, clip: ClipClass, width: int, whole: bool, why: str) -> Offer:
        """``whole``: all stages of one width are one phase; else the first stage, and more while it is short."""
        cut, pace = clip.cut(width, 0.0 if whole else self.config.min_phase_s, whole), self.forecast.pace(clip.arm)
        return Offer(cut.width, cut.stop, cut.seconds * pace, cut.to_go_s * pace, why)

    def narrower(self, clip: ClipClass, wanted: Offer, whole: bool, why: str) -> Sequence[Offer]:
        """The widest first."""
        return [self.offer(clip, width, whole, why) for width in reversed(clip.widths) if width < wanted.width]

    def why(self, entry: Entry, offer: Offer, now_s: float) -> str:
        clip = self.clip(entry)
        line = clip.reasons.get((offer.width, offer.stop))
        if line is None:
            arm = self.policy.arms[clip.arm]
            voice = Voice("GPU" if arm.limits.on_gpu else "rank", arm.cost.num_branches)
            run = [(clip.on(options, offer.width), options) for options in clip.stages[: offer.stop - clip.first]]
            chosen, options = max(run, key=lambda row: row[0].num_tokens)
            line = clip.reasons[offer.width, offer.stop] = reason(chosen, options, voice)
        return f"{line}; {offer.why}" if offer.why else line
