"""What ``dvg evaluate`` tells MLflow of a run that is tracked, and of one that is not."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from mlflow import MlflowClient
from typer.testing import CliRunner

from experiments import tracking
from experiments.tracking import mirror_scores
from orchestrator import cli_evaluate
from orchestrator.cli import app
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from tests.fakerun import make_records, make_run, make_spec
from tests.mlflowstate import arms, state

SCORE = "vbench.temporal_flickering"


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunPaths:
    """A run that VBench has scores of, and that nobody tracks yet."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    records = make_records(1)
    paths = make_run(tmp_path / "run", records, make_spec(records, videos="none"), videos=False)
    write_score(paths, 0.97)
    return paths


def write_score(paths: RunPaths, score: float) -> None:
    path = paths.vbench_results("vbench", "dvg")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"temporal_flickering": [score, []]}))


@pytest.fixture
def tracked(paths: RunPaths, own_mlflow: None, mlflow_database: Path) -> RunPaths:
    (paths.root / "mlflow.db").write_bytes(mlflow_database.read_bytes())
    tracking.mirror(Ledger(paths))
    return paths


def told(paths: RunPaths) -> list[str]:
    lines: list[str] = []
    mirror_scores(paths, lines.append)
    return lines


def test_new_scores_reach_the_arms_and_nothing_else_changes(tracked: RunPaths) -> None:
    before = {name: (run.info.status, run.info.end_time) for name, run in arms(tracked).items()}
    assert told(tracked) == []
    write_score(tracked, 0.5)
    assert told(tracked) == ["MLflow has new scores of 1 arm"]
    found = arms(tracked)
    assert found["dvg"].data.metrics[SCORE] == 0.5
    assert not any(name.startswith("vbench") for name in found["full"].data.metrics)
    assert {name: (run.info.status, run.info.end_time) for name, run in found.items()} == before
    after = state(tracked)
    assert told(tracked) == []
    assert tracking.mirror(Ledger(tracked)).num_updated == 0
    assert state(tracked) == after


def test_a_run_that_nobody_tracks_is_left_alone(paths: RunPaths) -> None:
    assert told(paths) == []
    paths.tracking.write_text("{}")  # by a sweep whose MLflow was elsewhere
    assert told(paths) == []
    assert not (paths.root / "mlflow.db").exists()


def test_beside_a_tracker_and_without_a_server_a_line_says_how_the_scores_get_there(
    tracked: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_score(tracked, 0.5)
    with tracked.tracking_lock.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        [line] = told(tracked)
    assert "at the end of the sweep" in line
    monkeypatch.setattr(MlflowClient, "log_batch", lambda *args: (_ for _ in ()).throw(ConnectionError("no http://me:secret@x")))
    [line] = told(tracked)
    assert "dvg track" in line
    assert "secret" not in line
    monkeypatch.undo()
    assert arms(tracked)["dvg"].data.metrics[SCORE] == 0.97


def test_the_command_mirrors_what_it_measured(tracked: RunPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_evaluate, "_run", lambda *args: write_score(tracked, 0.25) or {})
    CliRunner().invoke(app, ["evaluate", str(tracked.root)])
    assert arms(tracked)["dvg"].data.metrics[SCORE] == 0.25
