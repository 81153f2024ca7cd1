"""Workers come and go: hired as nodes have room, replaced when they die, joined to a running sweep and let go of it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.crew import PLACE_TIMEOUT_S, START_TIMEOUT_S, Crew, Unit
from orchestrator.events import Event, WorkerJoined, WorkerLost
from orchestrator.inbox import Inbox
from orchestrator.jobs import Job, is_death, summary
from orchestrator.mistakes import RunError

MAX_START_FAILURES = 3
"""Failures in a row before a worker was ever ready, after which the machine is at fault: the sweep stops if nobody else does
this work, and otherwise the slot is tried again after a pause."""
PAUSES_S = (10.0, 60.0, 300.0)
"""Between further tries."""
LOOK_S = 0.2
"""How often it is asked whether pods that wait for a node have one."""


@dataclass(frozen=True)
class Vacancy:
    """A slot that is to be filled again later."""

    due_s: float
    kind: str
    slot: int
    generation: int


class Staff:
    """Every unit of the crew from being asked for to being let go. ``tell`` hears of those that join and are lost."""

    def __init__(
        self,
        crew: Crew,
        inbox: Inbox,
        tell: Callable[[Event], None],
        now_s: Callable[[], float],
        before_loss: Callable[[Job], None],
    ) -> None:
        self.crew, self.inbox, self.tell, self.now_s, self.before_loss = crew, inbox, tell, now_s, before_loss
        self._failures: Counter[tuple[str, int]] = Counter()
        self._vacancies: list[Vacancy] = []
        self._looked_s = 0.0

    def hire_all(self) -> None:
        """Ask for everybody. Raises RunError when a cluster of our own has no room for a crew with one pod."""
        why_not = self.crew.refusal() if self.crew.cluster.owned else None
        if why_not:
            raise RunError(why_not)
        for kind, slot in self.crew.slots():
            self._hire(kind, slot)

    def look(self, num_open: int) -> None:
        """What nobody tells: nodes that came, pauses that are over, workers that are late. ``num_open`` items are to be made.

        Raises RunError when a kind of worker cannot be had.
        """
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        for unit in self.crew.placed():
            self._start(unit)
        self._fill_vacancies(now_s)
        self._match(self._wanted_pods(num_open))
        self._refuse_to_wait_forever(now_s)

    # Hiring

    def _hire(self, kind: str, slot: int, generation: int = 0, group: Any = None) -> None:
        unit = self.crew.ask(kind, slot, generation, group)
        if kind != "pod" or group is not None:
            self._start(unit)

    def _start(self, unit: Unit) -> None:
        for rank, ref in enumerate(self.crew.start(unit)):
            self.inbox.expect(ref, unit.name, partial(self._on_ready, unit, rank))
            watch = unit.actors[rank].watch.options(concurrency_group="watch").remote()
            self.inbox.watch(watch, unit.name, partial(self.on_death, unit, rank))

    def _on_ready(self, unit: Unit, rank: int, outcome: Any) -> None:
        if is_death(outcome) or (unit.kind == "pod" and isinstance(outcome, Exception)):  # ranks fail when another dies
            return self.on_death(unit, rank, outcome)
        if isinstance(outcome, Exception):
            raise RunError(f"{unit.name} cannot start: {summary(outcome)}") from outcome
        unit.starting.discard(rank)
        if rank == 0:
            unit.place = outcome
        if not unit.starting:
            self._failures.pop((unit.kind, unit.slot), None)
            self.tell(WorkerJoined(self.now_s(), unit.kind, unit.name, len(unit.actors)))
        return None

    def _fill_vacancies(self, now_s: float) -> None:
        due = [vacancy for vacancy in self._vacancies if now_s > vacancy.due_s]
        self._vacancies = [vacancy for vacancy in self._vacancies if vacancy not in due]
        for vacancy in due:
            self._hire(vacancy.kind, vacancy.slot, vacancy.generation)

    def _wanted_pods(self, num_open: int) -> int:
        """Beyond the first ``pods``, one more for every pod's worth of items, so that no node is booted for the last few."""
        config = self.crew.config
        return max(config.pods, min(config.most_pods, num_open // config.heavy_ranks))

    def _match(self, wanted: int) -> None:
        """Ask for the pods that are wanted and not there, and no longer for those that wait for a node in vain."""
        pods = {unit.slot: unit for unit in self.crew.of("pod")}
        for slot in range(self.crew.config.pods, self.crew.config.most_pods):
            unit = pods.get(slot)
            if unit is None and slot < wanted and not any(v.kind == "pod" and v.slot == slot for v in self._vacancies):
                self._hire("pod", slot)
            elif unit is not None and unit.asked and slot >= wanted:
                self.crew.dismiss(unit)

    # Loss

    def on_death(self, unit: Unit, rank: int, outcome: Any) -> None:
        """A rank is gone: its items go back to the scheduler, the unit's other slices finish, then the unit is renewed."""
        if self.crew.units.get(unit.name) is not unit or rank in unit.dead:
            return
        if unit.starting:
            self._on_failed_start(unit, summary(outcome))
        elif unit.kind != "pod":
            self.lose(unit, {rank}, summary(outcome))
        elif self.crew.is_gone(unit):
            self.lose(unit, set(range(len(unit.actors))), f"its node is gone: {summary(outcome)}")
        else:
            job = next((job for job in unit.jobs.values() if rank in job.ranks), None)
            where = f" in {job.whereabouts()}" if job else ""
            self.lose(unit, {rank}, f"rank {rank} died{where}: {summary(outcome)}")

    def lose(self, unit: Unit, ranks: set[int], reason: str) -> None:
        """Ranks cannot be used any more, nor those that do an item with them, which end at once: none waits for the lost ones."""
        jobs = [job for job in unit.jobs.values() if ranks & set(job.ranks)]
        for job in jobs:
            self.before_loss(job)
            del unit.jobs[job.key]
        gone = ranks.union(*(job.ranks for job in jobs)) - unit.dead
        self.crew.kill(unit, gone)
        unit.dead |= gone
        self.tell(WorkerLost(self.now_s(), unit.name, reason, tuple(sorted(ranks)) if unit.kind == "pod" else ()))
        self.renew_if_done(unit)

    def renew_if_done(self, unit: Unit) -> None:
        if unit.dead and not unit.jobs:
            self._renew(unit)

    def _renew(self, unit: Unit) -> None:
        """In the same place, or wherever there is room once the place is gone."""
        self.inbox.forget(unit.name)
        group = self.crew.keep_node(unit)
        self.crew.dismiss(unit)
        self._hire(unit.kind, unit.slot, unit.generation + 1, group)

    def _on_failed_start(self, unit: Unit, reason: str) -> None:
        self._failures[unit.kind, unit.slot] += 1
        failures = self._failures[unit.kind, unit.slot]
        if failures < MAX_START_FAILURES:
            return self._renew(unit)
        if not any(other.ready for other in self.crew.of(unit.kind)):
            raise RunError(f"{unit.name} failed {MAX_START_FAILURES} times in a row before it was ready: {reason}")
        self.inbox.forget(unit.name)
        self.crew.dismiss(unit)
        pause_s = PAUSES_S[min(failures - MAX_START_FAILURES, len(PAUSES_S) - 1)]
        self._vacancies.append(Vacancy(time.monotonic() + pause_s, unit.kind, unit.slot, unit.generation + 1))
        return None

    def _refuse_to_wait_forever(self, now_s: float) -> None:
        """A kind of which nobody is ready in time ends the sweep; one that is late beside others is tried again."""
        for kind in {kind for kind, _ in self.crew.slots()}:
            units = self.crew.of(kind)
            late = [unit for unit in units if (unit.asked or unit.starting) and now_s > unit.deadline_s]
            if late and len(late) == len(units):
                raise RunError(self._too_late(late[0]))
            for unit in late:
                self._start_again(unit)

    def _start_again(self, unit: Unit) -> None:
        if unit.asked:
            unit.deadline_s = time.monotonic() + PLACE_TIMEOUT_S
        else:
            self._renew(unit)

    def _too_late(self, unit: Unit) -> str:
        if unit.asked:
            return f"{self.crew.no_pod()}; none came within {PLACE_TIMEOUT_S:.0f} s"
        return (
            f"{unit.name} was not ready after {START_TIMEOUT_S:.0f} s; it needs {self.crew.needs(unit.kind)} on a "
            "node of its role, and its weights loaded in that time; `ray status` shows what the cluster offers"
        )
