"""A real run simulated again: from its event log, how the same scheduler does with the same seconds, and with predicted ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from orchestrator.scheduler import Scheduler
from orchestrator.simulator import Simulation
from orchestrator.simulator_parts import Fleet, Job, Outcome, Unit
from orchestrator.simulator_world import World
from orchestrator.types import Decision, Item

KINDS: dict[type[Command], str] = {StartSketch: "sketch", StartPhase: "refine", StartDecode: "decode"}
RESULTS = (Sketched, PhaseDone, Decoded, Failed)
Told = Sequence[tuple[Event, list[Command]]]
Work = tuple[str, str, int, int, int]
"""(Item, kind, first stage, stop, ranks)."""


@dataclass
class Recording:
    """What a run's log says beyond its own order."""

    told: Told
    items: list[Item] = field(default_factory=list)
    decisions: dict[str, Decision] = field(default_factory=dict)
    outside: list[Event] = field(default_factory=list)
    """Arrivals, what resumed items had on disk, and workers that came and went: what no scheduler decides."""
    seconds: dict[Work, float] = field(default_factory=dict)
    """From each command to its result; the last of several attempts."""
    failed: dict[tuple[str, int], Failed] = field(default_factory=dict)
    """By item and attempt."""
    commands: set[Command] = field(default_factory=set)
    """Those that start something."""
    first_s: float = 0.0
    """When the first of them was given."""
    last_s: float = 0.0

    @property
    def makespan_s(self) -> float:
        return self.last_s - self.first_s

    @property
    def num_ranks(self) -> int:
        """Of all pods at their most."""
        ranks: dict[str, int] = {}
        most = 0
        for event in self.outside:
            if isinstance(event, WorkerJoined) and event.kind == "pod":
                ranks[event.worker] = event.num_ranks
                most = max(most, sum(ranks.values()))
            elif isinstance(event, WorkerLost):
                ranks.pop(event.worker, None)
        return most


def recording(told: Told) -> Recording:
    """Of one start of a run (``orchestrator.eventlog.told``). Raises ValueError when it started nothing, or left items open."""
    found = Recording(told)
    running: dict[str, tuple[Command, float]] = {}
    begun_ever: set[str] = set()
    for event, commands in told:
        if isinstance(event, RESULTS) and (begun := running.pop(event.item_key, None)):
            if isinstance(event, Failed):
                found.failed[event.item_key, event.attempt] = event
            found.seconds[work_of(begun[0])] = event.time_s - begun[1]
        if isinstance(event, Sketched | Reached):
            found.decisions[event.item_key] = event.decision
        if isinstance(event, Arrived):
            found.items.append(event.item)
        resumed = isinstance(event, Reached) and event.item_key not in begun_ever
        if resumed or isinstance(event, Arrived | WorkerJoined | WorkerLost | WorkerLeaving):
            found.outside.append(event)
        for command in commands:
            if type(command) in KINDS:
                running[command.item_key] = command, event.time_s
                begun_ever.add(command.item_key)
                found.commands.add(command)
    starts = [event.time_s for event, commands in told if any(type(command) in KINDS for command in commands)]
    if not starts:
        raise ValueError("the event log starts no work, so there is nothing to simulate again")
    if num_open := _num_open(found):
        raise ValueError(f"the last start was stopped with {num_open} of {len(found.items)} items open; replay a finished one")
    found.first_s = min(starts)
    found.last_s = max(e.time_s for e, commands in told if isinstance(e, Decoded) or any(isinstance(c, GiveUp) for c in commands))
    return found


def _num_open(found: Recording) -> int:
    closed = {c.item_key for _, commands in found.told for c in commands if isinstance(c, Finish | GiveUp)}
    return sum(item.item_key not in closed for item in found.items)


def work_of(command: Command) -> Work:
    width = command.slice.width if isinstance(command, StartPhase | StartDecode) and command.slice else 1
    begin, stop = (command.begin, command.stop) if isinstance(command, StartPhase) else (0, 0)
    return command.item_key, KINDS[type(command)], begin, stop, width


@dataclass
class RecordedWorld(World):
    """Takes the seconds that were recorded; for what was not, those predicted, corrected as the run's other work of its kind."""

    recorded: dict[Work, float] = field(default_factory=dict)
    pace: dict[str, float] = field(default_factory=dict)
    """Real over predicted seconds of each kind of work."""

    def sketch_s(self, number: int) -> float:
        return self._recorded(number, "sketch", 0, 0, 1, super().sketch_s(number))

    def refine_s(self, number: int, begin: int, stop: int, width: int) -> float:
        return self._recorded(number, "refine", begin, stop, width, super().refine_s(number, begin, stop, width))

    def decode_s(self, number: int, width: int = 1) -> float:
        return self._recorded(number, "decode", 0, 0, width, super().decode_s(number, width))

    def _recorded(self, number: int, kind: str, begin: int, stop: int, width: int, predicted_s: float) -> float:
        found = self.recorded.get((self.items[number].item_key, kind, begin, stop, width))
        return predicted_s * self.pace.get(kind, 1.0) if found is None else found


