"""The shell that runs a sweep on Ray: carries the scheduler's commands out and tells it what came of them.

One loop around ``ray.wait``. Three things are awaited: units that start, a never-ending call on every actor (which fails
when the actor dies, busy or idle), and the work itself. Every policy is the scheduler's.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from orchestrator.cluster import Cluster, start_or_join
from orchestrator.config import Sweep
from orchestrator.crew import START_TIMEOUT_S, Crew, Ref, Unit
from orchestrator.events import (
    Arrived,
    Command,
    Decoded,
    Event,
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
from orchestrator.interrupts import kept_interrupts
from orchestrator.jobs import Job, blame, failure_of, is_death, outcome_of, summary
from orchestrator.local import OnEvent
from orchestrator.mistakes import RunError
from orchestrator.pods import ClipWorkshop, Place, Workshop, shards_of
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from orchestrator.types import Item

MAX_START_FAILURES = 3
"""Failures in a row before a worker was ever ready, after which the sweep stops: the machine is at fault, not an item."""
WAIT_S = 1.0
"""How often deadlines, and whether Ctrl-C came, are looked at while nothing happens."""
POLL_S = 5.0
"""How often a slice at work is asked how far it is."""
SOON_S = 0.2
"""The same for what is left of a failing slice."""
GRACE_S = 10.0
"""How long the other ranks of a slice have to answer once one has failed: they may be stuck in a collective without it."""
STALL = 3.0
"""Collective timeouts without a step after which a slice is lost: what waits inside a GPU may wait for ever."""


def run_on_ray(
    sweep: Sweep,
    items: Iterable[Item],
    scheduler: Scheduler,
    runbook: Runbook,
    on_event: OnEvent = lambda event, commands: None,
    workshop: Workshop | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Make ``items`` on a cluster: ``cluster`` if given, else the one ``start_or_join`` finds, left again at the end.

    Raises RunError when workers cannot be had. An interrupt passes through after the sweep's own actors are gone.
    """
    joined = cluster or start_or_join(sweep.cluster.address)
    try:
        config = sweep.cluster
        shards = shards_of(scheduler.policy)
        made = workshop or ClipWorkshop(sweep.arms_by_name, config.attention, config.compile_blocks, shards)
        crew = Crew(joined, config, made)
        RayShell({item.item_key: item for item in items}, crew, scheduler, runbook, on_event).run()
    finally:
        if cluster is None:
            joined.leave()


