"""What the scheduler is told (events, past tense) and what it asks for (commands, imperative).

Every event carries ``time_s``, stamped by the shell that saw it: the scheduler has no clock. ``handle`` fields are opaque
to the scheduler (a Ray reference, a value in this process, a token of the simulator) and never reach the event log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from orchestrator.types import Clip, Decision, Item, Phase, Slice


@dataclass(frozen=True)
class Event:
    time_s: float


@dataclass(frozen=True)
class WorkerJoined(Event):
    """``kind`` is "sketch", "decode" or "pod"; ``num_ranks`` is 1 for all but pods."""

    kind: str
    worker: str
    num_ranks: int = 1


@dataclass(frozen=True)
class WorkerLost(Event):
    """The worker is gone; whatever it was doing goes back to its last boundary.

    ``ranks`` of a pod: the dead ones. The pod takes no new work, slices without a dead rank finish what they do. Empty: all.
    """

    worker: str
    reason: str
    ranks: tuple[int, ...] = ()
    blameless: bool = False
    """The machine was taken away, so nothing that ran there can have been the cause: its items use no attempt."""


@dataclass(frozen=True)
class WorkerLeaving(Event):
    """The worker is to go soon: it finishes what it does within its grace period, and takes nothing new."""

    worker: str
    reason: str


@dataclass(frozen=True)
class Arrived(Event):
    item: Item


@dataclass(frozen=True)
class Reached(Event):
    """A checkpoint says that ``stop`` stages of the item's clip are done: it goes on from there, whatever comes next.

    Told right after :class:`Arrived` when a run is resumed, or right before a failure or loss of the phase that got so far. Says
    nothing new when the item is farther already, unless the boundary that it stands at cannot be read any more.
    """

    item_key: str
    attempt: int
    decision: Decision
    stop: int
    timings_s: dict[str, float]
    """Of all that led there, from the start of the sketch."""
    phases: tuple[Phase, ...] = ()
    """Those it went through after the sketch."""
    device_s: float = 0.0
    latency_s: float = 0.0
    """From the start of its sketch to the checkpoint; with ``device_s``, news only to a run that was resumed."""
    handle: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Sketched(Event):
    item_key: str
    attempt: int
    decision: Decision
    timings_s: dict[str, float]
    handle: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class PhaseDone(Event):
    """``stop`` is the :class:`StartPhase`'s: so many stages of the clip are done."""

    item_key: str
    attempt: int
    stop: int
    timings_s: dict[str, float]
    handle: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Decoded(Event):
    item_key: str
    attempt: int
    clip: Clip


@dataclass(frozen=True)
class Failed(Event):
    """One attempt failed; ``error`` is one line, ``traceback`` the rest.

    ``phase`` is "sketch", "refine" or "decode": the running one, which goes on from the last boundary, or an earlier one
    when that boundary can no longer be read, which means from the start.
    """

    item_key: str
    attempt: int
    phase: str
    error: str
    traceback: str = ""


@dataclass(frozen=True)
class Command:
    item_key: str
    attempt: int


@dataclass(frozen=True)
class StartSketch(Command):
    worker: str


@dataclass(frozen=True)
class StartPhase(Command):
    """Run the stages from ``begin`` on, counted from 0, on ``slice`` until ``stop`` are done. ``handle`` is the last boundary."""

    slice: Slice
    begin: int
    stop: int
    handle: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class StartDecode(Command):
    """``worker`` is a decode worker; or a pod, of which ``slice`` does it."""

    worker: str
    slice: Slice | None = None
    handle: Any = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Finish(Command):
    """The item is done: write its record. ``timings_s`` joins every phase's timings; ``device_s`` is what it held."""

    item: Item
    decision: Decision
    clip: Clip
    timings_s: dict[str, float]
    latency_s: float
    device_s: float
    phases: tuple[Phase, ...]
    """Those it went through after the sketch."""


@dataclass(frozen=True)
class GiveUp(Command):
    """The item failed ``attempt`` times; ``story`` is its part of the event log."""

    item: Item
    error: str
    story: tuple[str, ...]
