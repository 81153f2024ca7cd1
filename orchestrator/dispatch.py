"""What can start now: first decodes, then phases, then sketches, each on the worker or slice that suits it.

Backfilling with reservations (EASY, Lifka 1995): the first clip that fits nowhere is promised the block that comes free soonest,
and those behind it go round it on whatever else is free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

from orchestrator.books import Books, Entry, State
from orchestrator.events import Command, StartDecode, StartPhase, StartSketch
from orchestrator.forecast import Forecast
from orchestrator.objectives import Objective, Offer
from orchestrator.policy import Policy
from orchestrator.pool import UNKNOWN_S
from orchestrator.types import Phase, Slice

PROMISED = 32
"""At most one of so many ranks is kept for clips that wait, besides those of the first."""
URGENT = 0.6
"""Share of the sketches that are wanted ahead below which sketches go before decodes, for workers that do both."""
MAX_TRIES = 8
"""Lanes that are tried behind the first that does not fit, at one event."""


class Limits(Protocol):
    """What :class:`orchestrator.scheduler.SchedulerConfig` says of queues."""

    @property
    def max_ahead(self) -> int: ...
    @property
    def max_undecoded(self) -> int: ...
    @property
    def decode_on(self) -> str: ...


class Dispatch:
    def __init__(self, config: Limits, policy: Policy, books: Books, forecast: Forecast, objective: Objective) -> None:
        self.config = config
        self.policy = policy
        self.books = books
        self.forecast = forecast
        self.objective = objective
        self._kept: dict[State, dict[str, None]] = {}
        """Who of each queue was promised a block."""

    def commands(self, now_s: float) -> Iterator[Command]:
        queues, pool, decode_on = self.books.queues, self.books.pool, self.config.decode_on
        while True:
            taken_back = pool.num_taken_back
            if queues[State.REFINED] and decode_on == "pod":
                yield from self._pod_decodes(now_s)
            if self.is_decoding_behind:
                self._take_back(State.SKETCHED)  # or decodes might wait for a clip that waits for them
            elif queues[State.SKETCHED]:
                yield from self._phases(now_s)
            if pool.num_taken_back == taken_back:  # else ranks that were promised are there for others too
                break
        if queues[State.REFINED] and decode_on == "workers":
            yield from self._decodes(now_s)
        if self.books.idle["sketch"] and (queues[State.ARRIVED] or queues[State.REFINED]):
            yield from self._sketches(now_s)

    @property
    def is_decoding_behind(self) -> bool:
        """So many latents wait that no more are made. All ranks may end at once; what decodes for long is refined first."""
        return len(self.books.queues[State.REFINED]) >= max(self.config.max_undecoded, 2 * self.books.pool.num_ranks)

    def max_ahead(self, now_s: float) -> int:
        wanted = self.objective.max_ahead(now_s)
        return self.config.max_ahead if wanted is None else min(self.config.max_ahead, wanted)

    def _sketches(self, now_s: float) -> Iterator[Command]:
        """What sketch workers do: sketches, as far ahead as needed; where they decode too, that first unless slices run short."""
        books, arrived, refined = self.books, self.books.queues[State.ARRIVED], self.books.queues[State.REFINED]
        decodes = self.config.decode_on == "sketchers"
        most = self.max_ahead(now_s) if arrived else 0
        while worker := books.idle_worker("sketch"):
            wanted = bool(arrived) and books.num_ahead < most
            if decodes and refined and not (wanted and books.num_ahead < URGENT * most):
                yield self._decode(worker, now_s)
            elif wanted:
                yield self._sketch(worker, now_s)
            else:
                break

    def _sketch(self, worker: str, now_s: float) -> Command:
        key = self.objective.next_sketch(now_s)
        entry = self.books.items[key]
        self.books.start(entry, worker, now_s)
        entry.started_s = now_s if entry.started_s is None else entry.started_s
        return StartSketch(key, entry.attempt, worker)

    def _decode(self, worker: str, now_s: float) -> Command:
        entry = self.books.items[self.books.queues[State.REFINED].first() or ""]
        self.books.start(entry, worker, now_s)
        return StartDecode(entry.item.item_key, entry.attempt, worker, handle=entry.handle)

    def _decodes(self, now_s: float) -> Iterator[Command]:
        while (worker := self.books.idle_worker("decode")) and self.books.queues[State.REFINED]:
            yield self._decode(worker, now_s)

    def _pod_decodes(self, now_s: float) -> Iterator[Command]:
        for entry, piece, _ in self._placed(State.REFINED, now_s):
            yield StartDecode(entry.item.item_key, entry.attempt, piece.pod, piece, entry.handle)

    def _phases(self, now_s: float) -> Iterator[Command]:
        for entry, piece, offer in self._placed(State.SKETCHED, now_s):
            begin = entry.num_stages_done
            entry.phase = Phase(offer.stop, piece.width, self.objective.why(entry, offer, now_s))
            yield StartPhase(entry.item.item_key, entry.attempt, piece, begin, offer.stop, entry.handle)

    def _placed(self, queue: State, now_s: float) -> Iterator[tuple[Entry, Slice, Offer]]:
        """Everything of a queue that starts on a slice now."""
        books, pool, num_failed = self.books, self.books.pool, 0
        if not pool.num_idle:
            return
        for _, key in books.queues[queue].walk():
            if not pool.num_idle or num_failed > MAX_TRIES:
                break
            if not pool.num_open and num_failed and key not in pool.promises:
                num_failed += 1
                continue
            entry = books.items[key]
            offers = self._decode_offers(entry) if queue == State.REFINED else self.objective.offers(entry, now_s)
            found = self._find(key, offers, now_s) or self._keep(queue, key, offers, now_s, num_failed == 0)
            if found is None and queue == State.SKETCHED:
                found = self._rather_than_wait(entry, offers[-1], now_s)
            if found is None:
                num_failed += 1
                continue
            piece, offer = found
            end_s = now_s + (UNKNOWN_S if offer.seconds is None else offer.seconds)
            books.start(entry, piece.pod, now_s, piece, offer.seconds, end_s)
            yield entry, piece, offer

    def _decode_offers(self, entry: Entry) -> Sequence[Offer]:
        widest = self.books.pool.widest
        width = self.policy.decode_width(entry.item, widest) if widest else 1
        seconds = self.forecast.decode_s(entry.item.arm, width) or None
        return (Offer(width, 0, seconds, seconds or 0.0, ""),)

    def _find(self, key: str, offers: Sequence[Offer], now_s: float) -> tuple[Slice, Offer] | None:
        """Where the first of the offers that fits would run. Raises ValueError for a width that never will."""
        widest = self.books.pool.widest
        for offer in offers:
            if offer.width > widest:
                raise ValueError(f"item {key!r} is to run on {offer.width} ranks; the widest pod has {widest}")
            end_s = math.inf if offer.seconds is None else now_s + offer.seconds
            if piece := self.books.pool.find(key, offer.width, end_s):
                return piece, offer
        return None

    def _keep(self, queue: State, key: str, offers: Sequence[Offer], now_s: float, is_first: bool) -> tuple[Slice, Offer] | None:
        """Promise a block to a clip that waits, if few enough are; the first may have another's, or what that kept from it."""
        pool, width = self.books.pool, offers[-1].width
        promise = pool.promises.get(key)
        if promise is not None and promise.piece.width == width:
            return None
        pool.forget(key)
        found = None
        if pool.num_promised + width > self.max_promised:
            if not is_first:
                return None
            found = self._find(key, offers, now_s) if self._take_back(queue) else None
        if found is None and pool.promise(key, width, now_s):
            self._kept.setdefault(queue, {})[key] = None
        return found

    @property
    def max_promised(self) -> int:
        return self.books.pool.num_ranks // PROMISED

    def _rather_than_wait(self, entry: Entry, wanted: Offer, now_s: float) -> tuple[Slice, Offer] | None:
        """A late way that ends before the one that must wait for a block would."""
        key = entry.item.item_key
        promise = self.books.pool.promises.get(key)
        if promise is None:
            return None
        soon_s = promise.ready_s + wanted.to_go_s
        late = self.objective.late_offers(entry, wanted, now_s)
        return self._find(key, [offer for offer in late if now_s + offer.to_go_s <= soon_s], now_s)

    def _take_back(self, queue: State) -> bool:
        """Whether there was any promise."""
        kept = [key for key in self._kept.pop(queue, ()) if key in self.books.queues[queue] and key in self.books.pool.promises]
        for key in kept:
            self.books.pool.forget(key)
        return bool(kept)
