"""Commands go out to workers and come back as events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from orchestrator.checkpoints import CheckpointLost
from orchestrator.crew import Crew, Unit
from orchestrator.events import (
    Command,
    Decoded,
    Event,
    PhaseDone,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
)
from orchestrator.inbox import Inbox, Ref
from orchestrator.jobs import Job, blame, cause_of, failure_of, is_death
from orchestrator.patience import Patience
from orchestrator.runbook import Runbook
from orchestrator.staff import Staff
from orchestrator.types import Decision, Item
from orchestrator.work import order

POLL_S = 5.0
"""How often a slice at work is asked how far it is, at most."""
POLLS = 8
"""How often within the time that it may stand still: with hundreds of slices at work, no more than is needed."""
LOOK_S = 1.0
"""How often deadlines are looked at."""
SOON_S = 0.2
"""The same while a slice is failing."""
GRACE_S = 10.0
"""How long the other ranks of a slice have to answer once one has failed: they may be stuck in a collective without it."""
STALL = 3.0
"""Collective timeouts without a step after which a slice is lost anyway: what waits inside a GPU may wait for ever."""


def most_step_s(collective_timeout_s: float) -> float:
    """As long as a slice is ever waited for."""
    return STALL * collective_timeout_s + GRACE_S


class Errands:
    """What is at work, and the way of each command to its workers and back."""

    def __init__(
        self,
        crew: Crew,
        inbox: Inbox,
        staff: Staff,
        runbook: Runbook,
        tell: Callable[[Event], None],
        now_s: Callable[[], float],
        patience: Patience,
        decision_of: Callable[[str], Decision | None],
    ) -> None:
        self.crew, self.inbox, self.staff, self.runbook, self.tell, self.now_s = crew, inbox, staff, runbook, tell, now_s
        self.patience, self.decision_of = patience, decision_of
        self._looked_s = 0.0
        self._num_failing = 0
        self._boundaries: dict[str, tuple[str, Ref]] = {}
        """The node on which each item's last boundary lies."""

    @property
    def pause_s(self) -> float:
        """How long the shell may wait for news before it looks at deadlines again."""
        return SOON_S if self._num_failing else LOOK_S

    def start(self, command: Command, item: Item) -> None:
        if isinstance(command, StartPhase):
            self._start_phase(command, item)
        elif isinstance(command, StartDecode):
            self._start_decode(command, item)
        elif isinstance(command, StartSketch):
            unit = self.crew.units[command.worker]
            answer, boundary = unit.actors[0].sketch.options(num_returns=2).remote(order(item))
            self._await(Job(command, item, unit, (0,), boundary), {0: answer})

    def _start_phase(self, command: StartPhase, item: Item) -> None:
        """Every rank of the slice is told; the first one's boundary counts."""
        unit, piece = self.crew.units[command.slice.pod], command.slice
        ordered = order(item, piece, command.begin, command.stop)
        calls = {rank: unit.actors[rank].refine.options(num_returns=2).remote(command.handle, ordered) for rank in piece.ranks}
        job = Job(command, item, unit, tuple(piece.ranks), calls[piece.start][1])
        self._await(job, {rank: refs[0] for rank, refs in calls.items()})

    def _start_decode(self, command: StartDecode, item: Item) -> None:
        unit, path = self.crew.units[command.worker], self.runbook.staging(item, command.attempt)
        ordered = order(item, path) if command.slice is None else order(item, path, command.slice)
        ranks = (0,) if command.slice is None else tuple(command.slice.ranks)
        calls = {rank: unit.actors[rank].decode.remote(command.handle, ordered) for rank in ranks}
        self._await(Job(command, item, unit, ranks), calls)

    def _await(self, job: Job, answers: dict[int, Ref]) -> None:
        job.unit.jobs[job.key] = job
        for rank, ref in answers.items():
            self.inbox.expect(ref, job.unit.name, partial(self._on_answer, job, rank))

    def _on_answer(self, job: Job, rank: int, outcome: Any) -> None:
        if job.unit.jobs.get(job.key) is not job:
            return
        if is_death(outcome):
            self.staff.on_death(job.unit, rank, outcome)
            return
        job.answers[rank] = outcome
        if isinstance(outcome, Exception) and job.deadline_s is None:
            job.deadline_s = time.monotonic() + GRACE_S
            self._num_failing += 1
        if not job.waiting:
            self._conclude(job)

    def look(self) -> None:
        """At the deadlines of what is at work, now and then."""
        now_s = time.monotonic()
        if now_s < self._looked_s + self.pause_s:
            return
        self._looked_s = now_s
        for job in self.jobs():
            if job.unit.jobs.get(job.key) is job:  # and not lost with another just now
                self._look_after(job, now_s)
        self._num_failing = sum(job.deadline_s is not None for job in self.jobs())

    def jobs(self) -> Iterator[Job]:
        """Everything at work, as it is now."""
        yield from [job for unit in self.crew.units.values() for job in unit.jobs.values()]

    def _look_after(self, job: Job, now_s: float) -> None:
        """A failing slice has its time to answer; one at work is asked how far it is; who stands still is lost."""
        if job.deadline_s is not None:
            if now_s > job.deadline_s:
                self._conclude(job)
        elif (hung := self._hung(job, now_s)) is not None:
            self.staff.lose(job.unit, set(job.ranks), hung)
        elif isinstance(job.command, StartPhase) and now_s > job.asked_s + max(POLL_S, self._allowed_s(job) / POLLS):
            job.asked_s = now_s
            asked = job.unit.actors[job.ranks[0]].doing.options(concurrency_group="ask").remote()
            self.inbox.expect(asked, job.unit.name, job.hear)

    def _hung(self, job: Job, now_s: float) -> str | None:
        """Why it is given up; None while there is hope. Steps are heard of, a sketch or decode only ends."""
        allowed_s = self._allowed_s(job)
        if isinstance(job.command, StartPhase):
            return f"{job.whereabouts()}: no step in {allowed_s:.0f} s" if now_s > job.moved_s + allowed_s else None
        return f"{job.clip}, {job.stages}: not done in {allowed_s:.0f} s" if now_s > job.began_s + allowed_s else None

    def _allowed_s(self, job: Job) -> float:
        if not isinstance(job.command, StartPhase):
            return self.patience.whole_s(job.command, job.item)
        if job.allowed_s is None:
            job.allowed_s = self.patience.step_s(job.command, job.item, self.decision_of(job.key))
        return job.allowed_s

    def _conclude(self, job: Job) -> None:
        """All ranks have answered, or have had their time to."""
        if job.lost:
            self.staff.lose(job.unit, job.lost, f"{job.whereabouts()}: {blame(job.lost, job.problems)}")
            return
        if job.problems and not any(isinstance(cause_of(problem), CheckpointLost) for problem in job.problems.values()):
            self.staff.before_loss(job)  # a file that its worker cannot read would be no help, though the driver can
        del job.unit.jobs[job.key]
        self.tell(self._failure(job) if job.problems else self._success(job))
        if job.unit.leaving_s is not None:
            self.bring_boundaries(job.unit)
        self.staff.renew_if_done(job.unit)

    def bring_boundaries(self, unit: Unit) -> None:
        """Copy what lies on a node that is to be taken away to this one, unopened."""
        import ray

        lying = [ref for where, ref in self._boundaries.values() if where == unit.node]
        if lying:
            ray.wait(lying, num_returns=len(lying), timeout=0, fetch_local=True)

    def forget(self, item_key: str) -> None:
        """An item is given up."""
        self._boundaries.pop(item_key, None)

    def _note_boundary(self, job: Job) -> None:
        if job.boundary is None:
            self._boundaries.pop(job.key, None)
        else:
            self._boundaries[job.key] = job.unit.node, job.boundary

    def _failure(self, job: Job) -> Event:
        rank, problem = next(iter(job.problems.items()))
        where = f"{job.unit.name} rank {rank}, {job.whereabouts()}" if job.unit.kind == "pod" else ""
        return failure_of(self.now_s(), job.command, problem, where)

    def _success(self, job: Job) -> Event:
        command, answer, now_s = job.command, job.answers[job.ranks[0]], self.now_s()
        key, attempt = command.item_key, command.attempt
        self._note_boundary(job)
        if not isinstance(command, StartPhase):
            self.patience.saw(command, job.item, time.monotonic() - job.began_s)
        if isinstance(command, StartSketch):
            decision, timings_s = answer
            return Sketched(now_s, key, attempt, decision, timings_s, job.boundary)
        if isinstance(command, StartPhase):
            return PhaseDone(now_s, key, attempt, command.stop, answer, job.boundary)
        return Decoded(now_s, key, attempt, answer)
