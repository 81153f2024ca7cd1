"""``dvg compare`` on run folders: the figures, the base, what is refused and what is told."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

from experiments.compare.comparison import Compared, Comparison, compare
from experiments.compare.export import as_json, csv_text
from experiments.compare.sources import read_runs
from experiments.summary import arm_stats
from experiments.vbench.normalise import T2V
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from tests.fakerun import PROMPTS, make_failure
from tests.unit.comparing import arm_records, write_run


def of(*roots: Path, **options: Any) -> Comparison:
    return compare(read_runs([str(root) for root in roots]), **options)


def row(comparison: Comparison, label: str) -> Compared:
    return next(row for row in comparison.rows if row.arm.label == label)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "demo"
    make_failure(write_run(root, arm_records(), vbench={"full": 0.97, "dvg": 0.965, "tiny": 0.975}))
    return root


def test_costs_are_those_of_the_summary_and_failures_are_counted(demo: Path) -> None:
    comparison = of(demo)
    known = {stats.arm: stats for stats in arm_stats(arm_records())}
    for found in comparison.rows:
        assert dataclasses.replace(found.arm.stats, num_failed=0, quality={}) == dataclasses.replace(
            known[found.arm.name], quality={}
        )
    assert [(r.arm.label, r.arm.stats.num_failed) for r in comparison.rows] == [("full", 0), ("dvg", 1), ("tiny", 0)]


def test_speedup_is_over_the_prompts_and_seeds_that_the_base_has_too(tmp_path: Path) -> None:
    records = [r for r in arm_records() if r.arm != "full" or r.prompt_id != "two"]
    slow = [dataclasses.replace(r, stage_s="1000") if (r.arm, r.prompt_id) == ("dvg", "two") else r for r in records]
    write_run(tmp_path / "run", slow)
    found = row(of(tmp_path / "run"), "dvg")
    assert found.speedup is not None
    assert (found.speedup.mean, found.speedup.n) == (pytest.approx(2.0), 14)
    assert any("dvg has 16 videos, full 14, 14 in common" in note for note in of(tmp_path / "run").notes)


def test_speedup_counts_every_rank_of_a_stage(tmp_path: Path) -> None:
    wide = [dataclasses.replace(r, stage_s="1|2", stage_degrees="1|4") if r.arm == "dvg" else r for r in arm_records()]
    write_run(tmp_path / "run", wide)
    base_s = sum(r.denoise_s for r in wide if r.arm == "full")
    found = row(of(tmp_path / "run"), "dvg").speedup
    assert found is not None
    assert found.mean == pytest.approx(base_s / (16 * 9))


def test_differences_and_win_rates_are_paired_against_the_named_base(demo: Path) -> None:
    flicker = row(of(demo), "dvg").figures["flicker"].difference
    assert flicker is not None
    assert (flicker.mean, flicker.win_rate, flicker.n, flicker.num_prompts) == (pytest.approx(-0.001), 0.25, 16, 8)
    assert flicker.excludes(0.0)
    tiny = row(of(demo, base="dvg"), "tiny").figures
    assert tiny["psnr"].difference is not None
    assert tiny["lpips"].difference is not None
    assert (tiny["psnr"].difference.mean, tiny["psnr"].difference.win_rate) == (pytest.approx(-2.0), 0.0)
    assert (tiny["lpips"].difference.mean, tiny["lpips"].difference.win_rate) == (pytest.approx(0.1), 0.0)


def test_what_was_measured_against_the_base_has_a_mean_and_no_difference_from_it(demo: Path) -> None:
    figures = row(of(demo), "dvg").figures
    assert figures["psnr"].mean == pytest.approx(28.75)
    assert figures["psnr"].difference is None
    assert "psnr" not in row(of(demo), "full").figures


def test_an_arm_that_is_beaten_is_off_the_front_and_the_reference_is_on_it(demo: Path, tmp_path: Path) -> None:
    assert {r.arm.label for r in of(demo).rows if r.on_front} == {"full", "dvg", "tiny"}
    records = [dataclasses.replace(r, latency_s=7.0) if r.arm == "tiny" else r for r in arm_records()]
    write_run(tmp_path / "run", records)
    comparison = of(tmp_path / "run")
    assert comparison.quality == "lpips"
    assert {r.arm.label for r in comparison.rows if r.on_front} == {"full", "dvg"}


def test_the_first_named_metric_is_the_quality_of_the_front(demo: Path) -> None:
    assert of(demo, metrics=["flicker", "ssim"]).quality == "flicker"
    assert list(of(demo, metrics=["reference"]).metrics) == ["psnr", "ssim", "lpips"]
    assert list(of(demo, metrics=["vbench", "ssim"]).metrics) == ["vbench.temporal_flickering", "vbench.color", "ssim"]
    assert of(demo, metrics=["motion"]).quality is None


def test_scores_of_vbench_join_with_paired_differences_of_single_videos(demo: Path) -> None:
    figure = row(of(demo), "dvg").figures["vbench.temporal_flickering"]
    assert figure.mean == 0.965
    assert figure.difference is not None
    assert (figure.difference.mean, figure.difference.n, figure.difference.win_rate) == (pytest.approx(-0.005), 16, 0.0)
    assert row(of(demo), "dvg").figures["vbench.color"].difference is None
    assert "vbench.total" not in of(demo).metrics


def test_a_total_of_vbench_needs_every_dimension_and_is_then_the_quality(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    for arm in ("full", "dvg"):
        path = paths.vbench_results("vbench", arm)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({name: [0.5, []] for name in T2V.dimensions}))
    comparison = of(tmp_path / "run")
    assert comparison.quality == "vbench.total"
    assert row(comparison, "dvg").figures["vbench.total"].mean == pytest.approx(0.2837790578928142)
    assert row(comparison, "full").on_front is False


def test_imaging_quality_of_videos_is_scaled_as_its_score_is(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    for arm, score in (("full", 60.0), ("dvg", 66.0)):
        path = paths.vbench_results("vbench", arm)
        path.parent.mkdir(parents=True)
        videos = [{"video_path": f"{text}-0.mp4", "video_results": score} for text in PROMPTS.values()]
        path.write_text(json.dumps({"imaging_quality": [score / 100, videos]}))
    found = row(of(tmp_path / "run"), "dvg").figures["vbench.imaging_quality"].difference
    assert found is not None
    assert found.mean == pytest.approx(0.06)


def test_the_base_is_the_spec_s_reference_else_a_full_run_else_none(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm_records(), reference="tiny")
    write_run(tmp_path / "b", arm_records(), reference=None)
    write_run(tmp_path / "c", arm_records(("dvg", "tiny")), reference=None)
    bases = [of(tmp_path / name).base for name in "abc"]
    assert [base and base.label for base in bases] == ["tiny", "full", None]
    alone = of(tmp_path / "c")
    assert "no base" in alone.notes[0]
    assert all(r.speedup is None for r in alone.rows)


def test_arms_of_several_runs_are_told_apart_and_a_bare_base_is_the_first_run_s(tmp_path: Path) -> None:
    for name in ("x/run", "y/run"):
        write_run(tmp_path / name, arm_records(("full", "dvg")))
    comparison = of(tmp_path / "x/run", tmp_path / "y/run", base="dvg")
    assert [r.arm.label for r in comparison.rows] == ["x/run/dvg", "x/run/full", "y/run/full", "y/run/dvg"]
    assert comparison.rows[0].is_base
    other = of(tmp_path / "x/run", tmp_path / "y/run", base="y/run/dvg")
    assert other.rows[0].arm.label == "y/run/dvg"
    assert other.rows[1].speedup is not None


def told(comparison: Comparison, *words: str) -> bool:
    return any(all(word in note for word in words) for note in comparison.notes)


def test_other_shapes_are_not_compared_and_told(tmp_path: Path) -> None:
    write_run(tmp_path / "small", arm_records(("full", "dvg")), vbench={"full": 0.9, "dvg": 0.8})
    write_run(tmp_path / "large", arm_records(("tiny",), height=96, width=96), vbench={"tiny": 0.9})
    comparison = of(tmp_path / "small", tmp_path / "large", metrics=["flicker", "vbench"])
    assert row(comparison, "small/dvg").figures["vbench.temporal_flickering"].difference is not None
    large = row(comparison, "large/tiny")
    assert (large.speedup, large.on_front) == (None, False)
    assert all(figure.difference is None for figure in large.figures.values())
    assert told(comparison, "large/tiny", "9 frames of 96 x 96", "9 frames of 48 x 48", "not on the front")
    assert not told(comparison, "small/dvg", "shape")


def test_no_prompts_in_common_is_told(tmp_path: Path) -> None:
    write_run(tmp_path / "a", arm_records(("full",)))
    write_run(tmp_path / "b", [r for r in arm_records(("dvg",), num_seeds=4) if r.seed > 1])
    comparison = of(tmp_path / "a", tmp_path / "b")
    assert row(comparison, "b/dvg").speedup is None
    assert told(comparison, "b/dvg: no prompt and seed in common with a/full")


def test_another_text_under_the_same_id_is_left_out_and_told(tmp_path: Path) -> None:
    records = [dataclasses.replace(r, prompt="else") if (r.arm, r.prompt_id) == ("dvg", "pan") else r for r in arm_records()]
    write_run(tmp_path / "run", records)
    comparison = of(tmp_path / "run")
    assert told(comparison, "dvg: 2 of 16 videos have another text under the same prompt id", "leave them out")
    found = row(comparison, "dvg")
    assert found.speedup is not None
    assert found.figures["flicker"].difference is not None
    assert (found.speedup.n, found.figures["flicker"].difference.n) == (14, 14)


def test_other_hardware_models_and_software_are_told_with_both_names(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", arm_records(("full", "dvg"), device="NVIDIA H100"))
    second = write_run(tmp_path / "b", arm_records(("full", "dvg"), device="NVIDIA H200", model="wan2.1-t2v-1.3b"))
    for paths, torch in ((first, "2.11"), (second, "2.13")):
        paths.manifest.write_text(json.dumps({"starts": [{"packages": {"torch": torch, "ray": "2.60"}}]}))
    comparison = of(tmp_path / "a", tmp_path / "b")
    assert told(comparison, "b/full, b/dvg on NVIDIA H200", "a/full on NVIDIA H100")
    assert told(comparison, "b/full, b/dvg with wan2.1-t2v-1.3b", "a/full with wan-mini")
    assert told(comparison, "b and a ran with torch 2.13 and 2.11")
    assert row(comparison, "b/dvg").speedup is not None


def test_processors_are_told_apart_by_their_cores(tmp_path: Path) -> None:
    for name, cores in (("a", 2), ("b", 64)):
        paths = write_run(tmp_path / name, arm_records(("full",)))
        paths.manifest.write_text(json.dumps({"starts": [{"cores": cores}]}))
    assert told(of(tmp_path / "a", tmp_path / "b"), "b/full on cpu (64 cores)", "a/full on cpu (2 cores)")


def test_cores_that_are_not_known_are_no_other_hardware(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paths = write_run(tmp_path / name, arm_records(("full",)))
    paths.manifest.write_text(json.dumps({"starts": [{"cores": 2}]}))
    assert not told(of(tmp_path / "a", tmp_path / "b"), "other hardware")


def test_metrics_that_could_not_be_measured_are_told_with_their_reason(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    rows = [json.loads(line) for line in paths.quality.read_text().splitlines()]
    for row_ in rows[:3]:
        row_["unavailable"] = {"lpips": "its weights are not there", "static": "its weights are not there"}
    paths.quality.write_text("".join(json.dumps(row_) + "\n" for row_ in rows))
    assert told(of(tmp_path / "run"), "not available for 3 videos: lpips, static (its weights are not there)")


def test_quality_against_other_videos_is_told(tmp_path: Path) -> None:
    for name in ("a", "b"):
        paths = write_run(tmp_path / name, arm_records(("full", "dvg")))
    assert not told(of(tmp_path / "a", tmp_path / "b"), "different videos")
    shas = {r.sha256: r.sha256[::-1] for r in arm_records(("full",))}
    for path in (paths.quality, paths.records):
        text = path.read_text()
        for sha, other in shas.items():
            text = text.replace(sha, other)
        path.write_text(text)
    assert told(of(tmp_path / "a", tmp_path / "b"), "a/dvg against the full of a; b/dvg against the full of b")


def test_few_prompts_and_unfinished_runs_are_told(tmp_path: Path) -> None:
    records = arm_records(num_prompts=3)
    paths = write_run(tmp_path / "run", records)
    keys = " ".join(r.item_key[:10] for r in records)
    paths.manifest.write_text(json.dumps({"items": 30, "item_keys": keys, "starts": []}))
    comparison = of(tmp_path / "run")
    assert told(comparison, "3 prompts only")
    assert told(comparison, "run is not finished: 12 items are still to make")


def test_an_arm_without_a_video_is_a_row(tmp_path: Path) -> None:
    paths = write_run(tmp_path / "run", arm_records(("full", "dvg")))
    make_failure(paths, arm="broken")
    comparison = of(tmp_path / "run")
    assert row(comparison, "broken").arm.stats.num_failed == 1
    flat = next(r for r in as_json(comparison)["arms"] if r["label"] == "broken")
    assert (flat["num_videos"], flat["num_failed"], flat["latency_p50_s"], flat["speedup"]) == (0, 1, None, None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base": "fll"}, ["--base", "'fll'", "full", "dvg", "tiny"]),
        ({"metrics": ["sim"]}, ["--metrics", "'sim'", "did you mean 'ssim'", "vbench"]),
        ({"metrics": ["semantic"]}, ["--metrics", "'semantic'"]),
    ],
)
def test_a_base_or_metric_that_there_is_not_is_refused_with_the_choices(demo: Path, options: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        of(demo, **options)
    assert all(word in str(raised.value) for word in words)


def test_a_run_without_anything_in_it_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [])
    with pytest.raises(ConfigError, match="nothing to compare"):
        of(tmp_path / "run")


HEADER = (
    *("label", "run", "arm", "model", "planner", "accelerators", "reconstructed", "device", "is_base", "on_pareto_front"),
    *(
        "num_videos",
        "num_failed",
        "num_pairs",
        "density",
        "density_executed",
        "tflops",
        "operations_share",
        "sparsity",
        "recall",
        "choose_s",
        "attend_s",
        "speedup",
        "speedup_low",
        "speedup_high",
    ),
    *("work_speedup", "work_speedup_low", "work_speedup_high"),
    *("latency_p50_s", "latency_p95_s", "work_s", "device_s", "videos_per_device_hour"),
    *("ssim", "ssim_low", "ssim_high", "ssim_difference", "ssim_difference_low", "ssim_difference_high"),
    *("ssim_pairs", "ssim_win_rate"),
)


def test_csv_has_one_row_per_arm_under_these_columns(demo: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(of(demo, base="dvg", metrics=["ssim"])))))
    assert tuple(rows[0]) == HEADER
    assert [r["arm"] for r in rows] == ["dvg", "full", "tiny"]
    tiny = rows[2]
    assert (tiny["speedup"], tiny["ssim_win_rate"], tiny["num_pairs"]) == ("2.0", "0.0", "16")
    assert float(tiny["ssim_difference"]) == pytest.approx(-0.05)
    assert (rows[1]["ssim"], rows[1]["ssim_pairs"]) == ("", "0")


def test_json_is_strict_and_says_what_metrics_are(demo: Path) -> None:
    found = json.loads(json.dumps(as_json(of(demo)), allow_nan=False))
    assert (found["base"], found["pareto"]) == ("full", {"cost": "latency_p50_s", "quality": "lpips"})
    assert found["metrics"]["lpips"]["better"] == "lower"
    assert [arm["label"] for arm in found["arms"]] == ["full", "dvg", "tiny"]


def test_reading_changes_nothing_in_the_run_folder(demo: Path) -> None:
    paths = RunPaths(demo)
    before = {path: path.stat().st_mtime_ns for path in sorted(demo.rglob("*"))}
    paths.records.write_bytes(paths.records.read_bytes() + b'{"half": ')
    before[paths.records] = paths.records.stat().st_mtime_ns
    assert len(of(demo).rows) == 3
    assert {path: path.stat().st_mtime_ns for path in sorted(demo.rglob("*"))} == before
