"""The shell that runs a sweep on Ray: carries the scheduler's commands out and tells it what came of them.

One loop: what Ray answered since the last turn, then what nobody tells. Workers are :class:`~orchestrator.staff.Staff`'s, the
work they do :class:`~orchestrator.errands.Errands`', every policy the scheduler's.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import closing

from orchestrator import eventlog
from orchestrator.cluster import Cluster, start_or_join
from orchestrator.config import Sweep
from orchestrator.crew import Crew, Unit
from orchestrator.errands import Errands, most_step_s
from orchestrator.events import Command, Event, Finish, GiveUp, StartDecode, StartPhase
from orchestrator.inbox import Inbox
from orchestrator.interrupts import Interrupts, kept_interrupts
from orchestrator.jobs import Job
from orchestrator.local import OnEvent
from orchestrator.outside import Drains, Head, HeadLost
from orchestrator.patience import Patience
from orchestrator.pods import ClipWorkshop, Place, Workshop, shards_of
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from orchestrator.scribe import Scribe
from orchestrator.staff import Staff
from orchestrator.types import Decision, Item


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
        kept = runbook.checkpoints.root if runbook.checkpoints else None
        made = workshop or ClipWorkshop(sweep.arms_by_name, config.attention, config.compile_blocks, shards, kept)
        crew = Crew(joined, config, made, sweep.name)
        RayShell({item.item_key: item for item in items}, crew, scheduler, runbook, on_event).run()
    finally:
        if cluster is None:
            joined.leave()


class RayShell:
    """The sweep begins at once with whoever is there: pods join as they are ready, and none waits for another."""

    def __init__(self, items: dict[str, Item], crew: Crew, scheduler: Scheduler, runbook: Runbook, on_event: OnEvent) -> None:
        self.items = items
        self.crew = crew
        self.scheduler = scheduler
        self.runbook = runbook
        self.on_event = on_event
        self.inbox = Inbox()
        self.scribe = Scribe(runbook)
        patience = Patience(crew.config.patience, scheduler.policy, most_step_s(crew.config.collective_timeout_s))
        self.staff = Staff(crew, self.inbox, self._tell, self._now_s, self._before_loss, self._before_leave)
        self.errands = Errands(crew, self.inbox, self.staff, runbook, self._tell, self._now_s, patience, self._decision)
        self.head = Head(crew.cluster.address)
        self.drains = Drains()
        self._started_s = time.monotonic()
        self._places: dict[str, Place] = {}
        """Where each item was last refined; where it was decoded, if that is not known."""
        self._num_open = len(items)

    def run(self) -> None:
        """Raises RunError when workers cannot be had or the cluster is lost, KeyboardInterrupt when it is to end early."""
        with kept_interrupts() as kept, self.head, closing(self.scribe):
            try:
                self.staff.hire_all()
                for item in self.items.values():
                    for event in self.runbook.arrived(item, self._now_s()):
                        self._tell(event)
                while not self.scheduler.finished:
                    self._turn(kept)
                self._write_to_the_end(kept)
            except HeadLost:
                self.crew.abandon()
                raise
            finally:
                self.crew.close()
                self.inbox.close()

    def _turn(self, kept: Interrupts) -> None:
        kept.raise_kept()
        self.head.refuse_to_wait()
        if not self.head.is_there:
            return time.sleep(self.errands.pause_s)
        if kept.ending:
            self._wind_down()
        for then, outcome in self.inbox.collect(min(self.errands.pause_s, self.staff.pause_s)):
            then(outcome)
        self.scribe.look()
        self.errands.look()
        self.staff.leave_nodes(self.drains.look())
        self.staff.look(self._num_open)
        return None

    def _wind_down(self) -> None:
        """Nobody takes anything new. Raises KeyboardInterrupt once what could be finished within the grace is finished."""
        self.staff.hiring = False
        for unit in list(self.crew.units.values()):
            self.staff.leave(unit, "SIGTERM to the driver")
        if not self.crew.units and not self.scheduler.finished and not self.scribe.busy:
            raise KeyboardInterrupt

    def _write_to_the_end(self, kept: Interrupts) -> None:
        while self.scribe.busy:
            kept.raise_kept()
            self.scribe.look(self.errands.pause_s)

    def _now_s(self) -> float:
        return time.monotonic() - self._started_s

    def _tell(self, event: Event) -> None:
        commands = self.scheduler.handle(event)
        self.runbook.ledger.write_event(eventlog.row(event, commands))
        for command in commands:
            self._carry_out(command)
        self.on_event(event, commands)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Finish):
            place = self._places.pop(command.item_key)
            self._num_open -= 1
            self.scribe.write(command, place)
        elif isinstance(command, GiveUp):
            self._places.pop(command.item_key, None)
            self.errands.forget(command.item_key)
            self._num_open -= 1
            self.runbook.give_up(command)
        else:
            self._start(command)

    def _start(self, command: Command) -> None:
        if isinstance(command, StartPhase) and (place := self.crew.units[command.slice.pod].place):
            self._places[command.item_key] = place
        elif isinstance(command, StartDecode) and (place := self.crew.units[command.worker].place):
            self._places.setdefault(command.item_key, place)  # of a clip refined in an earlier start of the run
        self.errands.start(command, self.items[command.item_key])

    def _decision(self, item_key: str) -> Decision | None:
        entry = self.scheduler.books.items.get(item_key)
        return entry.decision if entry else None

    def _before_leave(self, unit: Unit) -> None:
        self.errands.bring_boundaries(unit)

    def _before_loss(self, job: Job) -> None:
        """A checkpoint says how far the clip is whose attempt is about to be lost."""
        if reached := self.runbook.reached(job.key, job.command.attempt, self._now_s()):
            self._tell(reached)
