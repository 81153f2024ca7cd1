"""The driver process itself dies or is interrupted; the same command again finishes what is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from orchestrator.cluster import Cluster
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests.ray.test_joining import Head, environment, head

ROOT = Path(__file__).parents[2]
NUM_ITEMS = 6


def drive(root: Path, **extra: str) -> subprocess.Popen[str]:
    calls = root / "calls"
    calls.mkdir(exist_ok=True)
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ray.drive", str(root / "run"), str(calls), str(NUM_ITEMS)],
        cwd=ROOT,
        env=inherited | {"PYTHONPATH": str(ROOT)} | extra,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=hears_interrupts,
    )


def joined(cluster: Cluster | Head) -> dict[str, str]:
    """The environment of a driver that starts no cluster of its own."""
    return {key: value for key, value in environment(RAY_ADDRESS=cluster.address).items() if key.startswith("RAY_")}


def hears_interrupts() -> None:
    """Tests that a shell runs in the background ignore Ctrl-C, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_records(driver: subprocess.Popen[str], paths: RunPaths, number: int) -> None:
    while driver.poll() is None and (not paths.records.exists() or paths.records.read_bytes().count(b"\n") < number):
        time.sleep(0.1)
    assert driver.poll() is None, driver.stdout.read() if driver.stdout else ""


def family(driver: subprocess.Popen[str]) -> list[psutil.Process]:
    return psutil.Process(driver.pid).children(recursive=True)


AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Ray's own helpers of a node: after its sudden end they try for a minute to report it, then end too."""


def assert_all_end(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert [process.cmdline() for process in alive] == []


@pytest.mark.slow
def test_a_driver_killed_half_way_resumes_with_exactly_one_record_per_item(cluster: Cluster, tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    driver = drive(tmp_path)
    wait_for_records(driver, paths, 2)
    started = family(driver)
    workers = [process for process in started if process.name() not in AGENTS]
    driver.kill()
    driver.wait()
    assert_all_end(workers)
    done = Ledger(paths).finished
    assert 2 <= len(done) < NUM_ITEMS

    again = drive(tmp_path, **joined(cluster))
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert f"todo {NUM_ITEMS - len(done)} adopted 0" in output
    rows = [json.loads(line) for line in paths.records.read_text().splitlines()]
    assert sorted(row["item_key"] for row in rows) == [f"key{number}" for number in range(NUM_ITEMS)]
    clips = {path.relative_to(paths.root).as_posix() for path in paths.videos.rglob("*.mp4")}
    assert clips == {row["video"] for row in rows}, "a draft was left behind, or a video is missing"


@pytest.mark.slow
def test_an_interrupted_driver_keeps_its_records_and_leaves_no_process(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    driver = drive(tmp_path)
    wait_for_records(driver, paths, 1)
    started = family(driver)
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: every process of the group gets it
    output, _ = driver.communicate()
    assert driver.returncode == 130, output
    assert "Traceback" not in output
    assert_all_end(started)
    assert len(Ledger(paths).records()) >= 1


@pytest.mark.slow
def test_a_driver_told_to_end_begins_nothing_and_finishes_what_it_can(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path / "run")
    driver = drive(tmp_path)
    wait_for_records(driver, paths, 1)
    started = family(driver)
    driver.send_signal(signal.SIGTERM)
    output, _ = driver.communicate()
    assert driver.returncode == 130, output
    assert_all_end(started)
    log = [json.loads(line) for line in paths.events.read_text().splitlines()]
    leaving = [number for number, row in enumerate(log) if row["type"] == "WorkerLeaving"]
    assert {log[number]["worker"] for number in leaving} == {"sketch-0", "pod-0", "decode-0"}
    commands = [command["type"] for row in log[leaving[-1] :] for command in row["commands"]]
    assert set(commands) <= {"Finish"}, "work was begun after the notice"
    assert not [row for row in log if row["type"] == "WorkerLost"], "what could be finished was not"


@pytest.mark.slow
def test_a_sweep_whose_head_is_lost_ends_with_one_clear_error_and_goes_on_in_another_cluster(
    cluster: Cluster, tmp_path: Path
) -> None:
    paths = RunPaths(tmp_path / "run")
    with head() as lost:
        driver = drive(tmp_path, HEAD_LOST_S="3", **joined(lost))
        wait_for_records(driver, paths, 1)
        lost.kill()
        output, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1, output
    assert output.count(f"error: the head of the Ray cluster at {lost.address} has not answered for ") == 1, output
    assert "Traceback" not in output

    again = drive(tmp_path, **joined(cluster))
    output, _ = again.communicate()
    assert again.returncode == 0, output
    assert sorted(record.item_key for record in Ledger(paths).records()) == [f"key{number}" for number in range(NUM_ITEMS)]
