"""The third shell: the scheduler on a virtual clock, with workers that take as long as the cost model says, give or take.

Everything that follows from the seed is the same in every run, so that schedules can be compared clip by clip.
"""

from __future__ import annotations

import heapq
import math
import random

from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
    Finish,
    GiveUp,
    PhaseDone,
    Reached,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
    WorkerLost,
)
from orchestrator.scheduler import Scheduler
from orchestrator.simulator_meter import TICKS, Meter
from orchestrator.simulator_parts import HOUR_S, Fleet, Job, Outcome, Unit
from orchestrator.simulator_world import World
from orchestrator.types import Clip, Phase

CLIP = Clip("", 0, "")
"""Every simulated video."""
NO_TIMINGS: dict[str, float] = {}
WIDE_FIRST = ("pod", "decode", "sketch")
"""Sketches start when there is somebody to go on with them."""


class Simulation:
    """One sweep. ``checkpoints``: latents outlive the ranks that made them, stage by stage."""

    def __init__(self, scheduler: Scheduler, world: World, fleet: Fleet, seed: int = 0, checkpoints: bool = True) -> None:
        self.scheduler, self.world, self.fleet, self.checkpoints = scheduler, world, fleet, checkpoints
        self.outcome = Outcome()
        self.meter = Meter(fleet.num_ranks, scheduler.config.max_undecoded)
        self._now = 0
        self._heap: list[tuple[int, int, Job | Unit | Event]] = []
        self._num_pushed = 0
        self._units: dict[str, Unit] = {}
        self._phases: dict[str, tuple[Phase, ...]] = {}
        """Behind each clip between two of its phases."""
        self._lost_from: dict[str, type[Command]] = {}
        self._failing = random.Random(f"{seed} failures")

    def run(self) -> Outcome:
        """Until every item is finished or given up. Raises RuntimeError when items are left that nobody can run."""
        self.meter.unsketched = len(self.world.items)
        self._begin()
        while self.outcome.finished + self.outcome.given_up < len(self.world.items):
            if not self._heap:
                raise RuntimeError(f"nothing runs, and items are left that nothing can run: {self.scheduler.counts()}")
            self._now, _, what = heapq.heappop(self._heap)
            self._happen(what)
        return self._sum_up()

    def _begin(self) -> None:
        """All items are known before the first worker is there."""
        for item in self.world.items:
            self._tell(Arrived(0.0, item))
        counts = {"pod": self.fleet.pods, "decode": self.fleet.decode_workers, "sketch": self.fleet.sketch_workers}
        for kind in WIDE_FIRST:
            for slot in range(counts[kind]):
                self._join(Unit(kind, f"{kind}-{slot}", self.fleet.ranks_per_pod if kind == "pod" else 1))

    def _happen(self, what: Job | Unit | Event) -> None:
        if isinstance(what, Job):
            if not what.lost:
                self._done(what)
        elif isinstance(what, Unit):
            self._fail(what) if what.ready else self._join(what)

    def _tell(self, event: Event) -> None:
        self.meter.advance(self._now)
        self.outcome.events += 1
        for command in self.scheduler.handle(event):
            self._carry_out(command)

    def _push(self, seconds: float, what: Job | Unit | Event) -> None:
        self._num_pushed += 1
        heapq.heappush(self._heap, (self._now + math.ceil(seconds * TICKS), self._num_pushed, what))

    @property
    def _now_s(self) -> float:
        return self._now / TICKS

    # Work goes out and comes back

    def _carry_out(self, command: Command) -> None:
        number = self.world.index[command.item_key]
        if isinstance(command, StartPhase):
            seconds = self.world.refine_s(number, command.begin, command.stop, command.slice.width)
            self.meter.waiting -= 1
            self.outcome.hand_over_s += self.world.realism.hand_over_s * command.slice.width
            self._start(Job(command, number, self._units[command.slice.pod], self._now, command.slice), seconds)
        elif isinstance(command, StartSketch):
            self._start(Job(command, number, self._units[command.worker], self._now), self.world.sketch_s(number))
        elif isinstance(command, StartDecode):
            width = command.slice.width if command.slice else 1
            self.meter.undecoded -= 1
            job = Job(command, number, self._units[command.worker], self._now, command.slice)
            self._start(job, self.world.decode_s(number, width))
        elif isinstance(command, Finish):
            self.outcome.finished += 1
            self.outcome.attempts += command.attempt
            self.outcome.width_clips[max((phase.width for phase in command.phases), default=0)] += 1
        elif isinstance(command, GiveUp):
            self.outcome.given_up += 1
            self.outcome.attempts += command.attempt
            self._wait_again(self._lost_from[command.item_key], -1)

    def _start(self, job: Job, seconds: float) -> None:
        job.unit.jobs[job.command.item_key] = job
        if job.piece:
            self.meter.busy += job.width
        self._push(seconds, job)

    def _done(self, job: Job) -> None:
        command = job.command
        key, attempt, now_s = command.item_key, command.attempt, self._now_s
        self.meter.advance(self._now)
        self._end(job)
        if isinstance(command, StartSketch):
            self.meter.unsketched -= 1
            self.meter.waiting += 1
            event: Event = Sketched(now_s, key, attempt, self.world.decisions[job.number], NO_TIMINGS)
        elif isinstance(command, StartPhase):
            event = self._phase_done(job, command, now_s)
        else:
            event = Decoded(now_s, key, attempt, CLIP)
        self._tell(event)
        self._renew_if_done(job.unit)

    def _phase_done(self, job: Job, command: StartPhase, now_s: float) -> Event:
        key = command.item_key
        if command.stop < len(self.world.decisions[job.number].action.stages):
            self.meter.waiting += 1
            self._phases[key] = (*self._phases.get(key, ()), Phase(command.stop, job.width, ""))
        else:
            self.meter.undecoded += 1
            self._phases.pop(key, None)
        return PhaseDone(now_s, key, command.attempt, command.stop, NO_TIMINGS)

    def _end(self, job: Job) -> None:
        """The job leaves its unit, and its GPU-seconds are counted; the meter stands at this moment."""
        del job.unit.jobs[job.command.item_key]
        gpu_s = (self._now - job.began) * job.width / TICKS
        if job.piece:
            self.outcome.heavy_s += gpu_s
            self.outcome.width_gpu_s[job.width] += gpu_s
            if job.unit.ready:
                self.meter.busy -= job.width
            else:
                self.meter.busy_down -= job.width
        elif isinstance(job.command, StartSketch):
            self.outcome.sketch_s += gpu_s
        else:
            self.outcome.decode_s += gpu_s

    # Workers come and go

    def _join(self, unit: Unit) -> None:
        unit.ready = True
        self._units[unit.name] = unit
        self.meter.advance(self._now)
        if unit.kind == "pod":
            self.meter.up += unit.num_ranks
        if mtbf_hours := self.world.realism.mtbf_hours:
            self._push(self._failing.expovariate(unit.num_ranks / (mtbf_hours * HOUR_S)), unit)
        self._tell(WorkerJoined(self._now_s, unit.kind, unit.name, unit.num_ranks))

    def _fail(self, unit: Unit) -> None:
        """One rank dies."""
        rank = self._failing.randrange(unit.num_ranks)
        self._lose_ranks(unit, (rank,) if unit.kind == "pod" else (), "simulated")

    def _lose_ranks(self, unit: Unit, ranks: tuple[int, ...], reason: str, blameless: bool = False) -> None:
        """Slices without them finish, then the unit starts anew. Without any, all are lost."""
        self.meter.advance(self._now)
        self.outcome.failures += 1
        dead = set(ranks or range(unit.num_ranks))
        lost = [job for job in unit.jobs.values() if job.piece is None or dead & set(job.piece.ranks)]
        reached = [event for job in lost if (event := self._reached(job))]
        for job in lost:
            self._lose(job)
        if unit.kind == "pod" and unit.ready:
            left = sum(job.width for job in unit.jobs.values())
            self.meter.up -= unit.num_ranks
            self.meter.busy -= left
            self.meter.busy_down += left
        unit.ready = False
        for event in reached:
            self._tell(event)
        self._tell(WorkerLost(self._now_s, unit.name, reason, ranks, blameless))
        self._renew_if_done(unit)

    def _lose(self, job: Job) -> None:
        job.lost = True
        self._end(job)
        self._lost_from[job.command.item_key] = type(job.command)
        self._wait_again(type(job.command), 1)
        self.outcome.lost_s += ((self._now - job.began) / TICKS - self._saved(job)[1]) * job.width

    def _wait_again(self, kind: type[Command], number: int) -> None:
        """Items that lost such work stand where it starts; a sketch's item was never counted as sketched."""
        if kind is StartPhase:
            self.meter.waiting += number
        elif kind is StartDecode:
            self.meter.undecoded += number
        elif number < 0:
            self.meter.unsketched += number

    def _saved(self, job: Job) -> tuple[int, float]:
        """How many stages of the clip its last checkpoint holds, and the seconds that led there; 0 when the phase left none."""
        command, found = job.command, (0, 0.0)
        if self.checkpoints and isinstance(command, StartPhase):
            passed_s = (self._now - job.began) / TICKS
            for stop in range(command.begin + 1, command.stop):
                seconds = self.world.refine_s(job.number, command.begin, stop, job.width)
                found = (stop, seconds) if seconds <= passed_s else found
        return found

    def _reached(self, job: Job) -> Reached | None:
        (stop, _), key = self._saved(job), job.command.item_key
        if not stop:
            return None
        phases = (*self._phases.get(key, ()), Phase(stop, job.width, ""))
        self._phases[key] = phases
        return Reached(self._now_s, key, job.command.attempt, self.world.decisions[job.number], stop, NO_TIMINGS, phases)

    def _renew_if_done(self, unit: Unit) -> None:
        if not unit.ready and not unit.jobs:
            del self._units[unit.name]
            unit.renew()
            self._push(self.world.realism.restart_s, unit)

    def _sum_up(self) -> Outcome:
        self.meter.advance(self._now)
        self.outcome.makespan_s = self._now_s
        self.outcome.idle_s = self.meter.idle_s()
        return self.outcome


def simulate(scheduler: Scheduler, world: World, fleet: Fleet, seed: int = 0, checkpoints: bool = True) -> Outcome:
    """Raises RuntimeError when items are left that nobody can run."""
    return Simulation(scheduler, world, fleet, seed, checkpoints).run()
