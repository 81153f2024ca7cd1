"""Measuring on Ray: an actor that dies is replaced and its shard done again, and what kills every actor is named in the end."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from experiments.vbench.board import MAX_ATTEMPTS
from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.pool import RayPool
from experiments.vbench.process import Video
from experiments.vbench.shards import ShardStore, Task
from orchestrator.cluster import Cluster
from tests.ray.mortal import Mortal

DIMENSION = "temporal_flickering"


def tasks(*prompts: str) -> list[Task]:
    return [Task("full", Video(f"clip{index}.mp4", prompt), f"key{index}") for index, prompt in enumerate(prompts)]


@pytest.mark.slow
def test_a_dead_actor_is_replaced_its_shard_done_again_and_a_deadly_video_named(cluster: Cluster, tmp_path: Path) -> None:
    told: list[str] = []
    evaluation = Evaluation(lambda arm: ShardStore(tmp_path / arm), told.append)
    evaluation.ask(DIMENSION, tasks("0.1", "0.2 once", "0.3", "0.4 always"))
    evaluation.ask("scene", [Task("full", Video("other.mp4", "0.5"), "other")])
    pool = RayPool(partial(Mortal, tmp_path), 2, {"CPU": 1.0}, [str(tmp_path)])
    try:
        Session(evaluation, pool, 1, {}).run()
    finally:
        pool.close()
    scores = {key: row.record["video_results"] for key, row in evaluation.rows.items() if row.record}
    assert scores == {"key0": 0.1, "key1": 0.2, "key2": 0.3}
    assert f"died {MAX_ATTEMPTS} times" in str(evaluation.rows["key3"].failed)
    assert evaluation.unavailable == {"scene": "no weights here"}
    assert ShardStore(tmp_path / "full").rows(DIMENSION).keys() == {"key0", "key1", "key2", "key3"}
    assert sum("is replaced" in line for line in told) == 1 + MAX_ATTEMPTS


@pytest.mark.slow
def test_a_run_that_the_nodes_do_not_see_is_told_and_nothing_is_measured(cluster: Cluster, tmp_path: Path) -> None:
    told: list[str] = []
    evaluation = Evaluation(lambda arm: ShardStore(tmp_path / arm), told.append)
    evaluation.ask(DIMENSION, tasks("0.1"))
    pool = RayPool(partial(Mortal, tmp_path), 1, {"CPU": 1.0}, [str(tmp_path / "elsewhere")])
    try:
        with pytest.raises(RuntimeError, match="no worker is left"):
            Session(evaluation, pool, 1, {}).run()
    finally:
        pool.close()
    assert any("does not see" in line for line in told)
