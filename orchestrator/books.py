"""The scheduler's books: every item in exactly one state, every worker and rank with at most one item."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.slices import PodSlices, slice_mistakes
from orchestrator.types import Decision, Item, Phase, Slice


class State(StrEnum):
    """Waiting states stand at a boundary of the item's life; busy states hold a worker or a slice."""

    ARRIVED = "arrived"
    SKETCHING = "sketching"
    SKETCHED = "sketched"
    REFINING = "refining"
    REFINED = "refined"
    DECODING = "decoding"
    FINISHED = "finished"
    GIVEN_UP = "given_up"


WORK = {State.ARRIVED: State.SKETCHING, State.SKETCHED: State.REFINING, State.REFINED: State.DECODING}
"""Each boundary and the work that starts there."""
BOUNDARY = {work: boundary for boundary, work in WORK.items()}
CLOSED = frozenset({State.FINISHED, State.GIVEN_UP})
PHASE_STARTS = {"sketch": State.ARRIVED, "refine": State.SKETCHED, "decode": State.REFINED}
"""The boundary at which each phase starts."""


def again_from(last: State, phase_start: State) -> State:
    """Where a failed item goes on: its last boundary, or the very start when an earlier phase must be done again.

    Only the last boundary's handle is kept, so there is nothing in between to go back to.
    """
    order = list(BOUNDARY.values())
    return last if order.index(phase_start) >= order.index(last) else State.ARRIVED


@dataclass
class Entry:
    """One item's page. ``attempt`` counts from 1 and grows with every charged failure, so late results can be told."""

    item: Item
    arrival: int
    state: State = State.ARRIVED
    attempt: int = 1
    worker: str | None = None
    """Who works on it: a sketch or decode worker, or a pod (then ``slice`` says where)."""
    slice: Slice | None = None
    handle: Any = None
    """The last boundary, opaque; None before the sketch and after the end."""
    decision: Decision | None = None
    timings_s: dict[str, float] = field(default_factory=dict)
    started_s: float | None = None
    busy_since_s: float = 0.0
    device_s: float = 0.0
    plan: tuple[Phase, ...] = ()
    """What the policy said; empty until it was asked."""
    done: list[Phase] = field(default_factory=list)
    """The phases that are behind it, as they were run."""
    story: list[str] = field(default_factory=list)

    @property
    def decided(self) -> Decision:
        if self.decision is None:
            raise RuntimeError(f"item {self.item.item_key!r} is {self.state} without a decision")
        return self.decision

    @property
    def num_stages_done(self) -> int:
        return self.done[-1].stop if self.done else self.decided.action.num_sketched

    @property
    def next_phase(self) -> Phase | None:
        """Of the plan; None at its end, and without one."""
        return next((phase for phase in self.plan if phase.stop > self.num_stages_done), None)

    def hand_on(self, timings_s: Mapping[str, float]) -> None:
        """Seconds of one more phase; those of a name add up."""
        self.timings_s |= {name: self.timings_s.get(name, 0.0) + seconds for name, seconds in timings_s.items()}

    def start_over(self) -> None:
        """Nothing of what was made can be used any more."""
        self.handle = self.decision = None
        self.plan, self.done, self.timings_s = (), [], {}


@dataclass
class Worker:
    """A sketch or decode worker; ``item_key`` is what it does, None when idle."""

    kind: str
    item_key: str | None = None


