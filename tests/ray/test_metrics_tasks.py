"""Metrics as Ray tasks: beside work that holds every CPU, over a free cluster, and when a task's process dies."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from experiments.metrics import beside as tasks
from experiments.metrics.beside import Beside
from experiments.metrics.completing import Measurements, Wish, complete
from experiments.metrics.measure import Job
from experiments.metrics.quality import Row, load_quality, values_of
from orchestrator.cluster import Cluster
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests.fakerun import PROMPTS, make_record, make_run

pytestmark = pytest.mark.slow

WISH = Wish(("psnr", "ssim", "flicker", "frames_ok"), "full")
ARMS, NAMES = ("full", "dvg"), list(PROMPTS)[:3]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunPaths:
    records = [make_record(arm, prompt, host=platform.node()) for prompt in NAMES for arm in reversed(ARMS)]
    return make_run(tmp_path_factory.mktemp("run"), records)


@pytest.fixture
def ray(cluster: Cluster) -> Any:
    import ray

    return ray


@pytest.fixture
def ledger(run: RunPaths) -> Ledger:
    run.quality.unlink(missing_ok=True)
    return Ledger(run)


def figures(rows: list[Row]) -> dict[str, dict[str, float]]:
    return {row["item_key"]: values_of(row) for row in rows}


def expected(ledger: Ledger) -> dict[str, dict[str, float]]:
    complete(Measurements(ledger, WISH), ledger.records())
    found = figures(load_quality(ledger.paths))
    ledger.paths.quality.unlink()
    return found


def look_until(beside: Beside, num_measured: int) -> None:
    until_s = time.monotonic() + 120
    while beside.num_measured < num_measured and time.monotonic() < until_s:
        beside.look()
        time.sleep(0.05)


def test_videos_are_measured_as_they_finish_though_every_cpu_is_taken_and_hold_none(ledger: Ledger, ray: Any) -> None:
    @ray.remote(num_cpus=4)
    class Busy:
        def there(self) -> bool:
            return True

    wanted, busy = expected(ledger), Busy.remote()
    assert ray.get(busy.there.remote())
    beside = Beside(Measurements(ledger, WISH), tasks_per_node=1)
    for record in ledger.records():
        beside.on_record(record)
        beside.look()
        assert len(beside._running) <= 1
    look_until(beside, 6)
    assert ray.get(busy.there.remote())
    assert figures(load_quality(ledger.paths)) == {key: pytest.approx(row, rel=1e-5) for key, row in wanted.items()}
    assert not beside.lost
    assert Measurements(ledger, WISH).todo(ledger.records()) == []
    ray.kill(busy)


def test_a_free_cluster_measures_what_is_left_and_a_process_that_dies_costs_its_video_alone(
    ledger: Ledger, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = expected(ledger)
    doomed = next(r for r in ledger.records() if r.arm == "dvg")

    def deadly(job: Job, idle: bool) -> Iterator[Any]:
        if job.record.item_key == doomed.item_key:
            os._exit(1)
        from experiments.metrics.tasks import attempt

        yield from attempt(job, idle)

    monkeypatch.setattr(tasks, "attempt", deadly)
    monkeypatch.setattr(tasks, "MAX_RETRIES", 0)
    beside = Beside(Measurements(ledger, WISH), tasks_per_node=1, records=ledger.records())
    assert beside.drain() is None
    assert [one.record.item_key for one in beside.fatal] == [doomed.item_key]
    assert figures(load_quality(ledger.paths)).keys() == wanted.keys() - {doomed.item_key}
    monkeypatch.undo()
    again = Beside(Measurements(ledger, WISH), tasks_per_node=1, records=ledger.records())
    again.drain()
    assert (again.num_measured, again.lost) == (1, [])
    assert figures(load_quality(ledger.paths)) == {key: pytest.approx(row, rel=1e-5) for key, row in wanted.items()}


def test_where_others_hold_every_cpu_the_rest_is_left_and_said_to_be(
    ledger: Ledger, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    @ray.remote(num_cpus=4)
    class Busy:
        def there(self) -> bool:
            return True

    busy = Busy.remote()
    assert ray.get(busy.there.remote())
    monkeypatch.setattr(tasks, "NO_CPU_S", 2.0)
    beside = Beside(Measurements(ledger, WISH), tasks_per_node=1, records=ledger.records())
    assert beside.drain() == "no CPU of the cluster was free for 2 s"
    assert beside.num_left == 6
    ray.kill(busy)


def test_a_task_that_cannot_see_the_run_says_so_with_its_node(ledger: Ledger, ray: Any, tmp_path: Path) -> None:
    beside = Beside(Measurements(ledger, WISH), tasks_per_node=1, records=ledger.records())
    elsewhere = tmp_path / "videos" / "full" / "p" / "0.mp4"
    for host, jobs in beside._waiting.items():
        beside._waiting[host] = deque(dataclasses.replace(job, video=elsewhere) for job in jobs)
    assert beside.drain() == "no node of the cluster sees the run's folder"
    assert beside._blind == {node["NodeID"] for node in ray.nodes()}
    assert load_quality(ledger.paths) == []


def test_a_video_waits_for_its_reference_and_one_elsewhere_for_a_node_of_the_run(ledger: Ledger, ray: Any) -> None:
    dvg, full = (next(r for r in ledger.records() if (r.arm, r.prompt_id) == (arm, NAMES[0])) for arm in ("dvg", "full"))
    beside = Beside(Measurements(ledger, WISH), tasks_per_node=1)
    beside.on_record(dataclasses.replace(dvg, host="no node of this cluster"))
    beside.look()
    assert beside.num_left == 0
    beside.on_record(dataclasses.replace(full, host="no node of this cluster"))
    beside._looked_s = 0.0
    beside.look()
    assert beside.num_left == 2
    assert not beside._running


def test_the_command_has_a_running_cluster_do_it(ledger: Ledger, cluster: Cluster) -> None:
    wanted = expected(ledger)
    command = [sys.executable, "-m", "orchestrator", "metrics", str(ledger.paths.root), "--address", cluster.address]
    done = subprocess.run([*command, "--names", ",".join(WISH.names), "--json"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["arms"]["dvg"]["ssim"]["num_videos"] == 3
    assert figures(load_quality(ledger.paths)) == {key: pytest.approx(row, rel=1e-5) for key, row in wanted.items()}
