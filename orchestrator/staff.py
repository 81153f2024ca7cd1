"""Workers come and go: hired as nodes have room, replaced when they die, joined to a running sweep and let go of it."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrator.crew import PLACE_TIMEOUT_S, START_TIMEOUT_S, Crew, Unit
from orchestrator.events import Event, WorkerJoined, WorkerLeaving, WorkerLost
from orchestrator.inbox import Inbox
from orchestrator.jobs import Job, cause_of, is_death, summary
from orchestrator.mistakes import RunError

MAX_START_FAILURES = 3
"""Failures in a row before a worker was ready, after which a slot is tried again with pauses only. The sweep ends instead if
nobody did this work yet: the machine is at fault, not an item."""
PAUSES_S = (10.0, 60.0, 300.0)
"""Between further tries; after the last, the sweep ends if nobody does this work."""
AWAY_S = 30.0
"""After the grace of who got a SIGTERM: until then the node that is to go would be given to its successor too."""
LAST_S = 5.0
"""Of a node's last seconds, those in which nothing is relied upon."""
SOON_S = 10.0
"""For how long a pod that was asked for is looked for that often."""
ASK_S = 3.0
"""How often it is asked whether pods that have waited for longer have a node: it costs the head a list of all groups."""
LOOK_S = 0.2
"""How often it is asked whether pods that wait for a node have one."""


@dataclass(frozen=True)
class Vacancy:
    """A slot that is to be filled again later."""

    due_s: float
    kind: str
    slot: int


