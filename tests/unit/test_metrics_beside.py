"""What befalls the tasks that measure videos beside a sweep, and after it, ends no sweep: with a Ray that does as it is told."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RaySystemError, RayTaskError, RpcError, WorkerCrashedError

from experiments.metrics import beside as module
from experiments.metrics.beside import Beside
from experiments.metrics.completing import Measurements, Wish, complete
from experiments.metrics.measure import Job
from experiments.metrics.quality import Row, load_quality
from experiments.metrics.tasks import attempt, sees_run
from orchestrator.ledger import Ledger
from orchestrator.outside import HeadLost
from orchestrator.paths import RunPaths
from tests.fakerun import make_records, make_run

WISH = Wish(("flicker", "frames_ok"), None)
HERE = platform.node()
A, B = "a" * 56, "b" * 56
"""Nodes."""
ERRORS = [RaySystemError("gone"), RpcError("no answer"), ConnectionError("refused"), RuntimeError("odd")]
Answer = Callable[[Job, str], Iterator[Any]]


def works(job: Job, node: str) -> Iterator[Any]:
    return attempt(job, idle=False)


def waits(job: Job, node: str) -> Iterator[Any]:
    """For a CPU."""
    while True:
        yield None


def blind_on(*nodes: str) -> Answer:
    def answer(job: Job, node: str) -> Iterator[Any]:
        return iter([True, node]) if node in nodes else works(job, node)

    return answer


def raises(error: Exception) -> Answer:
    def answer(job: Job, node: str) -> Iterator[Any]:
        yield True
        yield error

    return answer


class FakeRay:
    """Tasks run while they are waited for, anywhere on node ``A`` unless they are sent to another."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: Answer = works
        self.nodes = [A]
        self.num_functions = self.num_waits = 0
        self.broken: Exception | None = None
        self.on_wait: Callable[[], None] = lambda: None
        self.head = SimpleNamespace(is_there=True, refuse_to_wait=lambda: None)
        for name in ("wait", "get", "remote"):
            monkeypatch.setattr(ray, name, getattr(self, name))
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(ray, "nodes", self.all_nodes)
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 2.0})
        monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="x", get_node_id=lambda: A))
        monkeypatch.setattr(module, "Head", lambda address: self)
        monkeypatch.setattr(module, "LOOK_S", 0.0)

    def __enter__(self) -> SimpleNamespace:
        return self.head

    def __exit__(self, *error: object) -> None:
        pass

    def all_nodes(self) -> list[dict[str, Any]]:
        if self.broken:
            raise self.broken
        return [{"NodeID": name, "NodeManagerHostname": HERE, "Alive": True, "Resources": {"CPU": 1.0}} for name in self.nodes]

    def remote(self, **options: Any) -> Callable[[Any], Any]:
        self.num_functions += 1
        return lambda function: self

    def options(self, num_cpus: int, scheduling_strategy: Any) -> Any:
        node = A if scheduling_strategy == "SPREAD" else scheduling_strategy.node_id
        return SimpleNamespace(remote=lambda job, idle: self.answer(job, node))

    def wait(self, tasks: list[Any], num_returns: int, timeout: float) -> tuple[list[Any], list[Any]]:
        self.num_waits += 1
        self.on_wait()
        if self.broken:
            raise self.broken
        ready = [] if self.answer is waits or (not timeout and self.num_waits % 2) else tasks[:num_returns]
        return ready, [task for task in tasks if task not in ready]

    def get(self, told: Any) -> Any:
        if isinstance(told, Exception):
            raise told
        return told


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    return FakeRay(monkeypatch)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(make_run(tmp_path / "run", [dataclasses.replace(record, host=HERE) for record in make_records(2)]))


def beside_of(ledger: Ledger, told: list[str] | None = None) -> Beside:
    tell = (lambda line: None) if told is None else told.append
    return Beside(Measurements(ledger, WISH), 1, ledger.records(), tell)


def rows(ledger: Ledger) -> list[Row]:
    return load_quality(ledger.paths)


