"""Clips in a hurry: the rules ``latency`` and ``deadline``."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.books import Books, Entry, State
from orchestrator.canonical import Canonical, SweepDeadline
from orchestrator.forecast import Forecast
from orchestrator.objectives import ByPolicy, Costed, Objective, Offer
from orchestrator.policy import Policy, Sizing
from orchestrator.split import DecodeOn


def objective_of(policy: Policy, books: Books, forecast: Forecast, decode_on: DecodeOn = "workers") -> Objective:
    """That of a policy's rule. ``decode_on``: who makes the videos."""
    if not isinstance(policy, Sizing):
        return ByPolicy(policy, books, forecast)
    config = policy.config
    if config.rule == "throughput":
        return Canonical(policy, books, forecast, decode_on)
    if config.rule == "latency":
        return Latency(policy, books, forecast)
    if config.rule == "deadline":
        if config.deadline_of == "item":
            return ItemDeadline(policy, books, forecast)
        return SweepDeadline(policy, books, forecast, decode_on)
    return ByPolicy(policy, books, forecast)


class Latency(Costed):
    """The shortest first, as wide as others that wait allow: alone the fastest, else the widest that is efficient."""

    def priority(self, entry: Entry) -> float:
        return self.clip(entry).ways.cheapest.seconds * self.forecast.pace(entry.item.arm)

    def sketch_priority(self, entry: Entry) -> float:
        return 0.0

    def next_sketch(self, now_s: float) -> str:
        queue = self.books.queues[State.ARRIVED]
        return queue.first_of(min(queue.counts, key=self._length)) or ""

    def _length(self, arm: str) -> tuple[float, str]:
        clip = self.forecast.expected(arm, self.books.pool.widest or self.policy.arms[arm].limits.max_width)
        return clip.ways.cheapest.seconds * self.forecast.pace(arm) if clip else 0.0, arm

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        clip, num_others = self.clip(entry), len(self.books.queues[State.SKETCHED]) - 1
        if not num_others:
            return (self.offer(clip, clip.widths[-1], True, "nobody else waits"),)
        told = f"{num_others} other{'s' if num_others > 1 else ''} waiting"
        return (self.offer(clip, clip.efficient(self.config.min_efficiency), True, told),)

    def late_offers(self, entry: Entry, wanted: Offer, now_s: float) -> Sequence[Offer]:
        return self.narrower(self.clip(entry), wanted, True, "sooner than a wider slice")


class ItemDeadline(Costed):
    """What is due first goes first, on the fewest GPU-seconds that meet its deadline; what cannot meet it, as fast as can be."""

    def priority(self, entry: Entry) -> float:
        return self._due_s(entry)

    def sketch_priority(self, entry: Entry) -> float:
        return self._allowed_s(entry)

    def next_sketch(self, now_s: float) -> str:
        return self.books.queues[State.ARRIVED].first() or ""

    def offers(self, entry: Entry, now_s: float) -> Sequence[Offer]:
        clip, left_s = self.clip(entry), self._left_s(entry, now_s)
        return (self.offer(clip, clip.width_within(left_s / self.forecast.pace(clip.arm)), True, ""),)

    def late_offers(self, entry: Entry, wanted: Offer, now_s: float) -> Sequence[Offer]:
        return self.narrower(self.clip(entry), wanted, True, "")

    def why(self, entry: Entry, offer: Offer, now_s: float) -> str:
        took_s = self._allowed_s(entry) - self._left_s(entry, now_s) + offer.to_go_s
        told = f"{took_s:.3g} s of the {self._allowed_s(entry):.6g} s allowed"
        if took_s > self._allowed_s(entry):
            told += f", late by {took_s - self._allowed_s(entry):.3g} s"
            told += ", the fastest there is" if offer.width == self.clip(entry).widths[-1] else ""
        return f"{super().why(entry, offer, now_s)}; {told}"

    def _left_s(self, entry: Entry, now_s: float) -> float:
        return self._due_s(entry) - now_s - self.forecast.decode_s(entry.item.arm)

    def _due_s(self, entry: Entry) -> float:
        return (entry.started_s or 0.0) + self._allowed_s(entry)

    def _allowed_s(self, entry: Entry) -> float:
        return entry.item.deadline_s or self.config.deadline_s or 0.0
