"""Experiments of which a part cannot be read, and what their videos were measured against."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from experiments.compare.arms import arms_of
from experiments.compare.comparison import compare
from experiments.compare.sources import read_runs
from experiments.tracking import mirror, open_run
from orchestrator.config import read_yaml
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from tests.mlflowstate import by_level
from tests.unit.comparing import arm_records, quality_of, write_run

TRACKING = {"experiment": "dvg", "videos": "none", "strips": "none", "per_prompt": "runs"}


@pytest.fixture
def uri(tmp_path: Path, mlflow_database: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    shutil.copy(mlflow_database, tmp_path / "all.db")
    monkeypatch.chdir(tmp_path)
    return f"sqlite:///{tmp_path / 'all.db'}"


def write(folder: Path, uri: str, **tracking: Any) -> RunPaths:
    return write_run(
        folder, arm_records(num_prompts=2, num_seeds=1), tracking=TRACKING | {"uri": uri} | tracking, name=folder.name
    )


@pytest.mark.parametrize("per_prompt", ["runs", "steps"])
def test_a_sweep_without_prompts_is_left_out_and_told(tmp_path: Path, uri: str, per_prompt: str) -> None:
    mirror(Ledger(write(tmp_path / "whole", uri)))
    empty = write(tmp_path / "empty", uri, per_prompt=per_prompt)
    open_run(empty, read_yaml(empty.config))
    comparison = compare(read_runs([f"mlflow:dvg@{uri}"]))
    assert [row.arm.label for row in comparison.rows] == ["full", "dvg", "tiny"]
    assert comparison.notes[0].startswith("mlflow:dvg/empty is left out: it has neither prompt runs nor a table")


def test_a_prompt_run_that_is_none_of_ours_costs_its_sweep_alone(tmp_path: Path, uri: str) -> None:
    mirror(Ledger(write(tmp_path / "whole", uri)))
    odd = write(tmp_path / "odd", uri)
    mirror(Ledger(odd))
    client = MlflowClient(tracking_uri=uri)
    found = next(run for run in by_level(odd, uri)["prompt"] if run.data.params["arm"] == "dvg" and _is_of(odd, run))
    client.set_tag(found.info.run_id, "neutral_demand", "perhaps")
    comparison = compare(read_runs([f"mlflow:dvg@{uri}"]))
    assert {row.arm.run.name for row in comparison.rows} == {"whole"}
    assert "mlflow:dvg/odd is left out: " in comparison.notes[0]
    assert found.info.run_id in comparison.notes[0]


def _is_of(paths: RunPaths, run: Any) -> bool:
    return bool(run.data.tags["sweep_key"] == json.loads(paths.tracking.read_text())["sweep_key"])


def test_an_experiment_of_empty_sweeps_has_nothing_to_compare_and_says_why(tmp_path: Path, uri: str) -> None:
    empty = write(tmp_path / "empty", uri)
    open_run(empty, read_yaml(empty.config))
    with pytest.raises(ConfigError, match="nothing to compare") as raised:
        compare(read_runs([f"mlflow:dvg@{uri}"]))
    assert "neither prompt runs nor a table" in str(raised.value)


def test_what_videos_were_measured_against_comes_back_and_is_guessed_for_sweeps_that_never_told(tmp_path: Path, uri: str) -> None:
    """Measured against another arm than the spec's reference."""
    paths = write(tmp_path / "run", uri)
    records = {(r.arm, r.prompt_id): r for r in Ledger(paths).records()}
    of_tiny = [
        quality_of(r) | {"reference_arm": "dvg", "reference_sha256": records["dvg", r.prompt_id].sha256}
        for r in records.values()
        if r.arm == "tiny"
    ]
    paths.quality.write_text("".join(json.dumps(row) + "\n" for row in of_tiny))
    mirror(Ledger(paths))
    assert _references(f"mlflow:dvg@{uri}") == _references(str(paths.root)) == {"full": [], "dvg": [], "tiny": ["dvg"]}
    (tiny,) = (arm for arm in arms_of(read_runs([f"mlflow:dvg@{uri}"])) if arm.name == "tiny")
    assert set(tiny.references.values()) == {records["dvg", name].sha256 for name, _ in tiny.references}
    client = MlflowClient(tracking_uri=uri)
    for run in by_level(paths, uri)["prompt"]:
        for tag in {"reference_arm", "reference_sha256"} & run.data.tags.keys():
            client.delete_tag(run.info.run_id, tag)
    assert _references(f"mlflow:dvg@{uri}") == {"full": [], "dvg": [], "tiny": ["full"]}
    assert mirror(Ledger(paths)).num_updated == 2, "an older experiment learns it"
    assert _references(f"mlflow:dvg@{uri}")["tiny"] == ["dvg"]


def _references(place: str) -> dict[str, list[str]]:
    return {arm.name: sorted(arm.reference_arms) for arm in arms_of(read_runs([place]))}
