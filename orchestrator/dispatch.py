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

MAX_TRIES = 16
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
        self._kept: dict[State, str] = {}
        """Whom each queue's promise is for."""

    def commands(self, now_s: float) -> Iterator[Command]:
        queues, pool, on_pod = self.books.queues, self.books.pool, self.config.decode_on == "pod"
        while True:
            taken_back = pool.num_taken_back
            if queues[State.REFINED]:
                yield from self._pod_decodes(now_s) if on_pod else self._decodes(now_s)
            if len(queues[State.REFINED]) >= self.max_undecoded:
                self._take_back(State.SKETCHED)  # or decodes might wait for a clip that waits for them
            elif queues[State.SKETCHED]:
                yield from self._phases(now_s)
            if pool.num_taken_back == taken_back:  # else ranks that were promised are there for others too
                break
        if queues[State.ARRIVED] and self.books.idle["sketch"]:
            yield from self._sketches(now_s)

    @property
    def max_undecoded(self) -> int:
        """All ranks may come to their ends at once."""
        return max(self.config.max_undecoded, self.books.pool.num_ranks)

    def max_ahead(self, now_s: float) -> int:
        wanted = self.objective.max_ahead(now_s)
        return self.config.max_ahead if wanted is None else min(self.config.max_ahead, wanted)

    def _sketches(self, now_s: float) -> Iterator[Command]:
        books, queue = self.books, self.books.queues[State.ARRIVED]
        room = self.max_ahead(now_s) - books.num_ahead
        while room > 0 and (worker := books.idle_worker("sketch")) and (key := queue.first()):
            entry = books.items[key]
            books.start(entry, worker, now_s)
            entry.started_s = now_s if entry.started_s is None else entry.started_s
            room -= 1
            yield StartSketch(key, entry.attempt, worker)

    def _decodes(self, now_s: float) -> Iterator[Command]:
        books, queue = self.books, self.books.queues[State.REFINED]
        while (worker := books.idle_worker("decode")) and (key := queue.first()):
            entry = books.items[key]
            books.start(entry, worker, now_s)
            yield StartDecode(key, entry.attempt, worker, handle=entry.handle)

    def _pod_decodes(self, now_s: float) -> Iterator[Command]:
        for entry, piece, _ in self._placed(State.REFINED, now_s):
            yield StartDecode(entry.item.item_key, entry.attempt, piece.pod, piece, entry.handle)

    def _phases(self, now_s: float) -> Iterator[Command]:
        for entry, piece, offer in self._placed(State.SKETCHED, now_s):
            begin = entry.num_stages_done
            entry.phase = Phase(offer.stop, piece.width, offer.why)
            yield StartPhase(entry.item.item_key, entry.attempt, piece, begin, offer.stop, entry.handle)

    def _placed(self, queue: State, now_s: float) -> Iterator[tuple[Entry, Slice, Offer]]:
        """Everything of a queue that starts on a slice now."""
        books, pool, num_failed = self.books, self.books.pool, 0
        if not pool.num_idle:
            return
        for _, key in books.queues[queue].walk():
            if not pool.num_idle or num_failed > MAX_TRIES:
                break
            entry = books.items[key]
            offers = self._decode_offers(entry) if queue == State.REFINED else self.objective.offers(entry, now_s)
            found = self._find(key, offers, now_s)
            if found is None and not num_failed:
                found = self._keep(queue, key, offers, now_s)
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
        return (Offer(width, 0, self.forecast.decode_of(entry.item.arm, width), ""),)

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

    def _keep(self, queue: State, key: str, offers: Sequence[Offer], now_s: float) -> tuple[Slice, Offer] | None:
        """Promise a block to the first that waits, and to no other of its queue; or what another's promise kept from it."""
        promise, width = self.books.pool.promises.get(key), offers[-1].width
        if promise is not None and promise.piece.width == width:
            return None
        found = self._find(key, offers, now_s) if self._take_back(queue) else None
        if found is None and self.books.pool.promise(key, width, now_s):
            self._kept[queue] = key
        return found

    def _take_back(self, queue: State) -> bool:
        """Whether there was a promise."""
        key = self._kept.pop(queue, None)
        if key is None or key not in self.books.queues[queue]:
            return False
        self.books.pool.forget(key)
        return True
