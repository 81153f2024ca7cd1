"""Most videos per hour: the rule ``throughput``, and a deadline of the whole sweep."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.books import Books, Entry, State
from orchestrator.forecast import ClipClass, Forecast
from orchestrator.horizon import Horizon
from orchestrator.objectives import Costed, Offer
from orchestrator.policy import Sizing
from orchestrator.split import DecodeOn

FIRST = 0.1
"""How much sooner than in proportion the arm with the most to go after its sketch is sketched."""
QUICK = 2
"""One of so many sketch workers makes sketches that are quick while ranks idle."""
SPARE, LEAST_SPARE = 2.0, 1.0
"""Clips of mean length, on the widest slices, for which a clip leaves time before the end; and where its slice is not free, a
narrower one. Slices whose clips end at different times so meet again in wide ones, on which the last clips end together."""
SHARE = 0.6
"""Of what is left, that a clip may take however little that is."""
BACKLOG, TAIL, RAMP = "the backlog fills the ranks", "the tail", "the ramp"


class Canonical(Costed):
    """Every clip on the fewest GPU-seconds with which all of them end together, those with the most to go first.

    While the backlog fills the ranks that is the narrowest width, at the tail a wider one. Ranks that would idle all the same
    make a clip wider as long as every clip that waits, and every sketch that comes due while it runs, still finds ranks.
    """

    def __init__(self, policy: Sizing, books: Books, forecast: Forecast, decode_on: DecodeOn = "workers") -> None:
        super().__init__(policy, books, forecast)
        self.horizon = Horizon(books, forecast, decode_on)
        self._places: dict[str, float] = {}

    def priority(self, entry: Entry) -> float:
        clip, arm = self.clip(entry), entry.item.arm
        return -clip.ways.fastest.seconds * self.forecast.pace(arm) - self.forecast.decode_s(arm)

    def sketch_priority(self, entry: Entry) -> float:
        return 0.0

    # Sketches

    def max_ahead(self, now_s: float) -> int | None:
        """A clip for every rank: of many that wait, some fit what is left of each slice's time."""
        pool = self.books.pool
        return 2 + pool.num_idle + pool.num_ranks if pool.num_ranks else None

    def next_sketch(self, now_s: float) -> str:
        """Of the arm that is most behind. All arms go side by side to the end, so that each pool has its share of work at any
        time; those with the most to go after their sketch are ahead. While ranks idle: what is quick."""
        queue, pool, arms = self.books.queues[State.ARRIVED], self.books.pool, self.horizon.arms
        if pool.num_ranks:
            self.horizon.look(now_s)
        known = [arm for arm in queue.counts if arm in arms]
        if not known or not pool.num_ranks:
            return queue.first() or ""
        arm = self._quick(known) or min(known, key=self._place)
        return queue.first_of(arm) or ""

    def _quick(self, known: Sequence[str]) -> str | None:
        """The arm with the quickest sketch, where ranks idle that all sketches on their way will not fill."""
        if self.books.pool.num_idle <= self.books.num_ahead * self.books.pool.widest:
            return None
        arm = min(known, key=lambda arm: (self.horizon.arms[arm].sketch_s, arm))
        at_work = self.books.undecided[arm] - self.books.queues[State.ARRIVED].counts[arm]
        few = at_work <= self.books.staff["sketch"] // QUICK
        return arm if few and self.horizon.arms[arm].sketch_s < self.horizon.slack_s else None

    def _place(self, arm: str) -> tuple[float, str]:
        """How much of the arm is sketched, less where it has to be ahead of others."""
        if arm not in self._places:
            after = sorted(self.horizon.arms, key=lambda arm: self.horizon.arms[arm].after_s, reverse=True)
            steps = max(1, len(after) - 1)
            self._places = {arm: FIRST + (1 - FIRST) * index / steps for index, arm in enumerate(after)}
        total = self.books.arrivals[arm]
        done = (total - self.books.queues[State.ARRIVED].counts[arm] + 0.5) / total
        return done * self._places[arm], arm

    # Widths

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        clip = self.clip(entry)
        self.horizon.look(now_s)
        left_s, begun = self._left_s(clip.arm, now_s), self._begun(entry, clip)
        spare_s = self.horizon.clip_s / self.forecast.pace(clip.arm)
        wanted = max(begun, clip.width_within(max(left_s - SPARE * spare_s, SHARE * left_s)))
        least = max(begun, clip.width_within(max(left_s - LEAST_SPARE * spare_s, SHARE * left_s)))
        whole = self._is_whole(clip, wanted, now_s)
        why = BACKLOG if whole and wanted == clip.widths[0] else self._told(TAIL)
        offers = [self.offer(clip, width, whole, why) for width in reversed(clip.widths) if least <= width <= wanted]
        if self.books.pool.num_idle <= len(self.books.queues[State.SKETCHED]) * wanted:
            return offers
        return (*self._wider(clip, wanted, whole, now_s), *offers)

    def late_offers(self, entry: Entry, wanted: Offer, now_s: float) -> Sequence[Offer]:
        clip = self.clip(entry)
        whole = self._is_whole(clip, wanted.width, now_s)
        return self.narrower(clip, wanted, whole, f"{self._told(TAIL)}, sooner than a wider slice")

    def _left_s(self, arm: str, now_s: float) -> float:
        return self.horizon.left_s(arm, now_s)

    def _begun(self, entry: Entry, clip: ClipClass) -> int:
        """A clip that hurried once goes on so, on the next width that is worth it: pods, and what is known of costs, may be
        others than when it began."""
        width = entry.done[-1].width if entry.done else 1
        return max((w for w in clip.widths if w <= width), default=clip.widths[0])

    def _is_whole(self, clip: ClipClass, width: int, now_s: float) -> bool:
        """The backlog fills the ranks for as long as the clip takes: nothing is gained by looking again at every stage."""
        to_go_s = clip.cut(width, 0.0, True).to_go_s * self.forecast.pace(clip.arm)
        return now_s + to_go_s < self.horizon.full_until_s

    def _told(self, when: str) -> str:
        num_waiting, num_idle = len(self.books.queues[State.SKETCHED]), self.books.pool.num_idle
        return f"{when}: {num_waiting} clip{'s' if num_waiting != 1 else ''} for {num_idle} rank{'s' if num_idle != 1 else ''}"

    def _wider(self, clip: ClipClass, wanted: int, whole: bool, now_s: float) -> Iterator[Offer]:
        """Ways that use ranks which would idle, the widest first."""
        pool, num_waiting = self.books.pool, len(self.books.queues[State.SKETCHED])
        why = self._told(RAMP if self.books.number(State.ARRIVED) else TAIL)
        for width in reversed(clip.widths):
            if wanted < width <= pool.num_idle / num_waiting:
                offer = self.offer(clip, width, whole, why)
                end_s = now_s + (offer.seconds or 0.0)
                supply = pool.num_idle + pool.ends.ranks_before(end_s)
                if num_waiting * width + self._num_due(end_s, now_s) * wanted <= supply:
                    yield offer

    def _num_due(self, end_s: float, now_s: float) -> float:
        """Sketches that are expected to be ready by then."""
        sketch_s = self.forecast.mean_sketch_s
        working = self.books.number(State.SKETCHING)
        left = working + self.books.number(State.ARRIVED)
        return min(left, working * (end_s - now_s) / sketch_s) if sketch_s else float(working)


class SweepDeadline(Canonical):
    """The fewest GPU-seconds with which the last video is there in time; when nothing is, as early as can be.

    The time allowed counts from 0 of the shell's clock, the start of the command, whenever the first pod is there.
    """

    @property
    def _due_s(self) -> float:
        return self.config.deadline_s or 0.0

    def _left_s(self, arm: str, now_s: float) -> float:
        spare_s = max(0.0, self._due_s - self.horizon.end_s)
        return self.horizon.left_s(arm, now_s) + spare_s / self.forecast.pace(arm)

    def _wider(self, clip: ClipClass, wanted: int, whole: bool, now_s: float) -> Iterator[Offer]:
        return iter(()) if self.horizon.end_s <= self._due_s else super()._wider(clip, wanted, whole, now_s)
