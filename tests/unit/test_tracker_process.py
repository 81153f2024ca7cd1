"""The tracker's process and the MLflow server may die at any time: the run goes on, and MLflow ends up with everything once."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from experiments import tracking
from experiments.tracking import Tracker
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_failure, make_records, make_run, make_spec
from tests.mlflowserver import MlflowServer

ROOT = Path(__file__).parents[2]
WHOLE = {"sweep": 1, "arm": 2, "prompt": 8}
"""Runs by level of the run that these tests track."""
DRIVER = """
import sys, time
from pathlib import Path
from experiments.tracking import Tracker
from orchestrator.paths import RunPaths
tracker = Tracker(RunPaths(Path(sys.argv[1])))
while tracker.pid is None:
    time.sleep(0.01)
print(tracker.pid, flush=True)
time.sleep(600)
"""


pytestmark = pytest.mark.usefixtures("own_mlflow")


def found(uri: str) -> list[Run]:
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dvg")
    return list(client.search_runs([experiment.experiment_id])) if experiment else []


def levels(uri: str) -> Counter[str]:
    return Counter(run.data.tags["level"] for run in found(uri))


def until(condition: Callable[[], bool]) -> None:
    """The test's own time limit is the suite's."""
    while not condition():
        time.sleep(0.1)


def half_made(root: Path, **settings: str) -> tuple[RunPaths, list[Record]]:
    """A run folder with two of eight records, and the others."""
    records = make_records(4)
    return make_run(root, records[:2], make_spec(records, videos="none", **settings), videos=False), records[2:]


def test_a_tracker_killed_again_and_again_is_started_again_and_nothing_is_written_twice(tmp_path: Path) -> None:
    paths, left = half_made(tmp_path)
    warnings: list[str] = []
    tracker = Tracker(paths, warnings.append)
    ledger = Ledger(paths)
    for count, record in enumerate(left[:2], start=3):
        until(lambda count=count: levels(paths.mlflow_uri)["prompt"] >= count - 1)  # type: ignore[misc]
        assert tracker.pid is not None
        assert os.getpgid(tracker.pid) != os.getpgid(0), "Ctrl-C at a terminal is not for it"
        os.kill(tracker.pid, signal.SIGKILL)
        ledger.append(record)
    for record in left[2:]:
        ledger.append(record)
    tracker.finish()
    assert tracker.close(timeout_s=120)
    assert warnings == []
    assert levels(paths.mlflow_uri) == WHOLE
    assert {run.info.status for run in found(paths.mlflow_uri)} == {"FINISHED"}


def test_a_tracker_that_keeps_dying_is_given_up_with_one_line_and_completed_later(tmp_path: Path) -> None:
    paths, left = half_made(tmp_path)
    warnings: list[str] = []
    tracker = Tracker(paths, warnings.append, max_starts=1)
    until(lambda: tracker.pid is not None)
    os.kill(tracker.pid or 0, signal.SIGKILL)
    until(lambda: bool(warnings))
    for record in left:
        Ledger(paths).append(record)
    make_failure(paths)
    tracker.finish()
    assert not tracker.close()
    assert warnings[0].startswith("the MLflow tracker was killed by signal 9, the last of 1 starts")
    assert all(f"`dvg track {tmp_path}` completes" in line for line in warnings)
    tracking.mirror(Ledger(paths))
    assert levels(paths.mlflow_uri) == WHOLE | {"prompt": 9}


def test_the_tracker_of_a_killed_driver_ends_and_says_that_the_run_was_stopped(tmp_path: Path) -> None:
    paths, _ = half_made(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True, env=environment)
    assert driver.stdout is not None
    process = psutil.Process(int(driver.stdout.readline()))
    until(lambda: levels(paths.mlflow_uri)["prompt"] == 2)
    driver.kill()
    driver.wait()
    process.wait()
    runs = found(paths.mlflow_uri)
    assert {run.info.status for run in runs if run.data.tags["level"] != "prompt"} == {"KILLED"}


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_server_that_never_answers_does_not_keep_the_run_from_ending(tmp_path: Path, silent: str) -> None:
    paths, _ = half_made(tmp_path, uri=silent)
    warnings: list[str] = []
    tracker = Tracker(paths, warnings.append)
    until(lambda: tracker.pid is not None)
    process = psutil.Process(tracker.pid)
    tracker.finish()
    assert not tracker.close(timeout_s=0.5)
    assert warnings == [f"MLflow misses updates of this run: `dvg track {tmp_path}` completes it"]
    assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    assert tracker.pid is None, "another was started"


@pytest.mark.slow
def test_a_server_that_is_down_at_first_and_again_half_way_gets_everything_once_in_the_end(tmp_path: Path) -> None:
    server = MlflowServer(tmp_path)
    paths, left = half_made(tmp_path, uri=server.uri)
    ledger, warnings = Ledger(paths), []
    tracker = Tracker(paths, warnings.append)
    try:
        until(lambda: len(warnings) == 1)
        assert "MLflow cannot be written, the run goes on" in warnings[0]
        server.start()
        until(lambda: levels(server.uri)["prompt"] == 2)
        server.kill()
        for record in left[:3]:
            ledger.append(record)
        server.start()
        until(lambda: levels(server.uri)["prompt"] == 5)
        for record in left[3:]:
            ledger.append(record)
        tracker.finish()
        assert tracker.close(timeout_s=120)
        assert levels(server.uri) == WHOLE
        assert {run.info.status for run in found(server.uri)} == {"FINISHED"}
        assert len(warnings) == 1
    finally:
        tracker.close(timeout_s=0)
        server.kill()
