"""`dvg metrics RUN`: completes, resumes, says what cannot be measured, and what the spec may say about metrics."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.metrics import perceptual
from orchestrator.cli_metrics import MetricsOptions, beside_of, run_metrics
from orchestrator.cli_plan import run_doctor
from orchestrator.config import build_sweep
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from tests.fakerun import make_records, make_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", make_records(2)).root


def told(run: Path, capsys: pytest.CaptureFixture[str], *names: str, **options: Any) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = run_metrics(str(run), MetricsOptions(",".join(names) or None, as_json=True, device="cpu", **options))
    return code, json.loads(capsys.readouterr().out)


def test_json_gives_means_per_arm_and_summary_csv_gets_the_columns(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = told(run, capsys, "psnr", "free")
    assert (code, found["num_videos"], found["against"], found["broken"], found["lost"]) == (0, 4, "full", [], [])
    assert {arm: means["flicker"]["num_videos"] for arm, means in found["arms"].items()} == {"dvg": 2, "full": 2}
    assert "psnr" not in found["arms"]["full"]
    rows = list(csv.DictReader((run / "summary.csv").open()))
    mean = sum(float(row["psnr"]) for row in rows if row["psnr"]) / 2
    assert found["arms"]["dvg"]["psnr"] == {"mean": pytest.approx(mean), "num_videos": 2}
    assert {row["flicker"] != "" and row["frames_ok"] == "1.0" for row in rows} == {True}


def test_the_same_command_again_measures_nothing(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = told(run, capsys, "psnr", "flicker")
    lines = (run / "quality.jsonl").read_bytes()
    monkeypatch.setattr("experiments.metrics.measure._watch", lambda *_: pytest.fail("a video was opened again"))
    assert told(run, capsys, "psnr", "flicker") == first
    assert (run / "quality.jsonl").read_bytes() == lines


def test_broken_videos_are_named_and_counted_and_the_exit_code_says_so(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing, torn, *_ = (run / record.video for record in Ledger(RunPaths(run)).records() if record.arm == "dvg")
    missing.unlink()
    torn.write_bytes(torn.read_bytes()[:-300])
    code, found = told(run, capsys, "ssim", "flicker")
    assert code == 3
    assert [(row["arm"], row["prompt_id"]) for row in found["broken"]] == [("dvg", "fast-square"), ("dvg", "still-circle")]
    assert found["arms"]["full"]["flicker"]["num_videos"] == 2
    assert found["num_videos"] == 4
    run_metrics(str(run), MetricsOptions("ssim"))
    assert "is not there" in capsys.readouterr().out


def test_weights_that_are_not_there_are_an_error_only_for_who_asks_for_that_metric(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(perceptual.FOLDER, str(run))
    code, found = told(run, capsys, "reference")
    assert code == 0
    [gap] = found["unavailable"]
    assert (gap["metrics"], gap["num_videos"]) == (["lpips"], 2)
    assert perceptual.SOURCE in gap["why"]
    assert told(run, capsys, "lpips")[0] == 3


def test_mistakes_are_told_before_anything_is_measured(run: Path, tmp_path: Path) -> None:
    for options, match in (
        (MetricsOptions("psnr,lpip"), "'lpip' is not known"),
        (MetricsOptions(against="x"), "'x' is not one of"),
    ):
        with pytest.raises(ConfigError, match=match):
            run_metrics(str(run), options)
    with pytest.raises(ConfigError, match="no run folder"):
        run_metrics(str(tmp_path), MetricsOptions())
    assert not (run / "quality.jsonl").exists()


def spec(**more: Any) -> dict[str, Any]:
    return {"prompts": ["a red circle"], "arms": {"full": {"planner": "full"}, "dvg": {}}, **more}


def test_a_spec_without_metrics_measures_afterwards_and_one_with_them_meanwhile(tmp_path: Path) -> None:
    ledger = Ledger(RunPaths(tmp_path))
    plain, given, none = (build_sweep(spec(**more), tmp_path) for more in ({}, {"metrics": {}}, {"metrics": {"names": []}}))
    assert (plain.metrics.names, plain.metrics.during) == (["psnr", "ssim"], False)
    assert [beside_of(sweep, ledger) is None for sweep in (plain, given, none)] == [True, False, True]
    assert yaml.safe_load(yaml.safe_dump(given.resolved()))["metrics"] == given.metrics.model_dump()


@pytest.mark.parametrize(
    "metrics, match",
    [
        ({"names": ["lpip"]}, "metrics.names.0.*'lpips'"),
        ({"against": "dgv"}, "metrics.against: 'dgv' is not an arm; arms: full, dvg"),
        ({"nmaes": []}, "metrics.nmaes"),
        ({"tasks_per_node": 0}, "metrics.tasks_per_node"),
    ],
)
def test_mistakes_in_a_spec_are_named_with_the_choices(metrics: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        build_sweep(spec(metrics=metrics), tmp_path)


def doctors(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert run_doctor(as_json=True) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert isinstance(row, dict)
    return row


def test_doctor_says_where_the_weights_of_lpips_are_or_go(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.doctor.examine", list)
    monkeypatch.setattr("orchestrator.cli_evaluate.vbench_findings", list)
    monkeypatch.setenv(perceptual.FOLDER, str(tmp_path))
    row = doctors(capsys)
    assert (row["topic"], row["state"]) == ("lpips weights", "missing")
    assert all(word in row["found"] for word in (str(tmp_path), perceptual.SOURCE, perceptual.FOLDER))
    (tmp_path / perceptual.BACKBONE).touch()
    assert doctors(capsys) | {"gives": ""} == {
        "topic": "lpips weights", "state": "ok", "found": str(tmp_path / perceptual.BACKBONE), "gives": "",
    }  # fmt: skip
