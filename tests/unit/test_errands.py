"""What comes of an answer: which checkpoints help, and which boundaries leave a node before it goes."""

from __future__ import annotations

import time
from typing import Any

import pytest

from orchestrator.checkpoints import CheckpointLost
from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.crew import Crew, Unit
from orchestrator.driver import RayShell
from orchestrator.errands import Errands
from orchestrator.events import Event, Failed, PhaseDone, StartPhase
from orchestrator.jobs import Job
from orchestrator.pods import ClipWorkshop, Member, Place
from orchestrator.scheduler import Scheduler
from orchestrator.types import Item, Slice
from tests.unit.test_staff import PaperCrew


class Desk:
    """Errands of pods that exist on paper only, and what they told whom."""

    def __init__(self) -> None:
        self.told: list[Event] = []
        self.helped: list[str] = []
        self.crew = Crew(Cluster("here", False, 64, 0, False), ClusterConfig(), ClipWorkshop({}))
        staff: Any = type("Staff", (), {})()
        staff.before_loss = lambda job: self.helped.append(job.key)
        staff.renew_if_done = lambda unit: None
        nothing: Any = None
        self.errands = Errands(self.crew, nothing, staff, nothing, self.told.append, lambda: 0.0, nothing, lambda key: None)

    def pod(self, slot: int, node: str) -> Unit:
        unit = Unit("pod", slot, 0, actors=[None], place=Place("cpu", "host", node))
        self.crew.units[unit.name] = unit
        return unit

    def answer(self, unit: Unit, key: str, answer: Any) -> None:
        job = Job(StartPhase(key, 1, Slice(unit.name, 0, 1), 1, 2), Item(key, "dvg", key, "", 0), unit, (0,), f"latent of {key}")
        unit.jobs[key] = job
        self.errands._on_answer(job, 0, answer)


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Boundaries that were copied to the driver's node."""
    found: list[str] = []
    monkeypatch.setattr("ray.wait", lambda refs, **how: found.extend(refs))
    monkeypatch.setattr("ray.exceptions.ObjectLostError", ConnectionError)
    monkeypatch.setattr(Job, "whereabouts", lambda job: job.clip)
    return found


@pytest.mark.parametrize(
    ("problem", "helped"),
    [(ArithmeticError("not finite"), ["a"]), (CheckpointLost("not on this machine"), [])],
    ids=["failed", "file unseen"],
)
def test_a_checkpoint_is_told_of_before_a_failure_unless_it_is_what_failed(
    brought: list[str], problem: Exception, helped: list[str]
) -> None:
    desk = Desk()
    desk.answer(desk.pod(0, "node"), "a", problem)
    assert desk.helped == helped
    (failed,) = desk.told
    assert isinstance(failed, Failed)
    assert failed.phase == ("refine" if helped else "sketch")


def test_what_lies_on_a_node_that_goes_is_brought_whoever_made_it_there_and_when(brought: list[str]) -> None:
    desk = Desk()
    first, beside, elsewhere = desk.pod(0, "going"), desk.pod(1, "going"), desk.pod(2, "staying")
    for unit in (first, beside, elsewhere):
        desk.answer(unit, f"of {unit.name}", {"refine_s": 1.0})
    desk.errands.bring_boundaries(beside)
    assert brought == ["latent of of pod-0", "latent of of pod-1"]


def test_a_boundary_made_within_the_grace_leaves_its_node_before_its_pod_is_renewed(brought: list[str]) -> None:
    desk = Desk()
    unit = desk.pod(0, "going")
    desk.answer(unit, "early", {"refine_s": 1.0})
    assert brought == []
    unit.leaving_s = time.monotonic() + 60
    at_the_end: list[list[str]] = []
    desk.errands.staff.renew_if_done = lambda unit: at_the_end.append(list(brought))  # type: ignore[method-assign]
    desk.answer(unit, "late", {"refine_s": 1.0})
    assert at_the_end == [["latent of early", "latent of late"]]
    assert [type(event) for event in desk.told] == [PhaseDone, PhaseDone]


def test_what_lies_on_the_node_of_an_idle_worker_that_goes_is_brought_before_it_is_ended(brought: list[str]) -> None:
    crew = PaperCrew(ClusterConfig())
    crew.cluster = Cluster("127.0.0.1:1", False, 64, 0, False)
    runbook: Any = type("Runbook", (), {"ledger": type("Ledger", (), {"write_event": lambda self, row: None})()})()
    happened: list[str] = []

    def note(event: Event, commands: Any) -> None:
        happened.append(f"{type(event).__name__} after {brought} of {sorted(crew.units)}")

    shell = RayShell({}, crew, Scheduler(), runbook, note)
    shell.staff.hiring = False
    unit = crew.units["sketch-0"] = Unit("sketch", 0, 0, actors=[None], place=Place("cpu", "host", "going"))
    shell.errands._boundaries = {"a": ("going", "latent of a"), "b": ("staying", "latent of b")}
    shell.staff.leave(unit, "SIGTERM to its process")
    assert happened == ["WorkerLeaving after ['latent of a'] of ['sketch-0']"]
    assert crew.units == {}


@pytest.mark.parametrize("keeps", [True, False])
def test_a_member_waits_for_what_its_worker_still_writes_if_it_writes_any(keeps: bool) -> None:
    settled: list[str] = []
    member = object.__new__(Member)
    member.worker = type("Worker", (), {"settle": lambda self: settled.append("written")} if keeps else {})()
    member.settle()
    assert settled == ["written"] * keeps
