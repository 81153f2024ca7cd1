"""The scheduler's books: every item in exactly one state, every worker and rank with at most one item.

What an event asks of them takes the same time however many items, workers and pods there are: counts are kept, not taken.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from orchestrator.events import Reached
from orchestrator.lanes import Lanes
from orchestrator.pool import Pool
from orchestrator.slices import PodSlices
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


@dataclass(slots=True)
class Entry:
    """One open item's page. ``attempt`` counts from 1 and grows with every failure or loss, so late results can be told."""

    item: Item
    arrival: int
    state: State = State.ARRIVED
    attempt: int = 1
    pardoned: int = 0
    """Attempts that ended through no fault of the item: they do not bring it nearer to being given up."""
    worker: str | None = None
    """Who works on it: a sketch or decode worker, or a pod (then ``slice`` says where)."""
    slice: Slice | None = None
    handle: Any = None
    """The last boundary, opaque; None before the sketch and after the end."""
    decision: Decision | None = None
    timings_s: Mapping[str, float] = field(default_factory=dict)
    started_s: float | None = None
    busy_since_s: float = 0.0
    device_s: float = 0.0
    plan: tuple[Phase, ...] = ()
    """What a policy said that plans whole clips; empty until it was asked."""
    phase: Phase | None = None
    """The one at work."""
    expected_s: float | None = None
    """Predicted seconds of what is at work."""
    done: tuple[Phase, ...] = ()
    """The phases that are behind it, as they were run."""
    reached: Reached | None = None
    """A checkpoint of the work that is under way."""
    story: tuple[str, ...] = ()

    @property
    def num_charged(self) -> int:
        """Attempts that count, the one under way included."""
        return self.attempt - self.pardoned

    @property
    def decided(self) -> Decision:
        if self.decision is None:
            raise RuntimeError(f"item {self.item.item_key!r} is {self.state} without a decision")
        return self.decision

    @property
    def num_stages_done(self) -> int:
        return self.done[-1].stop if self.done else self.decided.action.num_sketched

    @property
    def is_refined(self) -> bool:
        return self.num_stages_done >= len(self.decided.action.stages)

    def hand_on(self, timings_s: Mapping[str, float]) -> None:
        """Seconds of one more phase; those of a name add up."""
        self.timings_s = {**self.timings_s, **{n: self.timings_s.get(n, 0.0) + seconds for n, seconds in timings_s.items()}}

    def go_on_from(self, reached: Reached) -> None:
        """Everything that led to a checkpoint is as it says; the decision is the books' to change."""
        self.handle = reached.handle
        self.timings_s, self.done, self.plan = reached.timings_s, reached.phases, ()
        if not self.done and reached.stop > reached.decision.action.num_sketched:
            self.done = (Phase(reached.stop, 1, "from a checkpoint"),)

    def start_over(self) -> None:
        """Nothing of what was made can be used any more."""
        self.handle = None
        self.plan, self.done, self.timings_s = (), (), {}


@dataclass(slots=True)
class Worker:
    """A sketch or decode worker; ``item_key`` is what it does, None when idle."""

    kind: str
    item_key: str | None = None
    leaving: bool = False


