"""VBench's totals: the official figures, partial sets, and files that are wrong."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from experiments.vbench.normalise import I2V, T2V
from experiments.vbench.results import dimension_of, load_all, scores_of
from experiments.vbench.score import suite_of, totals
from orchestrator.cli import app
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths

HALF = dict.fromkeys(T2V.dimensions, 0.5)
GOLDEN = {"quality": 0.14336085903893606, "semantic": 0.8454518533083267, "total": 0.2837790578928142}
I2V_GOLDEN = {"quality": 0.23284457311585863, "i2v": 0.374921280483542, "total": 0.3038829267997003}


def write(path: Path, data: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["score", *arguments])


def evaluated(root: Path, scores: dict[str, dict[str, dict[str, float]]]) -> Path:
    for suite, arms in scores.items():
        for arm, raw in arms.items():
            write(RunPaths(root).vbench_results(suite, arm), {dim: [value, []] for dim, value in raw.items()})
    return root


def test_all_raw_scores_of_one_half_make_the_official_totals() -> None:
    found = totals(HALF)
    assert {name: getattr(found, name) for name in GOLDEN} == GOLDEN
    assert found.i2v is None
    assert (found.num, found.of) == (16, 16)


def test_all_raw_scores_of_one_half_make_the_official_totals_of_image_to_video() -> None:
    found = totals(dict.fromkeys(I2V.counted, 0.5), "vbench-i2v")
    assert {name: getattr(found, name) for name in I2V_GOLDEN} == I2V_GOLDEN
    assert found.semantic is None
    assert found == totals(dict.fromkeys(I2V.counted, 0.5), "vbench-i2v-7-4")


def test_temporal_flickering_counts_in_no_total_of_image_to_video() -> None:
    assert totals(dict.fromkeys(I2V.dimensions, 0.5), "vbench-i2v").total == I2V_GOLDEN["total"]
    assert totals(dict.fromkeys(I2V.dimensions, 0.5), "vbench-i2v").num == 9


@pytest.mark.parametrize("missing", T2V.dimensions)
def test_a_total_with_any_dimension_missing_is_none(missing: str) -> None:
    found = totals({dim: raw for dim, raw in HALF.items() if dim != missing})
    assert found.total is None
    assert found.told("total") == "n/a (15/16 dimensions)"
    incomplete = {name for name in T2V.groups if getattr(found, name) is None}
    assert incomplete == {name for name, dims in T2V.groups.items() if missing in dims}


@given(st.dictionaries(st.sampled_from(T2V.dimensions), st.floats(-1, 1)))
def test_a_total_is_a_number_exactly_when_all_of_its_dimensions_are_there(raw: dict[str, float]) -> None:
    found = totals(raw)
    for name, dims in T2V.groups.items():
        assert (getattr(found, name) is not None) == (set(dims) <= set(raw))
    assert (found.total is not None) == (len(raw) == 16)
    assert json.loads(json.dumps(found.as_json(), allow_nan=False))["dimensions"] == raw


@pytest.mark.parametrize("dimension", T2V.dimensions)
def test_a_better_score_of_any_dimension_makes_a_better_total(dimension: str) -> None:
    worse, better = totals(HALF).total, totals(HALF | {dimension: 0.6}).total
    assert worse is not None
    assert better is not None
    assert better > worse


@pytest.mark.parametrize("name", ["subject consistency", "Subject Consistency", "subject-consistency", "subject_consistency"])
def test_dimensions_may_be_written_with_spaces_dashes_or_underscores(name: str) -> None:
    assert dimension_of(name) == "subject_consistency"
    assert scores_of({name: [0.25, [{"video_path": "a", "video_results": 0.25}]]}, "x") == {"subject_consistency": 0.25}


def test_the_names_of_the_tables_of_image_to_video_are_understood() -> None:
    names = ("Video-Text Camera Motion", "Video-Image Subject Consistency", "Video-Image Background Consistency")
    assert tuple(dimension_of(name) for name in names) == I2V.groups["i2v"]
    assert suite_of({"i2v_subject": 0.5}) == "vbench-i2v"
    assert suite_of({"motion_smoothness": 0.5}) == "vbench"


BAD = [
    ({"subject consistancy": 0.9}, ["unknown dimension 'subject consistancy'", "did you mean 'subject_consistency'", "choices:"]),
    ({"color": float("nan")}, ["color must be a raw score from -1 to 1 (got nan)"]),
    ({"color": float("inf")}, ["got inf"]),
    ({"imaging_quality": 65.2}, ["got 65.2", "no percentages"]),
    ({"color": "0.5"}, ["color must be a score or [score, [...]] (got '0.5')"]),
    ({"color": []}, ["got []"]),
    ({"color": True}, ["got True"]),
    ({"color": None}, ["got None"]),
    ({"human action": 0.5, "human_action": 0.5}, ["'human_action' is there twice"]),
    ([0.5], ["must be {dimension: [score, [...]]}", "not [0.5]"]),
    ({}, ["not {}"]),
]


@pytest.mark.parametrize("data, told", BAD, ids=lambda value: str(value)[:30])
def test_a_wrong_file_is_told_with_the_value_and_the_rule(data: Any, told: list[str], tmp_path: Path) -> None:
    result = run(str(write(tmp_path / "bad.json", data)))
    assert isinstance(result.exception, ConfigError)
    for part in [*told, "bad.json"]:
        assert part in str(result.exception)


def test_every_mistake_of_a_file_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        scores_of({"colour": 0.5, "scene": "x", "color": 0.5}, "f.json")
    assert len(raised.value.mistakes) == 2


@pytest.mark.parametrize("text, told", [("{", "is not JSON"), (None, "No such file")])
def test_a_file_that_is_missing_or_not_json_is_named(text: str | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "some.json"
    if text is not None:
        path.write_text(text)
    result = run(str(path))
    assert isinstance(result.exception, ConfigError)
    assert told in str(result.exception)
    assert str(path) in str(result.exception)


def test_a_dimension_of_another_benchmark_is_told_with_the_choices(tmp_path: Path) -> None:
    result = run(str(write(tmp_path / "a.json", {"color": 0.5})), "--suite", "vbench-i2v")
    assert "unknown dimension of vbench-i2v: 'color'" in str(result.exception)
    assert "vbench or vbench-i2v" in str(run(str(tmp_path / "a.json"), "--suite", "other").exception)


def test_the_json_of_a_file_is_the_totals_and_the_raw_scores(tmp_path: Path) -> None:
    result = run(str(write(tmp_path / "m_eval_results.json", {dim: [0.5, []] for dim in HALF})), "--json")
    assert json.loads(result.stdout) == {**GOLDEN, "dimensions": HALF}
    i2v = run(str(write(tmp_path / "raw.json", dict.fromkeys(I2V.counted, 0.5))), "--json")
    assert json.loads(i2v.stdout) == {**I2V_GOLDEN, "semantic": None, "dimensions": dict.fromkeys(I2V.counted, 0.5)}


def test_a_partial_file_prints_how_many_dimensions_there_are_and_no_total(tmp_path: Path) -> None:
    path = str(write(tmp_path / "raw.json", {"temporal flickering": 0.98, "motion_smoothness": 0.97, "color": 0.9}))
    printed = run(path).stdout
    for told in ("n/a (2/7 dimensions)", "n/a (1/9 dimensions)", "n/a (3/16 dimensions)"):
        assert told in printed
    assert "%" not in printed
    assert [json.loads(run(path, "--json").stdout)[name] for name in GOLDEN] == [None, None, None]


def test_a_run_is_scored_suite_by_suite_and_arm_by_arm(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF, "dvg": {"color": 0.5}}, "vbench-100": {"dvg": HALF}})
    found = json.loads(run(str(root), "--json").stdout)
    assert {suite: set(arms) for suite, arms in found.items()} == {"vbench": {"full", "dvg"}, "vbench-100": {"dvg"}}
    assert found["vbench"]["full"]["total"] == found["vbench-100"]["dvg"]["total"] == GOLDEN["total"]
    assert found["vbench"]["dvg"]["total"] is None
    assert set(json.loads(run(str(root), "--json", "--suite", "vbench-100").stdout)) == {"vbench-100"}
    assert "suites: vbench, vbench-100" in str(run(str(root), "--suite", "vbench-9").exception)
    printed = run(str(root)).stdout
    assert "28.38 %" in printed
    assert "n/a (1/16 dimensions)" in printed


def covered(root: Path, **dimensions: dict[str, Any]) -> Path:
    """What ``dvg evaluate`` leaves beside the scores; by default all five videos of each dimension."""
    whole = {"score": 0.5, "num_measured": 5, "num_videos": 5, "num_missing": 0, "num_left_out": 0, "failed": {}}
    rows = {dim: whole | dimensions.get(dim, {}) for dim in HALF}
    return write(RunPaths(root).vbench_arm("vbench", "full") / "full_evaluation.json", {"dimensions": rows})


def test_scores_say_of_how_many_videos_they_are_and_totals_of_fewer_are_marked_partial(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF}})
    covered(root, color={"num_measured": 3, "num_videos": 4, "failed": {"a": "why"}, "num_missing": 1})
    printed = run(str(root)).stdout
    assert "3 of 5 videos" in printed
    assert printed.count("5 of 5 videos") == 15
    assert "14.34 % " in printed
    assert "14.34 % (partial)" not in printed
    assert "84.55 % (partial)" in printed
    assert "28.38 % (partial)" in printed
    assert "full is partial, scored on the videos that there are: color (3 of 5 videos)" in printed
    told = json.loads(run(str(root), "--json").stdout)["vbench"]["full"]
    assert told["partial"] is True
    assert told["videos"]["color"] == {"measured": 3, "asked": 5}
    alone = run(str(RunPaths(root).vbench_results("vbench", "full"))).stdout
    assert "84.55 % (partial)" in alone


def test_videos_that_vbench_leaves_out_by_its_own_rule_make_no_score_partial(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF}})
    covered(root, color={"num_measured": 3, "num_left_out": 2})
    assert "partial" not in run(str(root)).stdout
    assert json.loads(run(str(root), "--json").stdout)["vbench"]["full"]["partial"] is False


def test_a_candidate_that_the_filter_could_not_judge_makes_flickering_partial(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF}})
    covered(root, temporal_flickering={"failed": {"a": "static filter: torn"}})
    assert "temporal_flickering (5 of 6 videos)" in run(str(root)).stdout


def test_a_torn_file_beside_the_scores_is_named(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF}})
    covered(root).write_text("{")
    assert "full_evaluation.json cannot be read" in str(run(str(root)).exception)


def test_totals_that_do_not_compare_with_the_leaderboard_say_so(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench-100": {"full": HALF}})
    assert "of a part of VBench's prompts (vbench-100)" in run(str(root)).stdout
    whole = evaluated(tmp_path / "whole", {"vbench": {"full": HALF}, "vbench-filtered": {"full": HALF}})
    assert "comparable" not in run(str(whole)).stdout
    assert "the run's own prompts" in run(str(evaluated(tmp_path / "own", {"custom": {"full": HALF}}))).stdout
    (whole / "config.resolved.yaml").write_text("prompts: [{prompt: a long cat, original: a cat, id: a, seed: 0}]")
    assert "prompt-optimized" in run(str(whole)).stdout


def test_a_url_is_refused_with_the_choices() -> None:
    assert "run folder or a file" in str(run("s3://bucket/run").exception)


def test_a_run_without_results_says_how_to_get_some(tmp_path: Path) -> None:
    assert "dvg evaluate" in str(run(str(tmp_path)).exception)
    assert load_all(tmp_path) == {}


def test_results_are_packed_for_the_leaderboard(tmp_path: Path) -> None:
    root = evaluated(tmp_path / "run", {"vbench": {"full": HALF}})
    write(RunPaths(root).vbench_arm("vbench", "full") / "full_full_info.json", [])
    write(RunPaths(root).vbench_arm("vbench", "full") / "full_evaluation.json", {"dimensions": {}})
    assert run(str(root), "--export", str(tmp_path / "out")).exit_code == 0
    with zipfile.ZipFile(tmp_path / "out" / "vbench-full.zip") as archive:
        assert archive.namelist() == ["full_eval_results.json", "full_full_info.json"]
        assert json.loads(archive.read("full_eval_results.json"))["color"] == [0.5, []]
    assert "run folder" in str(run(str(root / "vbench/vbench/full/full_eval_results.json"), "--export", "x").exception)