class Staff:
    """Every unit of the crew from being asked for to being let go. ``tell`` hears of those that join and are lost."""

    def __init__(
        self,
        crew: Crew,
        inbox: Inbox,
        tell: Callable[[Event], None],
        now_s: Callable[[], float],
        before_loss: Callable[[Job], None],
        before_leave: Callable[[Unit], None],
    ) -> None:
        self.crew, self.inbox, self.tell, self.now_s = crew, inbox, tell, now_s
        self.before_loss, self.before_leave = before_loss, before_leave
        self.hiring = True
        """False once the sweep is to end: who goes is not replaced."""
        self._failures: Counter[tuple[str, int]] = Counter()
        self._proven: set[str] = set()
        """Kinds of which somebody was ready: what they need is there, and failures to start are the cluster's weather."""
        self._vacancies: list[Vacancy] = []
        self._generations: Counter[tuple[str, int]] = Counter()
        """How many units each slot has had."""
        self._looked_s = self._asked_s = 0.0
        self._most_pods = crew.config.most_pods
        """More than these are not replaced."""

    def hire_all(self) -> None:
        """Ask for everybody. Raises RunError when a cluster of our own has no room for a crew with one pod."""
        why_not = self.crew.refusal() if self.crew.cluster.owned else None
        if why_not:
            raise RunError(why_not)
        for kind, slot in self.crew.slots():
            self._hire(kind, slot)

    @property
    def pause_s(self) -> float:
        """How long the shell may wait for news: a pod that was asked for just now has its node in no time, if there is one."""
        since_s = time.monotonic() - SOON_S
        return LOOK_S if any(unit.asked and unit.asked_s > since_s for unit in self.crew.of("pod")) else math.inf

    def look(self, num_open: int) -> None:
        """What nobody tells: nodes that came, pauses that are over, workers that are late. ``num_open`` items are to be made.

        Raises RunError when a kind of worker cannot be had.
        """
        now_s = time.monotonic()
        if now_s < self._looked_s + LOOK_S:
            return
        self._looked_s = now_s
        self._let_go(now_s)
        if self.hiring:
            self._start_placed(now_s)
            self._fill_vacancies(now_s)
            self._match(num_open)
            self._refuse_to_wait_forever(now_s)

    # Hiring

    def _hire(self, kind: str, slot: int, group: Any = None) -> None:
        unit = self.crew.ask(kind, slot, self._generations[kind, slot], group)
        self._generations[kind, slot] += 1
        if kind != "pod" or group is not None:
            self._start(unit)

    def _start(self, unit: Unit) -> None:
        for rank, ref in enumerate(self.crew.start(unit)):
            self.inbox.expect(ref, unit.name, partial(self._on_ready, unit, rank))
            self._watch(unit, rank)

    def _watch(self, unit: Unit, rank: int, noticed: bool = False) -> None:
        watch = unit.actors[rank].watch.options(concurrency_group="watch").remote(noticed)
        self.inbox.expect(watch, unit.name, partial(self._on_watch, unit, rank))

    def _on_watch(self, unit: Unit, rank: int, outcome: Any) -> None:
        if isinstance(outcome, Exception):
            return self.on_death(unit, rank, outcome)
        self._watch(unit, rank, noticed=True)
        return self.leave(unit, f"{outcome} to {f'rank {rank}' if unit.kind == 'pod' else 'its process'}")

    def _on_ready(self, unit: Unit, rank: int, outcome: Any) -> None:
        if is_death(outcome):
            return self.on_death(unit, rank, outcome)
        if isinstance(outcome, Exception):
            self._refuse_mistake(unit, outcome)
            return self.on_death(unit, rank, outcome)
        unit.starting.discard(rank)
        if rank == 0:
            unit.place = outcome
        if not unit.starting:
            self._failures.pop((unit.kind, unit.slot), None)
            self._proven.add(unit.kind)
            self.tell(WorkerJoined(self.now_s(), unit.kind, unit.name, len(unit.actors)))
        return None

    def _refuse_mistake(self, unit: Unit, problem: Exception) -> None:
        """Raises RunError for what another try would not mend. A pod's ranks also fail when another of them dies."""
        weather = unit.kind in self._proven and not isinstance(cause_of(problem), RunError)
        if unit.kind != "pod" and not weather:
            raise RunError(f"{unit.name} cannot start: {summary(problem)}") from problem

    def _fill_vacancies(self, now_s: float) -> None:
        due = [vacancy for vacancy in self._vacancies if now_s > vacancy.due_s]
        self._vacancies = [vacancy for vacancy in self._vacancies if vacancy not in due]
        for vacancy in due:
            self._hire(vacancy.kind, vacancy.slot)

    def _start_placed(self, now_s: float) -> None:
        """Pods that waited for a node and have one. Of those that wait for long the head is asked less often."""
        if math.isinf(self.pause_s) and now_s < self._asked_s + ASK_S:
            return
        self._asked_s = now_s
        for unit in self.crew.placed():
            self._start(unit)

    def _pods_for(self, num_items: float) -> int:
        """Beyond the first ``pods``, one more for every pod's worth of items."""
        config = self.crew.config
        return max(config.pods, min(config.most_pods, int(num_items // config.heavy_ranks)))

    def _match(self, num_open: int) -> None:
        """Ask for the pods that are wanted and not there, no longer for those that wait for a node in vain, and let go of those
        that have nothing to do: an autoscaler can take their nodes. No node is booted for the last few items, but one that is
        there may do them.
        """
        pods = {unit.slot: unit for unit in self.crew.of("pod")}
        wanted, self._most_pods = self._pods_for(num_open), self._pods_for(num_open + self.crew.config.heavy_ranks - 1)
        for slot in range(self.crew.config.pods, self.crew.config.most_pods):
            unit = pods.get(slot)
            if unit is None and slot < wanted and not any(v.kind == "pod" and v.slot == slot for v in self._vacancies):
                self._hire("pod", slot)
            elif unit is not None and unit.asked and slot >= wanted:
                self.crew.dismiss(unit)
            elif unit is not None and unit.ready and not unit.jobs and not self._is_needed(unit):
                self.leave(unit, "no longer needed")

    def _is_needed(self, unit: Unit) -> bool:
        return unit.kind != "pod" or unit.slot < self._most_pods

    # Leave

    def leave(self, unit: Unit, reason: str, left_s: float | None = None) -> None:
        """A unit is to be taken away, in ``left_s`` where that is known: it takes nothing new, and has the grace to finish."""
        if unit.leaving_s is not None or self.crew.units.get(unit.name) is not unit:
            return None
        grace_s = self.crew.config.grace_s
        unit.leaving_s = time.monotonic() + (grace_s if left_s is None else max(0.0, min(grace_s, left_s - LAST_S)))
        unit.leaving_why = reason
        if unit.asked or unit.starting:
            return self._renew(unit)
        if not unit.dead:
            self.before_leave(unit)
            self.tell(WorkerLeaving(self.now_s(), unit.name, reason))
        return self.renew_if_done(unit)

    def leave_nodes(self, nodes: Mapping[str, float | None]) -> None:
        """``nodes`` are to be taken away, each in so many seconds."""
        for unit in list(self.crew.units.values()):
            if unit.place is not None and unit.place.node in nodes:
                self.leave(unit, "its node is to be taken away", nodes[unit.place.node])

    def _let_go(self, now_s: float) -> None:
        """Those whose grace is over: what they do goes on elsewhere, from its last checkpoint."""
        for unit in list(self.crew.units.values()):
            if unit.leaving_s is not None and now_s > unit.leaving_s and not unit.starting:
                self.lose(unit, set(range(len(unit.actors))), f"{unit.leaving_why}, and its grace is over", blameless=True)

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
            self.lose(unit, set(range(len(unit.actors))), f"its node is gone: {summary(outcome)}", blameless=True)
        else:
            job = next((job for job in unit.jobs.values() if rank in job.ranks), None)
            where = f" in {job.whereabouts()}" if job else ""
            self.lose(unit, {rank}, f"rank {rank} died{where}: {summary(outcome)}")

    def lose(self, unit: Unit, ranks: set[int], reason: str, blameless: bool = False) -> None:
        """Ranks cannot be used any more, nor those that do an item with them, which end at once: none waits for the lost ones."""
        jobs = [job for job in unit.jobs.values() if ranks & set(job.ranks)]
        if jobs and unit.kind == "pod" and not unit.dead and unit.leaving_s is None:  # or what is told next may begin work there
            self.tell(WorkerLeaving(self.now_s(), unit.name, reason))
        for job in jobs:
            self.before_loss(job)
            del unit.jobs[job.key]
        gone = ranks.union(*(job.ranks for job in jobs)) - unit.dead
        self.crew.kill(unit, gone)
        unit.dead |= gone
        lost = tuple(sorted(ranks)) if unit.kind == "pod" else ()
        self.tell(WorkerLost(self.now_s(), unit.name, reason, lost, blameless))
        self.renew_if_done(unit)

    def renew_if_done(self, unit: Unit) -> None:
        if (unit.dead or unit.leaving_s is not None) and not unit.jobs:
            self._renew(unit)

    def _renew(self, unit: Unit) -> None:
        """In the same place, or wherever there is room once the place is gone."""
        self.inbox.forget(unit.name)
        if unit.leaving_s is not None and unit.ready:
            self.crew.settle(unit)
        replaced = self.hiring and self._is_needed(unit)
        group = self.crew.keep_node(unit) if replaced else None
        self.crew.dismiss(unit)
        if replaced and unit.leaving_s is not None and unit.leaving_why.startswith("SIGTERM"):  # nobody said when its node goes
            self._vacancies.append(Vacancy(unit.leaving_s + AWAY_S, unit.kind, unit.slot))
        elif replaced:
            self._hire(unit.kind, unit.slot, group)

    def _on_failed_start(self, unit: Unit, reason: str) -> None:
        if not self.hiring:
            return self._renew(unit)
        self._failures[unit.kind, unit.slot] += 1
        failures = self._failures[unit.kind, unit.slot]
        if failures < MAX_START_FAILURES:
            return self._renew(unit)
        most = MAX_START_FAILURES + (len(PAUSES_S) if unit.kind in self._proven else 0)
        if failures >= most and not any(other.ready for other in self.crew.of(unit.kind)):
            raise RunError(f"{unit.name} failed {failures} times in a row before it was ready: {reason}")
        self.inbox.forget(unit.name)
        self.crew.dismiss(unit)
        pause_s = PAUSES_S[min(failures - MAX_START_FAILURES, len(PAUSES_S) - 1)]
        self._vacancies.append(Vacancy(time.monotonic() + pause_s, unit.kind, unit.slot))
        return None

    def _refuse_to_wait_forever(self, now_s: float) -> None:
        """A kind of which nobody was ever ready in time ends the sweep; who is late later, or beside others, is tried again."""
        for kind in {kind for kind, _ in self.crew.slots()}:
            units = self.crew.of(kind)
            late = [unit for unit in units if (unit.asked or unit.starting) and now_s > unit.deadline_s]
            if late and len(late) == len(units) and kind not in self._proven:
                raise RunError(self._too_late(late[0]))
            for unit in late:
                self._start_again(unit)

    def _start_again(self, unit: Unit) -> None:
        if unit.asked:
            unit.deadline_s = time.monotonic() + PLACE_TIMEOUT_S
        else:
            self._on_failed_start(unit, self._too_late(unit))

    def _too_late(self, unit: Unit) -> str:
        if unit.asked:
            return f"{self.crew.no_pod()}; none came within {PLACE_TIMEOUT_S:.0f} s"
        return (
            f"{unit.name} was not ready after {START_TIMEOUT_S:.0f} s; it needs {self.crew.needs(unit.kind)} on a "
            "node of its role, and its weights loaded in that time; `ray status` shows what the cluster offers"
        )
