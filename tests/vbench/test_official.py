"""Our sharded evaluation against VBench's own single-process run: the same code, the same files, the same scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.vbench.campaign import Campaign, Options
from experiments.vbench.view import build_view
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from tests.vbench.rig import official, records_of

DIMENSIONS = ("temporal_flickering", "motion_smoothness", "dynamic_degree")


@pytest.fixture(scope="module")
def reference(moving: RunPaths, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What VBench's ``evaluate`` writes for the videos, in one process."""
    view = build_view(moving, "vbench", "full")
    folder = tmp_path_factory.mktemp("official")
    official(cache, "evaluate", str(view.folder), str(folder), "own", "vbench_standard", *DIMENSIONS)
    found: dict[str, Any] = json.loads((folder / "own_eval_results.json").read_text())
    return found


@pytest.fixture(autouse=True)
def environment(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(cache))


def fresh(run: RunPaths, folder: Path) -> RunPaths:
    """The run without any result, its videos shared."""
    shutil.copytree(run.root, folder, ignore=shutil.ignore_patterns("vbench"), symlinks=True)
    return RunPaths(folder)


def evaluated(run: RunPaths, **options: Any) -> dict[str, Any]:
    Campaign(run, Options(suite="vbench", **options), print).run()
    found: dict[str, Any] = json.loads(run.vbench_results("vbench", "full").read_text())
    return found


def named(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records by file name: the two runs lie in different folders."""
    return [{**record, "video_path": Path(record["video_path"]).name} for record in records]


@pytest.mark.parametrize("shard_size", [1, 3, 7])
def test_shards_of_any_size_give_vbenchs_own_single_process_scores(
    shard_size: int, moving: RunPaths, reference: dict[str, Any], tmp_path: Path
) -> None:
    run = fresh(moving, tmp_path / "run")
    found = evaluated(run, dims=",".join(DIMENSIONS), shard_size=shard_size, local=True)
    assert set(found) == set(DIMENSIONS)
    for dimension in DIMENSIONS:
        assert found[dimension][0] == pytest.approx(reference[dimension][0], abs=1e-12, rel=0)
        assert named(found[dimension][1]) == named(reference[dimension][1])


@pytest.mark.slow
def test_two_workers_on_ray_give_vbenchs_own_single_process_scores(
    moving: RunPaths, reference: dict[str, Any], tmp_path: Path
) -> None:
    run = fresh(moving, tmp_path / "run")
    found = evaluated(run, dims=",".join(DIMENSIONS), shard_size=3, workers=2)
    for dimension in DIMENSIONS:
        assert found[dimension][0] == pytest.approx(reference[dimension][0], abs=1e-12, rel=0)
        assert named(found[dimension][1]) == named(reference[dimension][1])


def test_without_weights_temporal_flickering_runs_and_the_others_say_where_theirs_go(
    moving: RunPaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "empty"))
    run = fresh(moving, tmp_path / "run")
    found = Campaign(run, Options(suite="vbench", dims="quality", local=True), print).run()["full"].dimensions
    assert found["temporal_flickering"].score is not None
    assert found["dynamic_degree"].score is None
    assert str(tmp_path / "empty/raft_model/models/raft-things.pth") in str(found["dynamic_degree"].unavailable)
    assert set(json.loads(run.vbench_results("vbench", "full").read_text())) == {"temporal_flickering"}


def test_a_broken_video_is_named_and_the_others_score_as_without_it(moving: RunPaths, cache: Path, tmp_path: Path) -> None:
    run = fresh(moving, tmp_path / "run")
    whole = evaluated(run, dims="temporal_flickering", local=True)["temporal_flickering"][1]
    victim = records_of(run)[-1]
    path = run.root / victim.video
    path.write_bytes(path.read_bytes()[:-400])
    found = Campaign(run, Options(suite="vbench", dims="temporal_flickering", local=True), print).run()["full"]
    flickering = found.dimensions["temporal_flickering"]
    assert len(flickering.failed) == 1
    assert next(iter(flickering.failed)).startswith(victim.prompt)
    assert named(found.results["temporal_flickering"][1]) == named(whole[:-1])


def test_weights_of_another_network_are_told_and_the_rest_goes_on(
    moving: RunPaths, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(cache, tmp_path / "cache")
    shutil.copy(cache / "amt_model/amt-s.pth", tmp_path / "cache/raft_model/models/raft-things.pth")
    monkeypatch.setenv("VBENCH_CACHE_DIR", str(tmp_path / "cache"))
    run = fresh(moving, tmp_path / "run")
    options = Options(suite="vbench", dims="dynamic_degree,temporal_flickering", local=True)
    found = Campaign(run, options, print).run()["full"].dimensions
    assert found["dynamic_degree"].score is None
    assert found["dynamic_degree"].unavailable
    assert found["temporal_flickering"].score is not None


def test_the_filter_of_static_videos_runs_vbenchs_own(moving: RunPaths, cache: Path) -> None:
    from experiments.vbench.dimensions import STATIC_FILTER
    from experiments.vbench.probe import ask, interpreter
    from experiments.vbench.process import Runtime, VBenchWorker, Video

    found = ask(interpreter())
    worker = VBenchWorker(Runtime(found.python, found.package, environment={"VBENCH_CACHE_DIR": str(cache)}))
    try:
        answer = worker.score(STATIC_FILTER, [Video(str(moving.root / records_of(moving)[0].video))])
    finally:
        worker.close()
    assert answer.rows[0].record is not None
    assert answer.rows[0].record["video_results"] in (True, False)


def test_torchrun_is_refused_without_a_gpu(moving: RunPaths) -> None:
    from experiments.vbench.torchrun import run_torchrun

    with pytest.raises(ConfigError, match="needs GPUs"):
        run_torchrun(moving, Options(suite="vbench", dims="temporal_flickering"), print)
