"""Decides what runs where and when: one event in, commands out. No clock, no Ray, no torch, no files.

A shell (``driver`` on Ray, ``local`` in this process, ``simulator`` on a virtual clock) carries the commands out and tells what
came of them as the next events. Decoding comes before refining and refining before sketching, so that what is begun is finished
first. An event costs the same however many items, pods and workers there are.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import singledispatchmethod
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import audit, eventlog
from orchestrator.books import BOUNDARY, PHASE_STARTS, Books, Entry, State, again_from
from orchestrator.dispatch import Dispatch
from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
    Failed,
    Finish,
    GiveUp,
    PhaseDone,
    Reached,
    Sketched,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from orchestrator.forecast import Forecast
from orchestrator.hurry import objective_of
from orchestrator.policy import Policy, Throughput
from orchestrator.split import DecodeOn

MAX_PARDONED = 10
"""Of one item's attempts. Who loses more nodes than that may well be what kills them."""


class SchedulerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_attempts: int = Field(3, ge=1)
    """Attempts of one item, the first included, before it is given up; without those that end with a blameless loss."""
    max_ahead: int = Field(4, ge=1)
    """Sketches running or waiting for a slice; more would only hold memory. Fewer while fewer keep the ranks busy."""
    max_undecoded: int = Field(8, ge=1)
    """Refined latents waiting for a decoder before no further refining starts; never fewer than two for each rank."""
    decode_on: DecodeOn = "workers"
    """Who makes videos of latents: decode workers, slices of a pod, or the sketch workers beside their sketches."""


