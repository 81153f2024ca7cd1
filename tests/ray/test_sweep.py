"""The whole command on a real, tiny checkpoint: Ray, videos, MLflow, report, resume."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import mlflow
import pytest
import yaml

from orchestrator.paths import RunPaths
from stages.video import verify
from tests import tiny

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red circle on a plain background", "a blue square moving fast on bricks"]
SPEC = {
    "name": "end-to-end",
    "prompts": PROMPTS,
    "frames": 25,
    "height": 96,
    "width": 96,
    "steps": 12,
    "arms": {"full": {"planner": "full"}, "dvg": {"budget": 0.5}},
    "cluster": {"heavy_ranks": 2},
}


def sweep(tmp_path: Path) -> subprocess.Popen[str]:
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump({**SPEC, "weights": str(tiny.checkpoint())}))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "sweep", str(spec), "--out", str(tmp_path / "run")],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunPaths, str]:
    """A run killed with -9 once its first record was written, and finished by the same command."""
    tmp_path = tmp_path_factory.mktemp("sweep")
    paths, first = RunPaths(tmp_path / "run"), sweep(tmp_path)
    while not lines(paths.records) and first.poll() is None:
        time.sleep(0.1)
    assert first.poll() is None, first.stdout.read() if first.stdout else ""
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    second = sweep(tmp_path)
    told, _ = second.communicate()
    assert second.returncode == 0, told
    return paths, told


def test_a_killed_sweep_ends_with_exactly_one_record_per_item_and_no_torn_file(resumed: tuple[RunPaths, str]) -> None:
    paths, _ = resumed
    rows = [json.loads(line) for line in lines(paths.records)]
    assert Counter((row["arm"], row["prompt"]) for row in rows) == {(arm, p): 1 for arm in ("full", "dvg") for p in PROMPTS}
    assert [verify(paths.root / row["video"], row["num_frames"]) for row in rows] == [None] * 4
    kept = {path.name for path in paths.videos.rglob("*") if path.is_file()}
    assert kept == {"0.mp4", "0.json"}


def test_the_second_start_skips_what_is_finished_and_prints_the_arms(resumed: tuple[RunPaths, str]) -> None:
    _, told = resumed
    assert "of 4 items are finished" in told
    assert "full" in told
    assert "dvg" in told


def test_records_say_what_was_measured_chosen_and_spent(resumed: tuple[RunPaths, str]) -> None:
    rows = {(row["arm"], row["prompt"]): row for row in map(json.loads, lines(resumed[0].records))}
    for prompt in PROMPTS:
        full, dvg = rows["full", prompt], rows["dvg", prompt]
        assert (full["density"], full["spatial_demand"]) == (1.0, None)
        assert abs(dvg["density"] - 0.5) <= 0.02
        assert 0 <= dvg["spatial_demand"] <= 1
        assert dvg["stage_grids"].count("|") == dvg["stage_s"].count("|") == 3
        assert dvg["denoise_s"] == pytest.approx(dvg["sketch_s"] + dvg["refine_s"])


def test_quality_against_the_full_arm_reaches_the_summary_and_the_report(resumed: tuple[RunPaths, str]) -> None:
    paths, _ = resumed
    with paths.summary.open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arm"] for row in rows if row["psnr"]] == ["dvg", "dvg"]
    assert paths.report.read_text().count("<video") == 4


def test_mlflow_holds_one_prompt_run_per_item_under_its_arm(resumed: tuple[RunPaths, str]) -> None:
    paths, _ = resumed
    client = mlflow.MlflowClient(paths.mlflow_uri)
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = {run.info.run_id: run for run in client.search_runs(experiments)}
    levels = Counter(run.data.tags["level"] for run in runs.values())
    assert levels == {"sweep": 1, "arm": 2, "prompt": 4}
    for run in runs.values():
        if run.data.tags["level"] == "prompt":
            assert runs[run.data.tags["mlflow.parentRunId"]].data.tags["level"] == "arm"
            assert {"density", "latency.denoise_s"} <= set(run.data.metrics)