def test_where_no_cpu_can_be_had_the_end_of_a_sweep_waits_for_so_long_and_says_why(
    ledger: Ledger, fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_CPU_S", 0.05)
    fake.answer = waits
    beside = beside_of(ledger)
    assert "no CPU of the cluster was free" in (beside.drain() or "")
    assert beside.num_left == 4
    assert beside.given_up == {record.item_key for record in ledger.records()}


def test_a_video_that_takes_long_is_waited_for_once_it_is_begun(
    ledger: Ledger, fake: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "NO_CPU_S", -1.0)
    real, turns = fake.wait, itertools.count()
    monkeypatch.setattr(ray, "wait", lambda tasks, **how: ([], tasks) if 1 <= next(turns) <= 5 else real(tasks, **how))
    beside = beside_of(ledger)
    assert beside.drain() is None
    assert len(rows(ledger)) == 4


@pytest.mark.parametrize(
    "error", [RaySystemError("gone"), RpcError("no answer"), ConnectionError("refused"), RuntimeError("odd")]
)
def test_an_error_of_rays_at_the_end_of_a_sweep_is_a_reason_and_no_error(ledger: Ledger, fake: FakeRay, error: Exception) -> None:
    fake.broken = error
    beside = beside_of(ledger)
    assert type(error).__name__ in (beside.drain() or "")
    assert beside.num_left == len(beside.given_up) == 4


def test_a_lost_head_is_waited_for_and_then_given_up(ledger: Ledger, fake: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        refusals.append(1)
        if len(refusals) == 3:
            raise HeadLost("lost")

    refusals: list[int] = []
    monkeypatch.setattr(module, "TURN_S", 0.0)
    fake.head = SimpleNamespace(is_there=False, refuse_to_wait=refuse)
    assert "head" in (beside_of(ledger).drain() or "")
    assert fake.num_waits == 0, "a lost head is asked nothing"


@pytest.mark.parametrize(
    "error", [RaySystemError("gone"), RpcError("no answer"), ConnectionError("refused"), RuntimeError("odd")]
)
def test_an_error_of_rays_beside_a_sweep_is_told_once_and_all_is_measured_after_it(
    ledger: Ledger, fake: FakeRay, error: Exception
) -> None:
    told: list[str] = []
    beside = beside_of(ledger, told)
    beside.look()
    assert len(beside._running) == 1
    fake.broken = error
    for _ in range(3):
        beside.look()
    assert len(told) == 1
    assert beside.num_left == 4
    assert type(error).__name__ in told[0]
    waits_before = fake.num_waits
    fake.broken = None
    beside.look()
    assert fake.num_waits == waits_before
    assert beside.drain() is None
    assert {row["item_key"] for row in rows(ledger)} == {record.item_key for record in ledger.records()}


def test_the_remote_function_is_made_once(ledger: Ledger, fake: FakeRay) -> None:
    fake.nodes = [A, B]
    beside = beside_of(ledger)
    for _ in range(2):
        beside.look()
    beside.drain()
    assert beside.num_measured == 4
    assert fake.num_functions == 1


def test_a_node_that_does_not_see_the_run_says_nothing_of_its_videos_and_another_measures_them(
    ledger: Ledger, fake: FakeRay
) -> None:
    fake.nodes, fake.answer = [A, B], blind_on(A)
    beside = beside_of(ledger)
    for _ in range(6):
        beside.look()
    assert all(task.node == B for task in beside._running.values())
    assert beside.drain() is None
    assert [row["frames_ok"] for row in rows(ledger)] == [1.0] * 4
    assert not beside.lost


def test_where_no_node_sees_the_run_its_videos_are_left(ledger: Ledger, fake: FakeRay) -> None:
    fake.nodes, fake.answer = [A, B], blind_on(A, B)
    beside = beside_of(ledger)
    assert "no node of the cluster sees the run's folder" in (beside.drain() or "")
    assert beside.num_left == 4
    assert rows(ledger) == []


def test_a_file_that_comes_late_is_tried_again_after_the_sweep(ledger: Ledger, fake: FakeRay) -> None:
    late = FileNotFoundError("not there yet")
    fake.answer = raises(RayTaskError("attempt", "", late))
    beside = beside_of(ledger)
    for _ in range(20):
        beside.look()
    assert len(beside._later) == beside.num_left == 4
    assert not beside.lost
    fake.answer = works
    assert beside.drain() is None
    assert [row["frames_ok"] for row in rows(ledger)] == [1.0] * 4


def test_what_ends_its_process_is_not_tried_in_the_sweeps_own(ledger: Ledger, fake: FakeRay) -> None:
    fake.answer = raises(WorkerCrashedError())
    beside = beside_of(ledger)
    assert beside.drain() is None
    assert beside.given_up == {one.record.item_key for one in beside.fatal} == {r.item_key for r in ledger.records()}
    assert complete(beside.measurements, ledger.records(), skip=beside.given_up) == []
    assert rows(ledger) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupt_of_the_last_measurements_comes_between_two_rows(
    ledger: Ledger, fake: FakeRay, number: signal.Signals
) -> None:
    def interrupt() -> None:
        if fake.num_waits == 5:
            os.kill(os.getpid(), number)

    fake.on_wait = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    beside = beside_of(ledger)
    try:
        with pytest.raises(KeyboardInterrupt):
            beside.drain()
    finally:
        signal.signal(signal.SIGINT, before)
    assert 0 < len(rows(ledger)) < 4
    assert all(row["frames_ok"] == 1.0 for row in rows(ledger))
    assert len(Measurements(ledger, WISH).todo(ledger.records())) == 4 - len(rows(ledger)) == beside.num_left


def job_of(ledger: Ledger) -> Job:
    [job, *_] = Measurements(ledger, WISH).todo(ledger.records())
    return job


def test_a_machine_without_the_runs_folder_does_not_see_the_run_and_one_with_it_misses_a_file(
    ledger: Ledger, fake: FakeRay
) -> None:
    job = job_of(ledger)
    assert sees_run(job)
    (ledger.paths.root / job.record.video).unlink()
    with pytest.raises(FileNotFoundError, match=job.record.video):
        sees_run(job)
    RunPaths(ledger.paths.root).config.unlink()
    assert not sees_run(job)
    assert list(attempt(job, idle=False)) == [True, A]