class Scheduler:
    """The books of one sweep. ``handle`` is the only way to change them, and it is deterministic.

    ``keep_log`` False: :attr:`log` stays empty; a shell that writes its events down itself needs no second copy.
    """

    def __init__(self, config: SchedulerConfig | None = None, policy: Policy | None = None, keep_log: bool = True) -> None:
        self.config = config or SchedulerConfig()
        self.policy = policy or Throughput()
        self.books = Books()
        self.forecast = Forecast(self.policy)
        self.objective = objective_of(self.policy, self.books, self.forecast, self.config.decode_on)
        self._dispatch = Dispatch(self.config, self.policy, self.books, self.forecast, self.objective)
        self.keep_log = keep_log
        self.log: list[dict[str, Any]] = []
        """One JSON-ready row per event; :func:`replay` makes the same commands of it."""

    def handle(self, event: Event) -> list[Command]:
        """Take note of ``event`` and answer what to start, finish or give up now.

        Late results of an earlier attempt change nothing. Raises ValueError for an event no shell may send.
        """
        commands = [*self._apply(event), *self._dispatch.commands(event.time_s)]
        if self.keep_log:
            self.log.append(eventlog.row(event, commands))
        return commands

    def check(self) -> None:
        """Raises RuntimeError with the story of every item whose entry does not add up."""
        audit.check(self.books, self.config.max_attempts)

    @property
    def finished(self) -> bool:
        """Every item that arrived is finished or given up."""
        return self.books.num_open == 0

    @property
    def idle(self) -> bool:
        """Nothing is running: only an arrival or a new worker can change anything."""
        return self.books.num_running == 0

    def counts(self) -> dict[str, int]:
        """Number of items in each state that has any, for a progress display."""
        return self.books.states()

    # What an event changes

    @singledispatchmethod
    def _apply(self, event: Event) -> list[Command]:
        raise ValueError(f"{type(event).__name__} is no event of orchestrator.events")

    @_apply.register
    def _(self, event: WorkerJoined) -> list[Command]:
        if event.worker in self.books.workers or event.worker in self.books.pods:
            raise ValueError(f"worker {event.worker!r} joined twice; a replacement needs a name of its own")
        if event.kind == "pod":
            self.books.pool.add(event.worker, event.num_ranks)
        elif event.kind in ("sketch", "decode"):
            self.books.hire(event.worker, event.kind)
        else:
            raise ValueError(f"worker kind {event.kind!r} must be one of: sketch, decode, pod")
        return []

    @_apply.register
    def _(self, event: WorkerLeaving) -> list[Command]:
        if event.worker in self.books.workers:
            self.books.dismiss(event.worker)
        elif event.worker in self.books.pods:
            self.books.pool.drain(event.worker)
        return []

    @_apply.register
    def _(self, event: Arrived) -> list[Command]:
        self._wait(self.books.arrive(event.item), State.ARRIVED)
        return []

    @_apply.register
    def _(self, event: Reached) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.ARRIVED, *BOUNDARY)
        if entry is None:
            return []
        if entry.state != State.ARRIVED:
            entry.reached = event
        elif entry.started_s is None:
            entry.started_s, entry.device_s = event.time_s - event.latency_s, event.device_s
            self.books.queues[State.ARRIVED].remove(event.item_key)
            self._go_on_from(entry, event)
        return []

    @_apply.register
    def _(self, event: Sketched) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.SKETCHING)
        if entry is not None:
            self.books.decide(entry, event.decision)
            lane = self.forecast.lane(entry.item.arm, event.decision.action, entry.num_stages_done)
            self.forecast.saw_sketch(entry.item.arm, lane, event.time_s - entry.busy_since_s)
            self._hand_on(entry, event)
            self._wait_on(entry)
        return []

    @_apply.register
    def _(self, event: PhaseDone) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.REFINING)
        if entry is not None and entry.phase is not None and entry.phase.stop == event.stop:
            self.forecast.saw_phase(entry.item.arm, entry.expected_s, event.time_s - entry.busy_since_s)
            entry.done = (*entry.done, entry.phase)
            self._hand_on(entry, event)
            self._wait_on(entry)
        return []

    @_apply.register
    def _(self, event: Decoded) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.DECODING)
        if entry is None:
            return []
        if entry.slice is None or entry.slice.width == 1:  # what several ranks take says nothing of one
            self.forecast.saw_decode(entry.item.arm, event.time_s - entry.busy_since_s)
        self.books.release(entry, event.time_s)
        self.books.close(entry, State.FINISHED)
        return [
            Finish(
                item_key=event.item_key,
                attempt=entry.attempt,
                item=entry.item,
                decision=entry.decided,
                clip=event.clip,
                timings_s={**entry.timings_s, **event.clip.timings_s},
                latency_s=event.time_s - (entry.started_s or 0.0),
                device_s=entry.device_s,
                phases=entry.done,
            )
        ]

    @_apply.register
    def _(self, event: Failed) -> list[Command]:
        if event.phase not in PHASE_STARTS:
            raise ValueError(f"phase {event.phase!r} must be one of: {', '.join(PHASE_STARTS)}")
        entry = self._current(event.item_key, event.attempt, *BOUNDARY)
        if entry is None:
            return []
        boundary = again_from(BOUNDARY[entry.state], PHASE_STARTS[event.phase])
        details = f"\n{event.traceback.rstrip()}" if event.traceback else ""
        return self._charge(entry, boundary, f"{entry.state} failed: {event.error}", event.time_s, details)

    @_apply.register
    def _(self, event: WorkerLost) -> list[Command]:
        lost = self._strike_off(event)
        return [command for entry in lost for command in self._lose(entry, event)]

    def _lose(self, entry: Entry, event: WorkerLost) -> list[Command]:
        if event.blameless:
            entry.pardoned = min(entry.pardoned + 1, MAX_PARDONED)
        error = f"{entry.state} lost with {event.worker}: {event.reason}"
        return self._charge(entry, BOUNDARY[entry.state], error, event.time_s)

    def _current(self, item_key: str, attempt: int, *states: State) -> Entry | None:
        """The entry an event is about, or None when that attempt is over."""
        entry = self.books.items.get(item_key)
        if entry is None:
            if item_key not in self.books.closed:
                raise ValueError(f"item {item_key!r} never arrived")
            return None
        return entry if entry.attempt == attempt and entry.state in states else None

    def _hand_on(self, entry: Entry, event: Sketched | PhaseDone) -> None:
        """The entry stands at its next boundary; the caller queues it there."""
        self.books.release(entry, event.time_s)
        entry.handle = event.handle
        entry.hand_on(event.timings_s)
        entry.story = (*entry.story, f"{event.time_s:.1f}s attempt {entry.attempt}: {type(event).__name__}")

    def _charge(self, entry: Entry, boundary: State, error: str, time_s: float, details: str = "") -> list[Command]:
        """One attempt is over: back to ``boundary`` or a later checkpoint, or given up after the last that counts."""
        self.books.release(entry, time_s)
        entry.story = (*entry.story, f"{time_s:.1f}s attempt {entry.attempt}: {error}{details}")
        if entry.num_charged >= self.config.max_attempts:
            self.books.close(entry, State.GIVEN_UP)
            return [GiveUp(entry.item.item_key, entry.attempt, entry.item, error, entry.story)]
        reached, entry.reached = entry.reached, None
        fits = reached is not None and reached.attempt == entry.attempt
        entry.attempt += 1
        if reached is not None and fits and (boundary == State.ARRIVED or reached.stop >= entry.num_stages_done):
            self._go_on_from(entry, reached)
            return []
        if boundary == State.ARRIVED:
            entry.start_over()
            self.books.decide(entry, None)
        self._wait(entry, boundary)
        return []

    def _go_on_from(self, entry: Entry, reached: Reached) -> None:
        entry.go_on_from(reached)
        self.books.decide(entry, reached.decision)
        entry.story = (*entry.story, f"{reached.time_s:.1f}s attempt {entry.attempt}: goes on after stage {reached.stop}")
        self._wait_on(entry)

    def _wait_on(self, entry: Entry) -> None:
        """At the boundary that the clip has come to."""
        self._wait(entry, State.REFINED if entry.is_refined else State.SKETCHED)

    def _wait(self, entry: Entry, boundary: State) -> None:
        arm = entry.item.arm
        if boundary == State.SKETCHED:
            lane = self.forecast.lane(arm, entry.decided.action, entry.num_stages_done)
            self.books.wait(entry, boundary, lane, self.objective.priority(entry))
        elif boundary == State.REFINED:
            self.books.wait(entry, boundary, arm, -self.forecast.decode_s(arm))
        else:
            self.books.wait(entry, boundary, arm, self.objective.sketch_priority(entry))

    def _strike_off(self, event: WorkerLost) -> list[Entry]:
        """Take the worker, or a pod's dead ranks, out of the books; the entries it was working on."""
        books = self.books
        if event.worker in books.workers:
            entry = books.strike_off(event.worker)
            return [] if entry is None else [entry]
        pod = books.pods.get(event.worker)
        if pod is None:
            return []
        books.pool.drain(event.worker)
        dead = set(event.ranks or range(pod.num_ranks))
        return [books.items[key] for key, held in pod.held.items() if dead & set(held.ranks)]


def replay(rows: Iterable[dict[str, Any]], scheduler: Scheduler) -> None:
    """Tell a fresh scheduler a log again. Raises RuntimeError at the first event it answers differently."""
    for index, (event, commands) in enumerate(eventlog.told(rows)):
        answer = scheduler.handle(event)
        if answer != commands:
            raise RuntimeError(f"replay differs at event {index} ({event}): {answer} instead of {commands}")
