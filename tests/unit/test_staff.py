"""Who is hired, replaced and let go, with a crew that exists on paper only."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.crew import Crew, Unit
from orchestrator.events import Event, Reached, StartPhase, WorkerJoined, WorkerLeaving, WorkerLost
from orchestrator.jobs import Job
from orchestrator.mistakes import RunError
from orchestrator.pods import ClipWorkshop, Place
from orchestrator.staff import MAX_START_FAILURES, PAUSES_S, Staff
from orchestrator.types import Action, Decision, Item, Slice

DECISION = Decision(Action("full", (), 1.0), "all")


class PaperCrew(Crew):
    """No Ray: nodes have room for as many pods as ``room`` says."""

    def __init__(self, config: ClusterConfig, room: int = 99) -> None:
        super().__init__(Cluster("here", False, 64, 0, False), config, ClipWorkshop({}))
        self.room = room
        self.killed: list[tuple[str, int]] = []
        self.gone: set[str] = set()
        self.settled: list[str] = []
        self.num_asked = 0

    def ask(self, kind: str, slot: int, generation: int = 0, group: Any = None) -> Unit:
        unit = Unit(kind, slot, generation, group=group, deadline_s=time.monotonic() + 60)
        self.units[unit.name] = unit
        if kind == "pod" and group is None:
            unit.group = f"group of {unit.name}"
        return unit

    def placed(self) -> list[Unit]:
        self.num_asked += 1
        pods = self.of("pod")
        free = self.room - sum(not unit.asked for unit in pods)
        return [unit for unit in pods if unit.asked][: max(0, free)]

    def start(self, unit: Unit) -> list[Any]:
        num = self.config.heavy_ranks if unit.kind == "pod" else 1
        unit.actors, unit.starting = [None] * num, set(range(num))
        return []

    def kill(self, unit: Unit, ranks: Any) -> None:
        self.killed += [(unit.name, rank) for rank in sorted(ranks)]

    def settle(self, unit: Unit) -> None:
        self.settled.append(unit.name)

    def dismiss(self, unit: Unit) -> None:
        del self.units[unit.name]

    def is_gone(self, unit: Unit) -> bool:
        return unit.name in self.gone


@dataclass
class Office:
    config: ClusterConfig
    room: int = 99
    told: list[Event] = field(default_factory=list)
    saved: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.crew = PaperCrew(self.config, self.room)
        inbox: Any = type("NoInbox", (), {"forget": lambda self, unit: None, "expect": lambda self, *entry: None})()
        self.staff = Staff(self.crew, inbox, self.told.append, lambda: 0.0, self.save, lambda unit: None)

    def save(self, job: Job) -> None:
        """What the driver does: the scheduler hears of the checkpoint, and may give out work at that."""
        self.saved.append(job.key)
        self.told.append(Reached(0.0, job.key, 1, DECISION, 1, {}))

    def look(self, num_open: int = 0) -> None:
        self.staff._looked_s = 0.0
        self.staff.look(num_open)

    def be_ready(self, name: str, node: str = "node") -> Unit:
        unit = self.crew.units[name]
        for rank in sorted(unit.starting):
            self.staff._on_ready(unit, rank, Place("cpu", "host", node))
        return unit

    def pods(self) -> list[str]:
        return sorted(unit.name for unit in self.crew.of("pod"))

    def give(self, name: str, key: str, start: int, width: int) -> None:
        unit = self.crew.units[name]
        command = StartPhase(key, 1, Slice(name, start, width), 1, 2)
        unit.jobs[key] = Job(command, Item(key, "dvg", key, "", 0), unit, tuple(command.slice.ranks))

    def lost(self) -> list[WorkerLost]:
        return [event for event in self.told if isinstance(event, WorkerLost)]


@pytest.fixture
def office(monkeypatch: pytest.MonkeyPatch) -> Office:
    """Two pods of four ranks, both ready."""
    monkeypatch.setattr(Job, "whereabouts", lambda job: job.clip)
    made = Office(ClusterConfig(pods=2, heavy_ranks=4))
    made.staff.hire_all()
    made.look()
    for name in ("pod-0", "pod-1"):
        made.be_ready(name, node=f"node of {name}")
    return made


def test_a_pod_joins_as_soon_as_it_is_ready_and_none_waits_for_another() -> None:
    office = Office(ClusterConfig(pods=3), room=1)
    office.staff.hire_all()
    office.look()
    office.be_ready("pod-0")
    assert [event.worker for event in office.told if isinstance(event, WorkerJoined)] == ["pod-0"]
    office.crew.room = 2
    office.look()
    office.be_ready("pod-1")
    assert [event.worker for event in office.told if isinstance(event, WorkerJoined)] == ["pod-0", "pod-1"]


def test_further_pods_are_asked_for_while_each_has_its_ranks_worth_of_items_and_no_longer() -> None:
    office = Office(ClusterConfig(pods=1, max_pods=4, heavy_ranks=8), room=2)
    office.staff.hire_all()
    office.look(num_open=1000)
    assert office.pods() == ["pod-0", "pod-1", "pod-2", "pod-3"]
    office.look(num_open=15)
    office.look(num_open=15)
    assert office.pods() == ["pod-0", "pod-1"], "pods with a node stay, those that wait for one are wanted no more"
    office.look(num_open=24)
    assert office.pods() == ["pod-0", "pod-1", "pod-2.1"]


def test_all_ranks_of_the_dead_ones_slice_end_at_once_and_innocents_finish_first(office: Office) -> None:
    pod = office.crew.units["pod-0"]
    office.give("pod-0", "victim", 0, 2)
    office.give("pod-0", "innocent", 2, 2)
    office.staff.on_death(pod, 1, RuntimeError("gone"))
    assert office.crew.killed == [("pod-0", 0), ("pod-0", 1)]
    assert [event.ranks for event in office.lost()] == [(1,)]
    assert not office.lost()[0].blameless
    assert office.saved == ["victim"]
    assert set(pod.jobs) == {"innocent"}
    assert "pod-0" in office.crew.units
    pod.jobs.clear()
    office.staff.renew_if_done(pod)
    assert office.crew.units["pod-0.1"].group == "group of pod-0", "the node is kept"


def test_the_scheduler_gives_a_pod_no_work_any_more_before_it_hears_of_the_checkpoints_there(office: Office) -> None:
    office.give("pod-0", "one", 0, 2)
    office.give("pod-0", "two", 2, 2)
    for rank in (0, 2):
        office.staff.on_death(office.crew.units["pod-0"], rank, RuntimeError("gone"))
    told = [type(event) for event in office.told if not isinstance(event, WorkerJoined)]
    assert told == [WorkerLeaving, Reached, WorkerLost, Reached, WorkerLost]


def test_a_node_that_is_gone_loses_every_rank_in_one_event_and_its_pod_asks_for_another(office: Office) -> None:
    pod = office.crew.units["pod-0"]
    office.give("pod-0", "one", 0, 1)
    office.give("pod-0", "two", 2, 2)
    office.crew.gone.add("pod-0")
    for rank in range(4):
        office.staff.on_death(pod, rank, RuntimeError("node died"))
    assert [(event.ranks, event.blameless) for event in office.lost()] == [((0, 1, 2, 3), True)]
    assert office.saved == ["one", "two"]
    assert office.crew.units["pod-0.1"].group == "group of pod-0.1"
    assert office.crew.units["pod-0.1"].asked


def test_pods_of_a_node_that_is_to_go_finish_what_they_do_and_then_ask_for_another(office: Office) -> None:
    office.give("pod-0", "busy", 0, 4)
    office.staff.leave_nodes({"node of pod-0": None})
    office.staff.leave_nodes({"node of pod-0": None})
    assert [event.worker for event in office.told if isinstance(event, WorkerLeaving)] == ["pod-0"]
    assert "pod-0" in office.crew.units
    pod = office.crew.units["pod-0"]
    pod.jobs.clear()
    office.staff.renew_if_done(pod)
    assert office.pods() == ["pod-0.1", "pod-1"]
    assert office.crew.settled == ["pod-0"], "the checkpoint that it still writes is waited for"
    assert office.crew.units["pod-0.1"].group == "group of pod-0.1"
    assert office.lost() == []


@pytest.mark.parametrize("left_s, grace_s", [(None, 90.0), (1000.0, 90.0), (35.0, 30.0), (1.0, 0.0)])
def test_who_is_to_go_has_the_grace_or_what_its_node_has_left(office: Office, left_s: float | None, grace_s: float) -> None:
    office.give("pod-0", "busy", 0, 4)
    began_s = time.monotonic()
    office.staff.leave_nodes({"node of pod-0": left_s})
    leaving_s = office.crew.units["pod-0"].leaving_s
    assert leaving_s is not None
    assert leaving_s - began_s == pytest.approx(grace_s, abs=1.0)


def test_what_is_not_done_when_the_grace_is_over_is_saved_and_goes_on_elsewhere(office: Office) -> None:
    office.give("pod-0", "long", 0, 4)
    office.staff.leave_nodes({"node of pod-0": 0.0})
    office.look()
    assert office.saved == ["long"]
    assert [event.reason for event in office.lost()] == ["its node is to be taken away, and its grace is over"]
    assert office.lost()[0].blameless
    assert office.pods() == ["pod-0.1", "pod-1"]


def test_nobody_is_hired_once_the_sweep_is_to_end(office: Office) -> None:
    office.staff.hiring = False
    for unit in list(office.crew.units.values()):
        office.staff.leave(unit, "SIGTERM to the driver")
    office.look(num_open=1000)
    assert office.crew.units == {}


def test_a_slot_that_cannot_start_is_tried_later_while_others_work_and_ends_the_sweep_if_nobody_ever_did(
    office: Office,
) -> None:
    for generation in range(MAX_START_FAILURES + 1):
        unit = office.crew.units[f"pod-0.{generation}" if generation else "pod-0"]
        if unit.asked:
            office.look()
        office.staff.on_death(unit, 0, RuntimeError("no such driver"))
    assert office.pods() == ["pod-1"]
    assert [vacancy.slot for vacancy in office.staff._vacancies] == [0]
    alone = Office(ClusterConfig())
    alone.staff.hire_all()
    alone.look()
    for _ in range(MAX_START_FAILURES - 1):
        alone.staff.on_death(alone.crew.of("pod")[0], 0, RuntimeError("no such driver"))
    with pytest.raises(RunError, match=f"failed {MAX_START_FAILURES} times in a row before it was ready: RuntimeError: no such"):
        alone.staff.on_death(alone.crew.of("pod")[0], 0, RuntimeError("no such driver"))


def test_a_worker_that_is_late_is_tried_again_beside_others_and_ends_the_sweep_alone(office: Office) -> None:
    office.be_ready("sketch-0")
    office.be_ready("decode-0")
    pod = office.crew.units["pod-0"]
    office.staff.on_death(pod, 0, RuntimeError("gone"))
    late = office.crew.units["pod-0.1"]
    late.deadline_s = 0.0
    office.look()
    assert office.pods() == ["pod-0.2", "pod-1"]
    alone = Office(ClusterConfig())
    alone.staff.hire_all()
    alone.look()
    alone.crew.units["sketch-0"].deadline_s = 0.0
    with pytest.raises(RunError, match=r"sketch-0 was not ready after 900 s; it needs \{'CPU': 1.0\}"):
        alone.look()


def test_a_burst_of_losses_while_all_pods_form_anew_is_survived_and_one_that_does_not_end_is_not(office: Office) -> None:
    for name in ("pod-0", "pod-1"):
        office.staff.on_death(office.crew.units[name], 0, RuntimeError("node died"))
    for _ in range(MAX_START_FAILURES + len(PAUSES_S) - 1):
        fail_all(office)
        assert len(office.pods()) == 2
    with pytest.raises(RunError, match=f"failed {MAX_START_FAILURES + len(PAUSES_S)} times in a row before it was ready"):
        fail_all(office)


def fail_all(office: Office) -> None:
    """Every pod dies before it is ready, and every pause is over."""
    for unit in office.crew.of("pod"):
        if unit.asked:
            office.staff._start(unit)
        office.staff.on_death(unit, 0, RuntimeError("node died"))
    office.staff._fill_vacancies(math.inf)