class RayShell:
    def __init__(self, items: dict[str, Item], crew: Crew, scheduler: Scheduler, runbook: Runbook, on_event: OnEvent) -> None:
        self.items = items
        self.crew = crew
        self.scheduler = scheduler
        self.runbook = runbook
        self.on_event = on_event
        self._started_s = time.monotonic()
        self._awaited: dict[Ref, tuple[Unit, Callable[[Any], None]]] = {}
        """What to do with each reference's outcome, and the unit it comes from."""
        self._jobs: dict[str, Job] = {}
        self._places: dict[str, Place] = {}
        """Where each item was last refined."""
        self._start_failures: Counter[tuple[str, int]] = Counter()

    def run(self) -> None:
        try:
            for kind, slot in self.crew.slots():
                self._hire(kind, slot, generation=0)
            for item in self.items.values():
                self._tell(Arrived(self._now_s(), item))
            with kept_interrupts() as raise_kept:
                while not self.scheduler.finished:
                    self._wait()
                    raise_kept()
        finally:
            self.crew.close()

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        self.runbook.ledger.write_event(self.scheduler.log[-1])
        for command in commands:
            self._carry_out(command)
        self.on_event(event, commands)

    def _wait(self) -> None:
        import ray

        failing = any(job.deadline_s is not None for job in self._jobs.values())
        ready, _ = ray.wait(list(self._awaited), num_returns=1, timeout=SOON_S if failing else WAIT_S)
        for ref in ready:
            _, then = self._awaited.pop(ref)
            then(outcome_of(ref))
        for job in list(self._jobs.values()):
            self._look_after(job, time.monotonic())
        self._refuse_to_wait_forever()

    # Workers come and go

    def _hire(self, kind: str, slot: int, generation: int) -> None:
        unit, ready = self.crew.hire(kind, slot, generation)
        for rank, ref in enumerate(ready):
            self._awaited[ref] = unit, partial(self._on_ready, unit, rank)
            watch = unit.actors[rank].watch.options(concurrency_group="watch").remote()
            self._awaited[watch] = unit, partial(self._on_death, unit, rank)

    def _on_ready(self, unit: Unit, rank: int, outcome: Any) -> None:
        if is_death(outcome) or (unit.kind == "pod" and isinstance(outcome, Exception)):  # ranks fail when another dies
            return self._on_death(unit, rank, outcome)
        if isinstance(outcome, Exception):
            raise RunError(f"{unit.name} cannot start: {summary(outcome)}") from outcome
        unit.starting.discard(rank)
        if rank == 0:
            unit.place = outcome
        if not unit.starting:
            self._start_failures.pop((unit.kind, unit.slot), None)
            self._tell(WorkerJoined(self._now_s(), unit.kind, unit.name, len(unit.actors)))
        return None

    def _on_death(self, unit: Unit, rank: int, outcome: Any) -> None:
        """A rank is gone: its items go back to the scheduler, the unit's other slices finish, then the unit is renewed."""
        if unit.starting:
            return self._on_failed_start(unit, summary(outcome))
        if rank in unit.dead:
            return None
        job = next((job for job in self._jobs_of(unit) if rank in job.ranks), None)
        reason = summary(outcome)
        if unit.kind == "pod":
            reason = f"rank {rank} died{f' in {job.whereabouts()}' if job else ''}: {reason}"
        return self._lose(unit, {rank}, reason, job)

    def _lose(self, unit: Unit, ranks: set[int], reason: str, job: Job | None) -> None:
        unit.dead |= ranks
        if job is not None:
            self._drop(job)
        self._tell(WorkerLost(self._now_s(), unit.name, reason, tuple(sorted(ranks)) if unit.kind == "pod" else ()))
        self._renew_if_done(unit)

    def _on_failed_start(self, unit: Unit, reason: str) -> None:
        self._start_failures[unit.kind, unit.slot] += 1
        if self._start_failures[unit.kind, unit.slot] >= MAX_START_FAILURES:
            raise RunError(f"{unit.name} failed {MAX_START_FAILURES} times in a row before it was ready: {reason}")
        self._renew(unit)

    def _renew_if_done(self, unit: Unit) -> None:
        if unit.dead and not self._jobs_of(unit):
            self._renew(unit)

    def _renew(self, unit: Unit) -> None:
        self._awaited = {ref: entry for ref, entry in self._awaited.items() if entry[0] is not unit}
        self.crew.dismiss(unit)
        self._hire(unit.kind, unit.slot, unit.generation + 1)

    def _refuse_to_wait_forever(self) -> None:
        late = [u for u in self.crew.units if u.starting and time.monotonic() > u.deadline_s]
        if late:
            raise RunError(
                f"{late[0].name} was not ready after {START_TIMEOUT_S:.0f} s; it needs {self.crew.needs(late[0].kind)} on a "
                "node of its role, and its weights loaded in that time; `ray status` shows what the cluster offers"
            )

    # Work goes out and comes back

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Finish):
            place = self._places.pop(command.item_key)
            self.runbook.finish(command, place.device, place.host)
        elif isinstance(command, GiveUp):
            self._places.pop(command.item_key, None)
            self.runbook.give_up(command)
        else:
            self._start(command)

    def _start(self, command: Command) -> None:
        item = self.items[command.item_key]
        if isinstance(command, StartPhase):
            self._start_phase(command, item)
        elif isinstance(command, StartDecode):
            self._start_decode(command, item)
        elif isinstance(command, StartSketch):
            unit = self._unit(command.worker)
            answer, boundary = unit.actors[0].sketch.options(num_returns=2).remote(item)
            self._await(Job(command, item, unit, (0,), boundary), {0: answer})

    def _start_phase(self, command: StartPhase, item: Item) -> None:
        """Every rank of the slice is told; the first one's boundary counts."""
        unit, piece = self._unit(command.slice.pod), command.slice
        calls = {
            rank: unit.actors[rank].refine.options(num_returns=2).remote(item, command.handle, piece, command.begin, command.stop)
            for rank in piece.ranks
        }
        if unit.place is not None:
            self._places[item.item_key] = unit.place
        job = Job(command, item, unit, tuple(piece.ranks), calls[piece.start][1])
        self._await(job, {rank: refs[0] for rank, refs in calls.items()})

    def _start_decode(self, command: StartDecode, item: Item) -> None:
        unit, path = self._unit(command.worker), self.runbook.staging(item, command.attempt)
        arguments = (item, command.handle, path) if command.slice is None else (item, command.handle, path, command.slice)
        ranks = (0,) if command.slice is None else tuple(command.slice.ranks)
        calls = {rank: unit.actors[rank].decode.remote(*arguments) for rank in ranks}
        self._await(Job(command, item, unit, ranks), calls)

    def _await(self, job: Job, answers: dict[int, Ref]) -> None:
        self._jobs[job.command.item_key] = job
        for rank, ref in answers.items():
            self._awaited[ref] = job.unit, partial(self._on_answer, job, rank)

    def _on_answer(self, job: Job, rank: int, outcome: Any) -> None:
        if self._jobs.get(job.command.item_key) is not job:
            return
        if is_death(outcome):
            self._on_death(job.unit, rank, outcome)
            return
        job.answers[rank] = outcome
        if isinstance(outcome, Exception) and job.deadline_s is None:
            job.deadline_s = time.monotonic() + GRACE_S
        if not job.waiting:
            self._conclude(job)

    def _look_after(self, job: Job, now_s: float) -> None:
        """A failing slice has its time to answer; one at work is asked how far it is, and lost when it stands still."""
        patience_s = STALL * self.crew.config.collective_timeout_s + GRACE_S
        if job.deadline_s is not None:
            if now_s > job.deadline_s:
                self._conclude(job)
        elif len(job.ranks) > 1 and now_s > job.moved_s + patience_s:
            self._lose(job.unit, set(job.ranks), f"{job.whereabouts()}: no step in {patience_s:.0f} s", job)
        elif len(job.ranks) > 1 and now_s > job.asked_s + POLL_S:
            job.asked_s = now_s
            asked = job.unit.actors[job.ranks[0]].doing.options(concurrency_group="ask").remote()
            self._awaited[asked] = job.unit, job.hear

    def _conclude(self, job: Job) -> None:
        """All ranks have answered, or have had their time to."""
        if job.lost:
            self._lose(job.unit, job.lost, f"{job.whereabouts()}: {blame(job.lost, job.problems)}", job)
            return
        self._drop(job)
        self._tell(self._failure(job) if job.problems else self._success(job))
        self._renew_if_done(job.unit)

    def _failure(self, job: Job) -> Event:
        rank, problem = next(iter(job.problems.items()))
        where = f"{job.unit.name} rank {rank}, {job.whereabouts()}" if job.unit.kind == "pod" else ""
        return failure_of(self._now_s(), job.command, problem, where)

    def _success(self, job: Job) -> Event:
        command, answer, now_s = job.command, job.answers[job.ranks[0]], self._now_s()
        key, attempt = command.item_key, command.attempt
        if isinstance(command, StartSketch):
            decision, timings_s = answer
            return Sketched(now_s, key, attempt, decision, timings_s, job.boundary)
        if isinstance(command, StartPhase):
            return PhaseDone(now_s, key, attempt, command.stop, answer, job.boundary)
        return Decoded(now_s, key, attempt, answer)

    def _drop(self, job: Job) -> None:
        del self._jobs[job.command.item_key]

    def _jobs_of(self, unit: Unit) -> list[Job]:
        return [job for job in self._jobs.values() if job.unit is unit]

    def _unit(self, name: str) -> Unit:
        return next(unit for unit in self.crew.units if unit.name == name)
