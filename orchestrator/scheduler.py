"""Decides what runs where and when: one event in, commands out. No clock, no Ray, no torch, no files.

A shell (``driver`` on Ray, ``local`` in this process) carries the commands out and tells what came of them as the next
events. Decoding comes before refining and refining before sketching, so that what is begun is finished first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import singledispatchmethod
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import eventlog, slices
from orchestrator.books import BOUNDARY, PHASE_STARTS, Books, Entry, State, Worker, again_from
from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
    Failed,
    Finish,
    GiveUp,
    PhaseDone,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
    WorkerLost,
)
from orchestrator.policy import Policy, Throughput
from orchestrator.slices import PodSlices
from orchestrator.types import Phase, Slice


class SchedulerConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    max_attempts: int = Field(3, ge=1)
    """Attempts of one item, the first included, before it is given up."""
    max_ahead: int = Field(4, ge=1)
    """Sketches running or waiting for a slice; more would only hold memory."""
    max_undecoded: int = Field(8, ge=1)
    """Refined latents waiting for a decoder before no further refining starts."""
    decode_on: Literal["workers", "pod"] = "workers"
    """Whether decode workers or slices of a pod make videos of latents."""


class Scheduler:
    """The books of one sweep. ``handle`` is the only way to change them, and it is deterministic."""

    def __init__(self, config: SchedulerConfig | None = None, policy: Policy | None = None) -> None:
        self.config = config or SchedulerConfig()
        self.policy = policy or Throughput()
        self.books = Books()
        self.log: list[dict[str, Any]] = []
        """One JSON-ready row per event; :func:`replay` makes the same commands of it."""

    def handle(self, event: Event) -> list[Command]:
        """Take note of ``event`` and answer what to start, finish or give up now.

        Late results of an earlier attempt change nothing. Raises ValueError for an event no shell may send.
        """
        commands = [*self._apply(event), *self._dispatch(event.time_s)]
        self.log.append(eventlog.row(event, commands))
        return commands

    def check(self) -> None:
        """Raises RuntimeError with the story of every item whose entry does not add up."""
        self.books.check(self.config.max_attempts)

    @property
    def finished(self) -> bool:
        """Every item that arrived is finished or given up."""
        return self.books.num_open == 0

    @property
    def idle(self) -> bool:
        """Nothing is running: only an arrival or a new worker can change anything."""
        return not any(entry.state in BOUNDARY for entry in self.books.items.values())

    def counts(self) -> dict[str, int]:
        """Number of items in each state that has any, for a progress display."""
        return self.books.states()

    # What an event changes

    @singledispatchmethod
    def _apply(self, event: Event) -> list[Command]:
        raise ValueError(f"{type(event).__name__} is no event of orchestrator.events")

    @_apply.register
    def _(self, event: WorkerJoined) -> list[Command]:
        if event.worker in {*self.books.workers, *self.books.pods}:
            raise ValueError(f"worker {event.worker!r} joined twice; a replacement needs a name of its own")
        if event.kind == "pod":
            self.books.pods[event.worker] = PodSlices(event.worker, event.num_ranks)
        elif event.kind in ("sketch", "decode"):
            self.books.workers[event.worker] = Worker(event.kind)
        else:
            raise ValueError(f"worker kind {event.kind!r} must be one of: sketch, decode, pod")
        return []

    @_apply.register
    def _(self, event: Arrived) -> list[Command]:
        self.books.arrive(event.item)
        return []

    @_apply.register
    def _(self, event: Sketched) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.SKETCHING)
        if entry is not None:
            entry.decision = event.decision
            self._hand_on(entry, event)
            self._wait(entry, State.SKETCHED)
        return []

    @_apply.register
    def _(self, event: PhaseDone) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.REFINING)
        phase = entry.next_phase if entry else None
        if entry is not None and phase is not None and phase.stop == event.stop:
            entry.done.append(phase)
            self._hand_on(entry, event)
            self._wait(entry, State.SKETCHED if entry.next_phase else State.REFINED)
        return []

    @_apply.register
    def _(self, event: Decoded) -> list[Command]:
        entry = self._current(event.item_key, event.attempt, State.DECODING)
        if entry is None:
            return []
        self.books.release(entry, event.time_s)
        self.books.close(entry, State.FINISHED)
        return [
            Finish(
                item_key=event.item_key,
                attempt=entry.attempt,
                item=entry.item,
                decision=entry.decided,
                clip=event.clip,
                timings_s=entry.timings_s | event.clip.timings_s,
                latency_s=event.time_s - (entry.started_s or 0.0),
                device_s=entry.device_s,
                phases=tuple(entry.done),
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
        return [
            command
            for entry in lost
            for command in self._charge(
                entry, BOUNDARY[entry.state], f"{entry.state} lost with {event.worker}: {event.reason}", event.time_s
            )
        ]

    def _current(self, item_key: str, attempt: int, *states: State) -> Entry | None:
        """The entry an event is about, or None when that attempt is over."""
        entry = self.books.items.get(item_key)
        if entry is None:
            raise ValueError(f"item {item_key!r} never arrived")
        return entry if entry.attempt == attempt and entry.state in states else None

    def _hand_on(self, entry: Entry, event: Sketched | PhaseDone) -> None:
        """The entry stands at its next boundary; the caller queues it there."""
        self.books.release(entry, event.time_s)
        entry.handle = event.handle
        entry.hand_on(event.timings_s)
        entry.story.append(f"{event.time_s:.1f}s attempt {entry.attempt}: {type(event).__name__}")

    def _charge(self, entry: Entry, boundary: State, error: str, time_s: float, details: str = "") -> list[Command]:
        """One attempt is used up: back to ``boundary``, or given up after the last."""
        self.books.release(entry, time_s)
        entry.story.append(f"{time_s:.1f}s attempt {entry.attempt}: {error}{details}")
        if entry.attempt >= self.config.max_attempts:
            self.books.close(entry, State.GIVEN_UP)
            return [GiveUp(entry.item.item_key, entry.attempt, entry.item, error, tuple(entry.story))]
        entry.attempt += 1
        if boundary == State.ARRIVED:
            entry.start_over()
        self._wait(entry, boundary)
        return []

    def _wait(self, entry: Entry, boundary: State) -> None:
        refines = boundary == State.SKETCHED
        self.books.wait(entry, boundary, self.policy.priority(entry.item, entry.decided) if refines else 0.0)

    def _strike_off(self, event: WorkerLost) -> list[Entry]:
        """Take the worker, or a pod's dead ranks, out of the books; the entries it was working on."""
        books = self.books
        if event.worker in books.workers:
            item_key = books.workers.pop(event.worker).item_key
            return [] if item_key is None else [books.items[item_key]]
        pod = books.pods.get(event.worker)
        if pod is None:
            return []
        pod.draining = True
        dead = set(event.ranks or range(pod.num_ranks))
        lost = [books.items[key] for key, held in pod.held.items() if dead & set(held.ranks)]
        if not pod.held:
            del books.pods[event.worker]
        return lost

    # What can start now

    def _dispatch(self, time_s: float) -> Iterator[Command]:
        yield from self._start_all(lambda: self._next_decode(time_s))
        yield from self._start_all(lambda: self._next_phase(time_s))
        yield from self._start_all(lambda: self._next_sketch(time_s))

    @staticmethod
    def _start_all(next_one: Callable[[], Command | None]) -> Iterator[Command]:
        while (command := next_one()) is not None:
            yield command

    def _next_decode(self, time_s: float) -> Command | None:
        entry = self.books.first(State.REFINED)
        if entry is None:
            return None
        if self.config.decode_on == "pod":
            return self._next_pod_decode(entry, time_s)
        worker = self.books.idle_worker("decode")
        if worker is None:
            return None
        self.books.start(entry, worker, time_s)
        return StartDecode(entry.item.item_key, entry.attempt, worker, handle=entry.handle)

    def _next_pod_decode(self, entry: Entry, time_s: float) -> Command | None:
        max_width = slices.widest(self.books.pods.values())
        piece = max_width and self._take(entry, self.policy.decode_width(entry.item, max_width), max_width, time_s)
        return StartDecode(entry.item.item_key, entry.attempt, piece.pod, piece, entry.handle) if piece else None

    def _next_phase(self, time_s: float) -> Command | None:
        entry, max_width = self.books.first(State.SKETCHED), slices.widest(self.books.pods.values())
        if entry is None or max_width == 0 or len(self.books.queues[State.REFINED]) >= self._max_undecoded:
            return None
        phase = self._phase(entry, max_width)
        piece = self._take(entry, phase.width, max_width, time_s)
        if piece is None:
            return None
        return StartPhase(entry.item.item_key, entry.attempt, piece, entry.num_stages_done, phase.stop, entry.handle)

    def _phase(self, entry: Entry, max_width: int) -> Phase:
        """The next one. The policy is asked once, and again when the pods that its answer counted on are gone."""
        if entry.next_phase is None or entry.next_phase.width > max_width:
            entry.plan = self.policy.phases(entry.item, entry.decided, max_width)
        if entry.next_phase is None:
            raise ValueError(f"item {entry.item.item_key!r} has no phase after stage {entry.num_stages_done}: {entry.plan}")
        return entry.next_phase

    @property
    def _max_undecoded(self) -> int:
        """Where a pod decodes too, latents go first: phases would take its ranks one by one, and a wide slice never come free."""
        return 1 if self.config.decode_on == "pod" else self.config.max_undecoded

    def _take(self, entry: Entry, width: int, max_width: int, time_s: float) -> Slice | None:
        """Start the first entry of its queue on a slice, if one is free. Raises ValueError for a width that never will be."""
        if width > max_width:
            raise ValueError(f"item {entry.item.item_key!r} is to run on {width} ranks; the widest pod has {max_width}")
        piece = slices.take(self.books.pods.values(), width, entry.item.item_key)
        if piece is not None:
            self.books.start(entry, piece.pod, time_s, piece)
        return piece

    def _next_sketch(self, time_s: float) -> Command | None:
        entry, worker = self.books.first(State.ARRIVED), self.books.idle_worker("sketch")
        if entry is None or worker is None or self.books.num_ahead() >= self.config.max_ahead:
            return None
        self.books.start(entry, worker, time_s)
        entry.started_s = time_s if entry.started_s is None else entry.started_s
        return StartSketch(entry.item.item_key, entry.attempt, worker)


def replay(rows: Iterable[dict[str, Any]], scheduler: Scheduler) -> None:
    """Tell a fresh scheduler a log again. Raises RuntimeError at the first event it answers differently."""
    for index, (event, commands) in enumerate(eventlog.told(rows)):
        answer = scheduler.handle(event)
        if answer != commands:
            raise RuntimeError(f"replay differs at event {index} ({event}): {answer} instead of {commands}")
