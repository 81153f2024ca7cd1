"""What goes wrong between the ranks of a slice: one error that names pod, rank, clip and stage, soon, and the sweep goes on."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.driver import run_on_ray
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.patience import PatienceConfig
from orchestrator.policy import Throughput
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig
from tests.ray.fakes import ARM, items, sweep
from tests.ray.misfortunes import SharedWorkshop

TIMEOUT_S = 4.0
"""Of every collective."""
GRACE_S = 2.0
HUNG_S = 8.0
"""After which a sketch or a decode is given up."""


@pytest.fixture(scope="module")
def log(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The events of a sweep in which every clip meets its own misfortune."""
    root = tmp_path_factory.mktemp("faults")
    folder = root / "calls"
    folder.mkdir()
    made = items(
        mismatch="", killed="", stopped="", alone="", still="", ill="", fine="", asleep="hang-sketch-1", stuck="hang-decode-1"
    )
    patience = PatienceConfig(least_s=HUNG_S, most_s=HUNG_S)
    config = ClusterConfig(heavy_ranks=2, num_threads=1, collective_timeout_s=TIMEOUT_S, patience=patience)
    scheduler = Scheduler(SchedulerConfig(max_attempts=2), Throughput(degrees=(2,)))
    paths = RunPaths(root / "run")
    runbook = Runbook(Ledger(paths), {"dvg": ARM})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("orchestrator.errands.GRACE_S", GRACE_S)
        run_on_ray(
            sweep(made, config),
            made,
            scheduler,
            runbook,
            lambda event, commands: scheduler.check(),
            SharedWorkshop(folder, os.getpid()),
            cluster,
        )
    return [json.loads(line) for line in paths.events.read_text().splitlines()]


def about(log: list[dict[str, Any]], how: str, kind: str) -> dict[str, Any]:
    """The one event of that kind in which the clip's misfortune is told."""
    (row,) = [row for row in log if row["type"] == kind and how in str(row.get("reason") or row.get("item_key"))]
    return row


def ended(log: list[dict[str, Any]]) -> dict[str, tuple[str, int]]:
    commands = [command for row in log for command in row["commands"]]
    return {c["item_key"]: (c["type"], c["attempt"]) for c in commands if c["type"] in ("Finish", "GiveUp")}


def test_each_misfortune_costs_its_own_clip_one_attempt(log: list[dict[str, Any]]) -> None:
    again = dict.fromkeys(["mismatch", "killed", "stopped", "alone", "still", "asleep", "stuck"], ("Finish", 2))
    assert ended(log) == again | {"ill": ("GiveUp", 2), "fine": ("Finish", 1)}


def test_ranks_that_met_for_different_work_say_what_and_go_on(log: list[dict[str, Any]]) -> None:
    error = about(log, "mismatch", "Failed")["error"]
    assert error.startswith("pod-0 rank 0, clip mismatch (mismatch), stage 2: GroupMismatch: ")
    assert "rank 0: latent 7x18x18; rank 1: latent 7x14x14" in error


def test_a_killed_rank_is_named_with_the_clip_and_the_step(log: list[dict[str, Any]]) -> None:
    lost = about(log, "killed", "WorkerLost")
    assert lost["ranks"] == [1]
    assert lost["reason"].startswith("rank 1 died in clip killed (killed), stage 2, step 3: ActorDiedError: ")


def test_a_rank_that_stands_still_is_named_and_its_slice_replaced(log: list[dict[str, Any]]) -> None:
    lost = about(log, "stopped", "WorkerLost")
    assert lost["ranks"] == [0, 1]
    expected = "clip stopped (stopped), stage 2, step 3: rank 1 does not answer (rank 0: GroupError: the other ranks were lost"
    assert lost["reason"].startswith(expected)


def test_the_mistake_of_one_rank_is_told_and_not_the_silence_of_the_others(log: list[dict[str, Any]]) -> None:
    lost = about(log, "alone", "WorkerLost")
    assert lost["ranks"] == [0]
    assert lost["reason"] == "clip alone (alone), stage 2, step 3: rank 1: MemoryError: no room on this rank"


def test_ranks_that_all_stand_still_without_a_word_are_lost_too(log: list[dict[str, Any]]) -> None:
    lost = about(log, "still", "WorkerLost")
    assert lost["ranks"] == [0, 1]
    assert lost["reason"] == "clip still (still), stage 2, step 4: no step in 14 s"


def test_a_mistake_of_all_ranks_is_the_clips_own_and_the_pod_stays(log: list[dict[str, Any]]) -> None:
    failures = [row["error"] for row in log if row["type"] == "Failed" and row["item_key"] == "ill"]
    assert len(failures) == 2
    assert failures[0].endswith("rank 0, clip ill (ill), stage 2, step 4: ArithmeticError: the latent is not finite")
    assert len([row for row in log if row["type"] == "WorkerLost" and row["worker"].startswith("pod")]) == 4


@pytest.mark.parametrize("how, kind", [("asleep", "sketch"), ("stuck", "decode")])
def test_a_sketch_or_decode_that_never_ends_is_given_up_and_its_worker_replaced(
    log: list[dict[str, Any]], how: str, kind: str
) -> None:
    lost = about(log, how, "WorkerLost")
    assert (lost["worker"], lost["reason"]) == (f"{kind}-0", f"clip {how} ({how}), {kind}: not done in 8 s")
    assert f"{kind}-0.1" in [row["worker"] for row in log if row["type"] == "WorkerJoined"]