class Replayed(Simulation):
    """Workers come, go and fail as in the recording."""

    def __init__(self, scheduler: Scheduler, world: World, run: Recording, checkpoints: bool = True) -> None:
        kinds = [event.kind for event in run.outside if isinstance(event, WorkerJoined)]
        fleet = Fleet(1, max(run.num_ranks, 1), kinds.count("sketch"), kinds.count("decode"))
        super().__init__(scheduler, world, fleet, checkpoints=checkpoints)
        self.recording = run
        self.asked: set[Command] = set()
        self.begun: set[str] = set()
        """Keys of the items that any of them was for."""

    @property
    def makespan_s(self) -> float:
        """From the first command, as of the recording."""
        return self.outcome.makespan_s - self.recording.first_s

    def _begin(self) -> None:
        for event in self.recording.outside:
            self._push(event.time_s, event)

    def _happen(self, what: Job | Unit | Event) -> None:
        if isinstance(what, WorkerJoined):
            self._join(Unit(what.kind, what.worker, what.num_ranks))
        elif isinstance(what, WorkerLost):
            if unit := self._units.get(what.worker):
                self._lose_ranks(unit, what.ranks, what.reason, what.blameless)
        elif isinstance(what, Reached):
            self._go_on_from(what)
        elif isinstance(what, Event):
            self._tell(what)
        else:
            super()._happen(what)

    def _go_on_from(self, event: Reached) -> None:
        """An earlier start left its boundary; it counts only where nothing of the item was begun in this one."""
        if event.item_key not in self.begun:
            self.meter.advance(self._now)
            self.meter.unsketched -= 1
            if event.stop < len(event.decision.action.stages):
                self.meter.waiting += 1
                self._phases[event.item_key] = event.phases
            else:
                self.meter.undecoded += 1
        self._tell(event)

    def _carry_out(self, command: Command) -> None:
        if type(command) in KINDS:
            self.asked.add(command)
            self.begun.add(command.item_key)
        super()._carry_out(command)

    def _done(self, job: Job) -> None:
        command = job.command
        failed = self.recording.failed.get((command.item_key, command.attempt))
        if failed is None or failed.phase != KINDS[type(command)]:
            super()._done(job)
            return
        self.meter.advance(self._now)
        job.lost = True
        self._end(job)
        self._lost_from[command.item_key] = type(command)
        self._wait_again(type(command), 1)
        self._tell(Failed(self._now_s, command.item_key, command.attempt, failed.phase, failed.error))
        self._renew_if_done(job.unit)

    def _renew_if_done(self, unit: Unit) -> None:
        """Its successor is in the recording."""
        if not unit.ready and not unit.jobs:
            self._units.pop(unit.name, None)


def calibration(world: World, run: Recording) -> dict[str, dict[str, float]]:
    """Predicted and real seconds of each kind of work that the run did."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    for (key, kind, begin, stop, width), real_s in run.seconds.items():
        number = world.index[key]
        if kind == "sketch":
            predicted_s = World.sketch_s(world, number)
        elif kind == "decode":
            predicted_s = World.decode_s(world, number, width)
        else:
            predicted_s = World.refine_s(world, number, begin, stop, width)
        for place, value in enumerate((1.0, predicted_s, real_s)):
            sums[kind][place] += value
    return {
        kind: {"number": number, "predicted_s": predicted_s, "real_s": real_s, "real_over_predicted": real_s / predicted_s}
        for kind, (number, predicted_s, real_s) in sums.items()
        if predicted_s > 0
    }


def answers(told: Told, scheduler: Scheduler) -> dict[str, Any]:
    """The recorded events told to a fresh scheduler: how many it answers otherwise, and the first of them."""
    differing, first = 0, None
    for number, (event, commands) in enumerate(told):
        if scheduler.handle(event) != commands:
            differing += 1
            first = first or {"event": number, "type": type(event).__name__, "time_s": event.time_s}
    return {"events": len(told), "answered_otherwise": differing, "first": first}


def replay_report(told: Told, make_scheduler: Callable[[], Scheduler], world_of: Callable[[Recording], World]) -> dict[str, Any]:
    """JSON-ready: the run, the same scheduler with its recorded seconds, and with predicted ones.

    ``world_of`` gives the recorded items with what they are predicted to cost. Raises ValueError for a log without work, or with
    items left open, and RuntimeError when the workers of the log cannot do its items.
    """
    run = recording(told)
    world = world_of(run)
    pace = {kind: row["real_over_predicted"] for kind, row in calibration(world, run).items()}
    recorded = RecordedWorld(**vars(world), recorded=run.seconds, pace=pace)
    again, predicted = Replayed(make_scheduler(), recorded, run), Replayed(make_scheduler(), world, run)
    for simulation in (again, predicted):
        simulation.run()
    return {
        "items": len(run.items),
        "ranks": run.num_ranks,
        "real_makespan_s": run.makespan_s,
        "replay": answers(told, make_scheduler()),
        "with_recorded_seconds": _compared(again, run),
        "with_predicted_seconds": _compared(predicted, run),
        "calibration": calibration(world, run),
    }


def _compared(simulation: Replayed, run: Recording) -> dict[str, Any]:
    outcome: Outcome = simulation.outcome
    return {
        "makespan_s": simulation.makespan_s,
        "difference": simulation.makespan_s / run.makespan_s - 1.0,
        "commands": len(run.commands),
        "commands_not_given": len(run.commands - simulation.asked),
        "finished": outcome.finished,
        "given_up": outcome.given_up,
        "idle_breakdown": outcome.idle_s,
    }


def decisions_of(run: Recording, otherwise: Callable[[Item], Decision]) -> list[Decision]:
    """Of each item as recorded; ``otherwise`` where its sketch never came to one."""
    return [run.decisions.get(item.item_key) or otherwise(item) for item in run.items]
