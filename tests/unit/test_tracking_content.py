"""What a run looks like in MLflow: steps, cohorts, dataset, pictures, table, VBench, traces; all of it once."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow import MlflowClient
from pydantic import ValidationError

from experiments import mlflow_prompts, tracking
from experiments.mlflow_cohort import prompts_digest, recipe
from experiments.mlflow_plan import Plan
from experiments.mlflow_rows import (
    RUNS_UP_TO,
    arm_params,
    chosen_pairs,
    layout_of,
    prompt_metrics,
    quality_metrics,
    vbench_metrics,
)
from experiments.mlflow_runs import Known, Runs
from experiments.mlflow_store import Changes
from experiments.mlflow_table import read_back
from experiments.mlflow_traces import parts_of
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.tracking_config import TrackingConfig
from tests.fakerun import make_failure, make_record, make_records, make_run, make_spec, quality_row
from tests.mlflowstate import arms, by_level, state

pytestmark = pytest.mark.usefixtures("own_mlflow")


def mirror(paths: RunPaths) -> Changes:
    return tracking.mirror(Ledger(paths))


def history(paths: RunPaths, arm: str, name: str) -> list[tuple[int, int, float]]:
    client = MlflowClient(tracking_uri=paths.mlflow_uri)
    return sorted((p.step, p.timestamp, p.value) for p in client.get_metric_history(arms(paths)[arm].info.run_id, name))


def measured(paths: RunPaths, psnr: float, records: Any) -> None:
    paths.quality.write_text("".join(json.dumps(quality_row(r, psnr=psnr)) + "\n" for r in records if r.arm == "dvg"))


@pytest.mark.parametrize(
    ("policy", "num", "layout"),
    [("auto", RUNS_UP_TO, "runs"), ("auto", RUNS_UP_TO + 1, "steps"), ("steps", 1, "steps"), ("runs", 5000, "runs")],
)
def test_prompts_are_steps_above_a_thousand_unless_the_spec_says_otherwise(policy: str, num: int, layout: str) -> None:
    assert layout_of(policy, num) == layout


def test_prompts_as_steps_carry_their_own_times_under_the_same_step_in_every_arm(tmp_path: Path) -> None:
    records = make_records(3)
    records = [dataclasses.replace(r, finished_at=f"2026-01-02T03:04:{i:02d}+00:00") for i, r in enumerate(records)]
    paths = make_run(tmp_path, records, make_spec(records, per_prompt="steps"), videos=False)
    measured(paths, 27.5, records)
    assert mirror(paths).num_added == 6
    assert {level: len(found) for level, found in by_level(paths).items()} == {"sweep": 1, "arm": 2, "prompt": 0}
    full, dvg = history(paths, "full", "prompt/latency.total_s"), history(paths, "dvg", "prompt/latency.total_s")
    assert [step for step, _, _ in full] == [step for step, _, _ in dvg] == [0, 1, 2]
    assert [time for _, time, _ in dvg] == [1767323040000 + 1000 * second for second in (1, 3, 5)]
    assert [value for _, _, value in history(paths, "dvg", "prompt/quality.psnr")] == [27.5] * 3
    assert arms(paths)["dvg"].data.metrics["density"] == pytest.approx(0.48)


def test_steps_again_add_nothing_and_what_came_since_is_added_at_steps_of_its_own(tmp_path: Path) -> None:
    records = make_records(3)
    paths = make_run(tmp_path, records[:4], make_spec(records[:4], per_prompt="steps", videos="none"), videos=False)
    assert mirror(paths) == Changes(4, 4, 0)
    before = state(paths)
    assert mirror(paths) == Changes(4, 0, 0)
    assert state(paths) == before
    spec = make_spec(records, per_prompt="auto", videos="none")
    spec["prompts"].reverse()
    paths.config.write_text(yaml.safe_dump(spec))
    for record in records[4:]:
        Ledger(paths).append(record)
    measured(paths, 30.0, records)
    assert mirror(paths) == Changes(6, 2, 2)
    assert mirror(paths) == Changes(6, 0, 0)
    assert [step for step, _, _ in history(paths, "dvg", "prompt/density")] == [0, 1, 2]
    measured(paths, 31.0, records)
    assert mirror(paths) == Changes(6, 0, 3)
    assert len(history(paths, "dvg", "prompt/quality.psnr")) == 6


@pytest.mark.parametrize("psnr", [20.0, 30.0])
def test_what_was_measured_again_replaces_what_was_there_be_it_higher_or_lower(tmp_path: Path, psnr: float) -> None:
    records = make_records(1)
    paths = make_run(tmp_path, records, make_spec(records, videos="none"), videos=False)
    measured(paths, 25.0, records)
    mirror(paths)
    measured(paths, psnr, records)
    assert mirror(paths) == Changes(2, 0, 1)
    prompts = [run for run in by_level(paths)["prompt"] if run.data.params["arm"] == "dvg"]
    assert [run.data.metrics["quality.psnr"] for run in (*prompts, arms(paths)["dvg"])] == [psnr, psnr]
    assert mirror(paths) == Changes(2, 0, 0)


def test_steps_are_written_a_part_at_a_time_and_a_crash_loses_only_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlflow_prompts, "AT_ONCE", 2)
    records = [make_record("dvg", f"p{n}") for n in range(5)]
    paths = make_run(tmp_path, records, make_spec(records, per_prompt="steps", videos="none"), videos=False)
    log_points, calls = Runs.log_points, []

    def crash(runs: Runs, known: Known, points: Any) -> None:
        log_points(runs, known, points)
        calls.append(known)
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Runs, "log_points", crash)
    with pytest.raises(KeyboardInterrupt):
        mirror(paths)
    assert [step for step, _, _ in history(paths, "dvg", "prompt/density")] == [0, 1, 2, 3]
    assert mirror(paths) == Changes(5, 1, 0)
    assert [step for step, _, _ in history(paths, "dvg", "prompt/density")] == [0, 1, 2, 3, 4]


def test_a_prompt_keeps_its_step_and_one_that_the_spec_lacks_gets_the_next(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    spec = {"prompts": [{"id": "b", "seed": 0}, {"id": "a", "seed": 0}]}
    assert [Plan(paths, spec).step(pair) for pair in (("b", 0), ("a", 0))] == [0, 1]
    more = {"prompts": [{"id": "c", "seed": 0}, *spec["prompts"]]}
    assert [Plan(paths, more).step(pair) for pair in (("b", 0), ("c", 0), ("gone", 7))] == [0, 2, 3]
    assert Plan(paths, spec).step(("gone", 7)) == 3


def test_a_run_that_grows_beyond_the_limit_keeps_its_layout(tmp_path: Path) -> None:
    paths = RunPaths(tmp_path)
    assert Plan(paths, {"prompts": [{"id": "a", "seed": 0}]}).layout == "runs"
    assert Plan(paths, {"prompts": [{"id": "a", "seed": s} for s in range(RUNS_UP_TO + 1)]}).layout == "runs"
    assert Plan(paths, {"prompts": [], "tracking": {"per_prompt": "steps"}}).layout == "steps"


def test_params_are_typed_and_what_is_not_set_is_absent() -> None:
    settings = {"planner": "dvg", "budget": 0.5, "shift": None, "dvg": {"anchor": True, "rates": [0.5, 0.7]}, "negative": ""}
    assert arm_params(settings) == {"planner": "dvg", "budget": "0.5", "dvg.anchor": "true", "dvg.rates": "[0.5, 0.7]"}


def test_every_number_of_a_quality_row_is_a_metric_and_nothing_else_of_it() -> None:
    row = quality_row(make_record("dvg")) | {"flicker": 0.98, "static": 0, "lpips": None, "unavailable": {"lpips": "no weights"}}
    assert quality_metrics(row | {"odd": float("nan"), "is_odd": True}) == {
        "quality.psnr": 27.5,
        "quality.ssim": 0.91,
        "quality.flicker": 0.98,
        "quality.static": 0.0,
    }


def test_vbench_scores_and_totals_are_on_the_arms_they_are_of(tmp_path: Path) -> None:
    from experiments.vbench.score import totals

    found = {"vbench": {"dvg": {"motion_smoothness": 0.9}}, "vbench-i2v": {"dvg": {"i2v_subject": 0.8}, "full": {}}}
    assert vbench_metrics(found, totals, "dvg") == {"vbench.motion_smoothness": 0.9, "vbench.i2v.i2v_subject": 0.8}
    records = make_records(1)
    paths = make_run(tmp_path, records, make_spec(records, videos="none"), videos=False)
    mirror(paths)
    results = paths.root / "vbench" / "vbench" / "dvg" / "dvg_eval_results.json"
    results.parent.mkdir(parents=True)
    results.write_text(json.dumps({"temporal_flickering": [0.97, []]}))
    mirror(paths)
    assert arms(paths)["dvg"].data.metrics["vbench.temporal_flickering"] == 0.97
    assert not any(name.startswith("vbench") for name in arms(paths)["full"].data.metrics)
    results.write_text("torn")
    assert "VBench results were not sent" in mirror(paths).problems[0]


def test_arms_tell_their_cohort_and_prompts_that_they_share(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records, make_spec(records, videos="none"), videos=False)
    starts = [{"dvg": "0.1.0", "commit": "abcdef0123", "packages": {"torch": "2.13.0", "ray": None}}]
    paths.manifest.write_text(json.dumps({"starts": starts}))
    mirror(paths)
    full, dvg = arms(paths)["full"].data.tags, arms(paths)["dvg"].data.tags
    assert full["workload"] == dvg["workload"]
    assert full["recipe"] != dvg["recipe"]
    assert (full["hardware"], full["software"]) == ("cpu", "dvg 0.1.0 abcdef01, torch 2.13.0")
    sweep = by_level(paths)["sweep"][0]
    for run in (sweep, arms(paths)["dvg"]):
        (given,) = run.inputs.dataset_inputs
        assert (given.dataset.name, json.loads(given.dataset.profile)["num_rows"]) == ("prompts", 2)
        assert given.tags[0].value == "eval"
    assert sweep.data.tags["version.torch"] == "2.13.0"
    assert sweep.data.tags["reference"] == "full"


def test_a_recipe_is_what_makes_the_video_wherever_it_is_made() -> None:
    arm = {"name": "a", "planner": "dvg", "budget": 0.5, "weights": "/here", "cost": None}
    assert recipe(arm) == recipe(arm | {"name": "b", "weights": "/there", "cost": {"label": "calibrated"}})
    assert recipe(arm) != recipe(arm | {"budget": 0.25})
    assert prompts_digest([{"id": "a", "prompt": "x", "seed": 0}]) != prompts_digest([{"id": "a", "prompt": "x", "seed": 1}])


def test_strips_and_as_many_videos_as_asked_for_are_sent_once_and_missing_ones_are_told(tmp_path: Path) -> None:
    records = make_records(3)
    paths = make_run(tmp_path, records, make_spec(records, videos=2, strips="all"))
    (paths.root / records[0].video).unlink()
    (paths.root / records[1].video).write_bytes(b"no video")
    problems = mirror(paths).problems
    assert len(problems) == 2
    assert all(record.video in "".join(problems) for record in records[:2])
    client = MlflowClient(tracking_uri=paths.mlflow_uri)
    strips = [f.path for f in client.list_artifacts(arms(paths)["dvg"].info.run_id, "images") if f.path.endswith(".png")]
    assert sorted(path.partition("+timestamp")[0] for path in strips) == ["images/strip+step+1", "images/strip+step+2"]
    sent = {run.info.run_name for run in by_level(paths)["prompt"] if client.list_artifacts(run.info.run_id, "video")}
    chosen = chosen_pairs(2, [(record.prompt_id, record.seed) for record in records], 2)
    assert sent == {f"{name}-{seed}" for name, seed in chosen if name != "still-circle"} != set()
    before = state(paths)
    mirror(paths)
    assert state(paths) == before


def test_videos_of_prompts_that_are_steps_are_on_their_arms(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records, make_spec(records, videos="all", strips=1, per_prompt="steps"))
    assert mirror(paths) == Changes(4, 4, 0)
    client = MlflowClient(tracking_uri=paths.mlflow_uri)
    found = client.list_artifacts(arms(paths)["dvg"].info.run_id, "videos")
    assert {file.path.rpartition("-")[0] for file in found} == {"videos/still-circle-0", "videos/fast-square-0"}
    before = state(paths)
    mirror(paths)
    assert state(paths) == before


def test_the_table_of_prompts_is_mlflows_own_and_gives_the_run_back(tmp_path: Path) -> None:
    records = make_records(2)
    paths = make_run(tmp_path, records, make_spec(records, videos="none"), videos=False)
    measured(paths, 27.5, records)
    failure = make_failure(paths)
    mirror(paths)
    client, sweep = MlflowClient(tracking_uri=paths.mlflow_uri), by_level(paths)["sweep"][0]
    assert json.loads(sweep.data.tags["mlflow.loggedArtifacts"]) == [{"path": "per_prompt.json", "type": "table"}]
    found, quality, failures = read_back(client, sweep.info.run_id)
    assert sorted(found, key=lambda r: r.item_key) == sorted(records, key=lambda r: r.item_key)
    assert sorted(quality, key=str) == sorted((quality_row(r) for r in records if r.arm == "dvg"), key=str)
    assert failures == [{name: failure.get(name) for name in failures[0]}]


def test_spans_are_where_the_event_log_saw_them() -> None:
    record = make_record("dvg", stage_grids="4x8x8|11x18x18", stage_s="1.0|2.0")
    told = [
        {"type": "Sketched", "time_s": 10.0, "attempt": 1, "timings_s": {"text_s": 0.5, "sketch_s": 1.0, "stage1_s": 1.0}},
        {"type": "PhaseDone", "time_s": 15.0, "attempt": 1, "timings_s": {"refine_s": 2.0, "stage2_s": 2.0}},
        {"type": "Decoded", "time_s": 20.0, "attempt": 1, "clip": {"timings_s": {"decode_s": 1.0, "encode_s": 0.25}}},
    ]
    parts = {part.name: (part.start_s, part.end_s) for part in parts_of(record, told)}
    assert parts == {
        "text": (-11.5, -11.0),
        "stage 1 4x8x8": (-11.0, -10.0),
        "stage 2 11x18x18": (-7.0, -5.0),
        "decode": (-1.25, -0.25),
        "encode": (-0.25, 0.0),
    }


def test_spans_without_a_log_follow_each_other_up_to_the_end() -> None:
    parts = parts_of(make_record("full"), [])
    assert [part.name for part in parts] == ["text", "stage 1 11x18x18", "decode", "encode"]
    assert all(one.end_s == other.start_s for one, other in itertools.pairwise(parts))
    assert parts[-1].end_s == pytest.approx(0.0)


@pytest.mark.parametrize("with_log", [False, True])
def test_restored_frames_have_a_span_before_the_files(with_log: bool) -> None:
    record = make_record("vgdfr", stage_grids="4x8x8", stage_s="1.0", decode_s=1.0, restore_s=3.0, encode_s=0.25)
    told = [
        {"type": "Sketched", "time_s": 10.0, "attempt": 1, "timings_s": {"text_s": 0.05, "stage1_s": 1.0}},
        {
            "type": "Decoded",
            "time_s": 20.0,
            "attempt": 1,
            "clip": {"timings_s": {"decode_s": 1, "restore_s": 3, "encode_s": 0.25}},
        },
    ]
    parts = {part.name: (part.start_s, part.end_s) for part in parts_of(record, told if with_log else [])}
    assert [*parts] == ["text", "stage 1 4x8x8", "decode", "restore", "encode"]
    assert (parts["decode"], parts["restore"], parts["encode"]) == ((-4.25, -3.25), (-3.25, -0.25), (-0.25, 0.0))
    assert prompt_metrics(record, None)["latency.restore_s"] == 3.0


def test_traces_are_made_once_under_their_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    records = make_records(1)
    paths = make_run(
        tmp_path, records, make_spec(records, videos="none", traces=True, uri=RunPaths(tmp_path).mlflow_uri), videos=False
    )
    mirror(paths)
    assert mirror(paths) == Changes(2, 0, 0)
    client = MlflowClient(tracking_uri=paths.mlflow_uri)
    experiment = client.get_experiment_by_name("dvg")
    found = client.search_traces(locations=[experiment.experiment_id])
    assert sorted(trace.info.tags["item_key"] for trace in found) == sorted(record.item_key for record in records)
    spans = {span.name: span for trace in found for span in trace.data.spans if trace.info.tags["arm"] == "full"}
    assert set(spans) == {"full/still-circle/0", "text", "stage 1 11x18x18", "decode", "encode"}
    assert spans["stage 1 11x18x18"].end_time_ns - spans["stage 1 11x18x18"].start_time_ns == pytest.approx(8.4e9)


def test_the_spec_says_how_much_of_a_run_goes_to_mlflow() -> None:
    assert TrackingConfig.model_validate({"videos": 12, "strips": "none", "per_prompt": "steps", "traces": True}).videos == 12
    for wrong in ({"videos": -1}, {"videos": "some"}, {"per_prompt": "tables"}, {"strips": -2}, {"traces": "perhaps"}):
        with pytest.raises(ValidationError):
            TrackingConfig.model_validate(wrong)
