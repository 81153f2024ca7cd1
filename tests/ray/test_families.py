"""Every family and task through the real commands, on tiny checkpoints: one sweep over all of them, and single videos."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from orchestrator.cli import app
from orchestrator.geometry import MODELS
from orchestrator.paths import RunPaths
from stages.video import verify
from tests.checkpoints import checkpoint, first_frame

ROOT = Path(__file__).parents[2]
SHAPE = {"frames": 17, "height": 64, "width": 96, "steps": 8}
SWEPT = (
    "hunyuanvideo",
    "hunyuanvideo-i2v",
    "hunyuanvideo-1.5",
    "hunyuanvideo-1.5-i2v-step-distilled",
    "wan2.1-1.3b",
    "wan2.1-i2v-14b",
    "wan2.2-a14b",
    "wan2.2-i2v-a14b",
    "wan2.2-ti2v-5b",
)
"""One of each way in which a family is run; they share a cluster."""


def dvg(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    command = [sys.executable, "-m", "orchestrator", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


def arms(frame: Path) -> dict[str, Any]:
    """DVG on every model, from a first frame where the model takes one."""
    return {
        name: {
            "model": name,
            "weights": str(checkpoint(name)),
            **({"image": str(frame)} if MODELS[name].image != "none" else {}),
        }
        for name in SWEPT
    }


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The records of the sweep, by arm; every video was found whole."""
    folder = tmp_path_factory.mktemp("families")
    spec = {
        **SHAPE,
        "prompts": ["a red circle"],
        "arms": arms(first_frame(folder / "f.png")),
        "cluster": {"heavy_ranks": 1, "num_threads": 1},
        "tracking": {"enabled": False},
    }
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    done = dvg("sweep", folder / "spec.yaml", "--out", folder / "run")
    assert done.returncode == 0, done.stdout
    paths = RunPaths(folder / "run")
    found = [json.loads(line) for line in paths.records.read_text().splitlines()]
    assert all(verify(paths.root / row["video"], SHAPE["frames"]) is None for row in found)
    return {row["arm"]: row for row in found}


def test_one_sweep_makes_the_videos_of_every_family_and_task(rows: dict[str, dict[str, Any]]) -> None:
    assert set(rows) == set(SWEPT)
    assert {row["model"] for row in rows.values()} == set(SWEPT)


@pytest.mark.parametrize("name", SWEPT)
def test_each_of_them_was_refined_grid_by_grid_within_its_budget(name: str, rows: dict[str, dict[str, Any]]) -> None:
    row = rows[name]
    assert row["stage_grids"].count("|") >= 1
    assert abs(row["density"] - row["budget"]) <= 0.02 + 1e-9
    assert row["attempts"] == 1
    assert (row["image"] is not None) is (MODELS[name].image != "none")
    assert row["solver"] == MODELS[name].solver


@pytest.mark.parametrize("name", ["hunyuanvideo-i2v", "hunyuanvideo-1.5", "wan2.2-i2v-a14b"])
def test_generate_makes_one_video_of_each_family(name: str, tmp_path: Path) -> None:
    image = ("--image", first_frame(tmp_path / "f.png")) if MODELS[name].image != "none" else ()
    shape = [part for key, value in SHAPE.items() for part in (f"--{key}", value)]
    options = ("--model", name, "--weights", checkpoint(name), *image, *shape)
    done = CliRunner().invoke(app, ["generate", "a red circle", *map(str, options), "--out", str(tmp_path / "v.mp4")])
    assert done.exit_code == 0, done.exception
    assert verify(tmp_path / "v.mp4", SHAPE["frames"]) is None
