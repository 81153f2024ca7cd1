"""Nodes come and go while a sweep runs: pods join late, are told to leave, or are gone from one moment to the next."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.ray.test_joining import ROOT, environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What came of the story in :mod:`tests.ray.nodes`."""
    folder = tmp_path_factory.mktemp("nodes")
    command = [sys.executable, "-m", "tests.ray.nodes", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def of(told: dict[str, Any], kind: str) -> dict[str, str]:
    """Reasons by worker of all events of a kind."""
    return {worker: reason for row_kind, worker, reason in told["workers"] if row_kind == kind}


def test_every_clip_is_made_whatever_the_nodes_do(told: dict[str, Any]) -> None:
    assert told["steps_left"] == 0
    assert sorted(told["attempts"]) == list("abcdefgh")


def test_a_sweep_begins_with_the_pod_that_is_there_and_others_join_when_their_node_comes(told: dict[str, Any]) -> None:
    joined = [worker for kind, worker, _ in told["workers"] if kind == "WorkerJoined" and worker.startswith("pod")]
    assert joined[:3] == ["pod-0", "pod-1", "pod-1.1"]


def test_a_pod_on_a_node_that_is_to_go_finishes_what_it_does_and_costs_nobody_an_attempt(told: dict[str, Any]) -> None:
    assert of(told, "WorkerLeaving")["pod-1"] == "its node is to be taken away"
    assert "pod-1" not in of(told, "WorkerLost")
    assert [told["attempts"][key] for key in "cd"] == [1, 1]


def test_a_node_that_is_gone_takes_all_its_ranks_at_once_and_only_their_clips_begin_another_attempt(told: dict[str, Any]) -> None:
    assert told["lost_ranks"]["pod-1.1"] == [0, 1]
    assert of(told, "WorkerLost")["pod-1.1"].startswith("its node is gone: ")
    assert [told["attempts"][key] for key in "gh"] == [1, 1]
    assert all(told["attempts"][key] > 1 for key in "ef")


def test_a_worker_told_to_end_is_replaced_and_what_it_cannot_finish_in_time_goes_on_elsewhere(told: dict[str, Any]) -> None:
    leaving = of(told, "WorkerLeaving")
    assert leaving["sketch-0"] == "SIGTERM to its process"
    assert leaving["pod-0"].startswith("SIGTERM to rank ")
    assert of(told, "WorkerLost")["pod-0"].endswith("and its grace is over")
    joined = of(told, "WorkerJoined").keys()
    assert "sketch-0.1" in joined
    assert joined & {"pod-0.1", "pod-1.2"}, "whichever of the two that wait has the node first"


def test_no_sketch_is_made_twice(told: dict[str, Any]) -> None:
    assert told["sketched"] == len(told["attempts"])
