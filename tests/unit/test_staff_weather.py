"""Workers that cannot be had for a while, and pods that are needed no longer, with a crew that exists on paper only."""

from __future__ import annotations

import math
import threading
import time

import pytest

from orchestrator.cluster_config import ClusterConfig
from orchestrator.events import WorkerJoined, WorkerLeaving
from orchestrator.mistakes import RunError
from orchestrator.pods import Member
from orchestrator.staff import AWAY_S, MAX_START_FAILURES, PAUSES_S, SOON_S
from tests.unit.test_staff import Office


@pytest.fixture
def office() -> Office:
    """Everybody ready: a sketch worker, a decode worker and up to four pods of eight ranks, the first of which always stays."""
    made = Office(ClusterConfig(pods=1, max_pods=4, heavy_ranks=8))
    made.staff.hire_all()
    made.look(num_open=1000)
    made.look(num_open=1000)
    for name in list(made.crew.units):
        made.be_ready(name, node=f"node of {name}")
    made.told.clear()
    return made


@pytest.mark.parametrize("name", ["sketch-0", "pod-0"])
def test_who_follows_a_worker_with_a_sigterm_is_hired_once_its_node_is_gone(office: Office, name: str) -> None:
    unit = office.crew.units[name]
    began_s = time.monotonic()
    office.staff.leave(unit, "SIGTERM to its process")
    assert office.crew.of(unit.kind) == [other for other in office.crew.of(unit.kind) if other.slot > 0]
    (vacancy,) = office.staff._vacancies
    assert vacancy.due_s - began_s == pytest.approx(office.config.grace_s + AWAY_S, abs=1.0)
    office.staff._fill_vacancies(vacancy.due_s + 1)
    assert f"{name}.1" in office.crew.units


def test_what_a_worker_says_of_a_sigterm_is_understood(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(office.staff, "_watch", lambda *call, **how: None)
    member = object.__new__(Member)
    member._notice = threading.Event()
    member._notice.set()
    office.staff._on_watch(office.crew.units["sketch-0"], 0, member.watch())
    assert [vacancy.kind for vacancy in office.staff._vacancies] == ["sketch"]


def test_who_follows_a_worker_of_a_node_that_is_to_go_is_hired_at_once(office: Office) -> None:
    office.staff.leave_nodes({"node of sketch-0": None})
    assert "sketch-0.1" in office.crew.units


@pytest.mark.parametrize("name", ["sketch-0", "decode-0"])
def test_a_replacement_that_cannot_start_is_tried_again_unless_another_try_would_not_mend_it(office: Office, name: str) -> None:
    office.staff.on_death(office.crew.units[name], 0, RuntimeError("gone"))
    office.staff._on_ready(office.crew.units[f"{name}.1"], 0, OSError("weights cannot be read"))
    again = office.crew.units[f"{name}.2"]
    with pytest.raises(RunError, match=rf"{name}\.2 cannot start: RunError: no room on the disk"):
        office.staff._on_ready(again, 0, RunError("no room on the disk"))


def test_the_first_worker_of_a_kind_that_cannot_start_ends_the_sweep() -> None:
    office = Office(ClusterConfig())
    office.staff.hire_all()
    with pytest.raises(RunError, match="sketch-0 cannot start: OSError: weights"):
        office.staff._on_ready(office.crew.units["sketch-0"], 0, OSError("weights cannot be read"))


def test_a_sweep_that_had_a_pod_waits_for_another_however_long_none_comes(office: Office) -> None:
    office.crew.room = 0
    for unit in office.crew.of("pod"):
        office.crew.gone.add(unit.name)
        office.staff.on_death(unit, 0, RuntimeError("node died"))
    for unit in office.crew.of("pod"):
        unit.deadline_s = 0.0
    office.look(num_open=1000)
    assert all(unit.asked and unit.deadline_s > time.monotonic() for unit in office.crew.of("pod"))
    assert office.pods() == ["pod-0.1", "pod-1.1", "pod-2.1", "pod-3.1"]


def test_a_worker_whose_replacement_is_late_is_tried_again_with_pauses_and_ends_the_sweep_at_last(office: Office) -> None:
    office.staff.on_death(office.crew.units["sketch-0"], 0, RuntimeError("gone"))
    for _ in range(MAX_START_FAILURES + len(PAUSES_S) - 1):
        _be_late(office)
        office.look(num_open=1000)
    assert len(office.staff._vacancies) == 1
    _be_late(office)
    with pytest.raises(RunError, match=r"failed 6 times in a row before it was ready: sketch-0\.6 was not ready after 900 s"):
        office.look(num_open=1000)


def _be_late(office: Office) -> None:
    office.staff._fill_vacancies(math.inf)
    (unit,) = office.crew.of("sketch")
    unit.deadline_s = 0.0


def test_pods_with_nothing_to_do_go_when_fewer_could_do_what_is_left_and_come_no_more(office: Office) -> None:
    office.give("pod-2", "busy", 0, 8)
    office.look(num_open=9)
    assert office.pods() == ["pod-0", "pod-1", "pod-2"], "who works stays, and so do pods for all that is left"
    assert office.told == [WorkerLeaving(0.0, "pod-3", "no longer needed")]
    office.crew.units["pod-2"].jobs.clear()
    office.look(num_open=8)
    office.look(num_open=8)
    assert office.pods() == ["pod-0"]
    assert not any(isinstance(event, WorkerJoined) for event in office.told)


def test_a_pod_that_dies_when_it_is_no_longer_needed_is_not_replaced_and_gives_its_node_back(office: Office) -> None:
    office.give("pod-3", "last", 0, 8)
    office.look(num_open=24)
    pod = office.crew.units["pod-3"]
    office.staff.lose(pod, {0}, "gone")
    assert office.pods() == ["pod-0", "pod-1", "pod-2"]
    assert pod.group == "group of pod-3", "it goes with the pod"


def test_the_head_is_asked_often_for_a_new_pods_node_and_seldom_for_one_that_waits_for_long() -> None:
    office = Office(ClusterConfig(), room=0)
    office.staff.hire_all()
    for _ in range(5):
        office.look()
    assert office.crew.num_asked == 5
    office.crew.units["pod-0"].asked_s -= SOON_S + 1
    for _ in range(5):
        office.look()
    assert office.crew.num_asked == 5
    office.staff._asked_s -= 5.0
    office.look()
    assert office.crew.num_asked == 6