class Books:
    def __init__(self) -> None:
        self.items: dict[str, Entry] = {}
        """Those that are open."""
        self.closed: dict[str, bool] = {}
        """Those that ended, by key: whether they were finished."""
        self.workers: dict[str, Worker] = {}
        self.idle: dict[str, OrderedDict[str, None]] = {"sketch": OrderedDict(), "decode": OrderedDict()}
        self.pool = Pool()
        self.queues: dict[State, Lanes] = {state: Lanes() for state in WORK}
        self.staff: Counter[str] = Counter()
        """Sketch and decode workers that take work, by kind."""
        self.arrivals: Counter[str] = Counter()
        """By arm: all items that ever came."""
        self.undecided: Counter[str] = Counter()
        """By arm: items without a decision."""
        self._states: Counter[State] = Counter()
        self._num_arrivals = 0
        self.num_moves = 0
        """Changes of any item's state."""

    @property
    def pods(self) -> dict[str, PodSlices]:
        return self.pool.pods

    @property
    def num_open(self) -> int:
        return len(self.items)

    @property
    def num_running(self) -> int:
        return sum(self._states[state] for state in BOUNDARY)

    @property
    def num_ahead(self) -> int:
        """Items being sketched, or sketched and not yet taken by a slice."""
        return self._states[State.SKETCHING] + self.queues[State.SKETCHED].num_fresh

    def number(self, state: State) -> int:
        return self._states[state]

    def states(self) -> dict[str, int]:
        """Number of items in each state that has any."""
        return {str(state): self._states[state] for state in State if self._states[state]}

    def arrive(self, item: Item) -> Entry:
        """Raises ValueError for an item that is already here."""
        if item.item_key in self.items or item.item_key in self.closed:
            raise ValueError(f"item {item.item_key!r} arrived twice; every item of a run needs its own item_key")
        entry = self.items[item.item_key] = Entry(item, arrival=self._num_arrivals)
        self._num_arrivals += 1
        self._states[State.ARRIVED] += 1
        self.undecided[item.arm] += 1
        self.arrivals[item.arm] += 1
        return entry

    def decide(self, entry: Entry, decision: Decision | None) -> None:
        """What the sketch showed; None: it must be made again."""
        self.undecided[entry.item.arm] += (decision is None) - (entry.decision is None)
        entry.decision = decision

    def wait(self, entry: Entry, boundary: State, lane: Hashable, priority: float = 0.0) -> None:
        self._move(entry, boundary)
        self.queues[boundary].push(lane, (not entry.done, priority, entry.arrival, entry.item.item_key))

    def start(
        self,
        entry: Entry,
        worker: str,
        time_s: float,
        piece: Slice | None = None,
        expected_s: float | None = None,
        end_s: float = 0.0,
    ) -> None:
        """Take an item out of its queue into work on ``worker``."""
        self.queues[entry.state].remove(entry.item.item_key)
        self._move(entry, WORK[entry.state])
        entry.worker, entry.slice, entry.busy_since_s, entry.expected_s = worker, piece, time_s, expected_s
        if piece is not None:
            self.pool.hold(entry.item.item_key, piece, end_s)
        else:
            who = self.workers[worker]
            who.item_key = entry.item.item_key
            del self.idle[who.kind][worker]

    def release(self, entry: Entry, time_s: float) -> None:
        """Give back what the entry holds and charge it the device seconds."""
        if entry.worker is None:
            raise RuntimeError(self.tell(entry, "holds no worker to give back"))
        entry.device_s += (time_s - entry.busy_since_s) * (entry.slice.width if entry.slice else 1)
        if entry.worker in self.workers:
            self._set_idle(entry.worker)
        elif entry.worker in self.pods:
            self.pool.release(entry.item.item_key, entry.worker)
        entry.worker = entry.slice = None

    def close(self, entry: Entry, state: State) -> None:
        self._move(entry, state)
        self.undecided[entry.item.arm] -= entry.decision is None
        entry.handle = None
        del self.items[entry.item.item_key]
        self.closed[entry.item.item_key] = state == State.FINISHED

    def _move(self, entry: Entry, state: State) -> None:
        self._states[entry.state] -= 1
        self._states[state] += 1
        self.num_moves += 1
        entry.state = state

    # Workers

    def hire(self, name: str, kind: str) -> None:
        self.workers[name] = Worker(kind)
        self.staff[kind] += 1
        self.idle[kind][name] = None

    def idle_worker(self, kind: str) -> str | None:
        return next(iter(self.idle[kind]), None)

    def _set_idle(self, name: str) -> None:
        who = self.workers[name]
        who.item_key = None
        if who.leaving:
            del self.workers[name]
        else:
            self.idle[who.kind][name] = None

    def dismiss(self, name: str) -> None:
        """The worker takes nothing new, and is gone when it has nothing to do."""
        who = self.workers[name]
        self.staff[who.kind] -= not who.leaving
        who.leaving = True
        self.idle[who.kind].pop(name, None)
        if who.item_key is None:
            del self.workers[name]

    def strike_off(self, name: str) -> Entry | None:
        """The worker is gone now; what it was doing."""
        who = self.workers.pop(name)
        self.staff[who.kind] -= not who.leaving
        self.idle[who.kind].pop(name, None)
        return None if who.item_key is None else self.items[who.item_key]

    def tell(self, entry: Entry, what: str) -> str:
        story = "\n".join(f"  {line}" for line in entry.story[-20:])
        return f"item {entry.item.item_key!r} (attempt {entry.attempt}, {entry.state}) {what}. Its story:\n{story}"