@dataclass
class Books:
    items: dict[str, Entry] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    pods: dict[str, PodSlices] = field(default_factory=dict)
    queues: dict[State, list[tuple[bool, float, int, str]]] = field(default_factory=lambda: {state: [] for state in WORK})
    """Items at each boundary as a heap of (not begun refining, priority, arrival, item_key): what is begun is finished first."""
    num_open: int = 0

    def arrive(self, item: Item) -> Entry:
        """Raises ValueError for an item that is already here."""
        if item.item_key in self.items:
            raise ValueError(f"item {item.item_key!r} arrived twice; every item of a run needs its own item_key")
        entry = self.items[item.item_key] = Entry(item, arrival=len(self.items))
        self.num_open += 1
        self.wait(entry, State.ARRIVED)
        return entry

    def wait(self, entry: Entry, boundary: State, priority: float = 0.0) -> None:
        entry.state = boundary
        heapq.heappush(self.queues[boundary], (not entry.done, priority, entry.arrival, entry.item.item_key))

    def first(self, boundary: State) -> Entry | None:
        queue = self.queues[boundary]
        return self.items[queue[0][-1]] if queue else None

    def start(self, entry: Entry, worker: str, time_s: float, piece: Slice | None = None) -> None:
        """Take the first item of its queue into work on ``worker``."""
        heapq.heappop(self.queues[entry.state])
        entry.state = WORK[entry.state]
        entry.worker, entry.slice, entry.busy_since_s = worker, piece, time_s
        if worker in self.workers:
            self.workers[worker].item_key = entry.item.item_key

    def release(self, entry: Entry, time_s: float) -> None:
        """Give back what the entry holds and charge it the device seconds."""
        if entry.worker is None:
            raise RuntimeError(self.tell(entry, "holds no worker to give back"))
        entry.device_s += (time_s - entry.busy_since_s) * (entry.slice.width if entry.slice else 1)
        if entry.worker in self.workers:
            self.workers[entry.worker].item_key = None
        elif entry.worker in self.pods:
            self._release_slice(entry.worker, entry.item.item_key)
        entry.worker = entry.slice = None

    def _release_slice(self, name: str, item_key: str) -> None:
        pod = self.pods[name]
        del pod.held[item_key]
        if pod.draining and not pod.held:
            del self.pods[name]

    def close(self, entry: Entry, state: State) -> None:
        entry.state, entry.handle = state, None
        self.num_open -= 1

    def idle_worker(self, kind: str) -> str | None:
        return next((name for name, who in self.workers.items() if who.kind == kind and who.item_key is None), None)

    def num_ahead(self) -> int:
        """Items being sketched, or sketched and not yet taken by a slice."""
        sketching = sum(who.kind == "sketch" and who.item_key is not None for who in self.workers.values())
        return sketching + sum(not_begun for not_begun, *_ in self.queues[State.SKETCHED])

    def tell(self, entry: Entry, what: str) -> str:
        story = "\n".join(f"  {line}" for line in entry.story[-20:])
        return f"item {entry.item.item_key!r} (attempt {entry.attempt}, {entry.state}) {what}. Its story:\n{story}"

    def check(self, max_attempts: int) -> None:
        """Raises RuntimeError with every entry that does not add up."""
        mistakes = [*self._item_mistakes(max_attempts), *self._worker_mistakes(), *self._queue_mistakes()]
        if mistakes:
            raise RuntimeError("the scheduler's books do not balance:\n" + "\n".join(mistakes))

    def _item_mistakes(self, max_attempts: int) -> Iterator[str]:
        if self.num_open != sum(entry.state not in CLOSED for entry in self.items.values()):
            yield f"{self.num_open} items counted as open, the states say otherwise: {self.states()}"
        for entry in self.items.values():
            if (entry.worker is not None) != (entry.state in BOUNDARY):
                yield self.tell(entry, f"is {entry.state} but held by {entry.worker}")
            if not 1 <= entry.attempt <= max_attempts:
                yield self.tell(entry, f"is at attempt {entry.attempt} of {max_attempts}")

    def _worker_mistakes(self) -> Iterator[str]:
        holders = {who.item_key: name for name, who in self.workers.items() if who.item_key is not None}
        if len(holders) != sum(who.item_key is not None for who in self.workers.values()):
            yield f"two workers do one item: {self.workers}"
        for pod in self.pods.values():
            yield from slice_mistakes(pod)
            holders.update(dict.fromkeys(pod.held, pod.pod))
            if any(self.items[key].slice != piece for key, piece in pod.held.items()):
                yield f"{pod.pod} and its items disagree on who holds what: {pod.held}"
        for key, entry in self.items.items():
            if holders.get(key) != entry.worker:
                yield self.tell(entry, f"thinks {entry.worker} has it, the workers say {holders.get(key)}")

    def _queue_mistakes(self) -> Iterator[str]:
        for boundary, queue in self.queues.items():
            queued = Counter(key for *_, key in queue)
            waiting = Counter(key for key, entry in self.items.items() if entry.state == boundary)
            if queued != waiting:
                yield f"queue {boundary} holds {sorted(queued.elements())}, its items are {sorted(waiting)}"

    def states(self) -> dict[str, int]:
        """Number of items in each state that has any."""
        return dict(Counter(str(entry.state) for entry in self.items.values()))
