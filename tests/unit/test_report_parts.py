"""Parts of a report: the action map, fronts, VBench, several runs as one, the contact sheet."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.report import Options, report_of, write_report
from experiments.report.action_map import COLUMNS, ROWS, action_maps
from experiments.report.clips import prompts_of
from experiments.report.material import Source, gather
from experiments.report.quality import front_of, measured, quality_table
from experiments.report.radar import boards, totals_of
from experiments.report.sheet import MOST_PROMPTS, chosen
from experiments.summary import arm_stats, table_rows
from experiments.vbench.normalise import T2V
from orchestrator.config import build_sweep
from orchestrator.ledger import Ledger
from orchestrator.mistakes import ConfigError
from orchestrator.paths import RunPaths
from orchestrator.runfolder import store_of
from orchestrator.types import Record
from tests.fakerun import make_failure, make_record, make_records, make_run, make_spec, quality_row


def source(paths: RunPaths, name: str = "", **changes: Any) -> Source:
    ledger = Ledger(paths)
    quality = [quality_row(r) for r in ledger.records() if r.arm != "full"]
    found = Source(paths, store_of(paths), ledger.records(), quality, ledger.failures(), name)
    return dataclasses.replace(found, **changes)


def demanding(num: int) -> list[Record]:
    return [make_record("dvg", f"p{n}", spatial_demand=(n + 0.5) / num, temporal_demand=0.3) for n in range(num)]


def test_the_plane_of_an_arm_is_covered_by_what_its_policy_chooses_there() -> None:
    spec = build_sweep({"prompts": ["x"], "arms": {"dvg": {"planner": "dvg", "budget": 0.5}}}, Path()).resolved()
    (found,) = action_maps(demanding(9), spec)
    area = sum(tile.width * tile.height for tile in found.tiles)
    plane = (found.chart.right - found.chart.left) * (found.chart.bottom - found.chart.top)
    assert area == pytest.approx(plane, rel=0.05)
    names = {tile.title for tile in found.tiles}
    assert len(names) >= 3
    assert len(found.tiles) < COLUMNS * ROWS / 4, "cells of a row under one action are one"
    assert names | {"s0.70-f8"} == {entry.name for entry in found.entries}
    assert sum(entry.num_videos for entry in found.entries) == 9


@pytest.mark.parametrize("arm", [{}, {"name": "dvg", "planner": "of another version"}, {"name": "dvg", "model": "none"}])
def test_a_policy_that_cannot_be_read_leaves_the_plane_without_a_background(arm: dict[str, Any]) -> None:
    (found,) = action_maps(demanding(3), {"arms": [arm] if arm else []})
    assert found.tiles == ()
    assert len(found.chart.marks) == 3


def test_a_figure_that_the_table_of_arms_has_is_in_no_second_table() -> None:
    records = make_records(1)
    rows = [quality_row(r) | {"semantic_colour": 1.0, "latent_cosine": 0.5} for r in records]
    heads, (_, table) = table_rows(arm_stats(records, rows))[0], quality_table(["full"], measured(records, rows, {}), ())
    assert set(heads) >= {"PSNR dB", "SSIM", "semantic"}
    assert len(table[0]) == 5
    assert quality_table(["full"], measured(records, rows, {}), heads) == (["arm"], [["full"]])


def test_the_run_s_own_prompts_have_scores_and_no_totals() -> None:
    raw = {"full": {"motion_smoothness": 0.9}}
    own, suite = boards(totals_of({"custom": raw, "vbench": raw}), {}, {"full": 0})
    assert (own.totals, own.rows == suite.rows, len(suite.totals)) == ((), True, 3)


def test_a_clip_of_another_shape_or_text_has_no_speedup_and_says_so() -> None:
    records = [make_record("dvg"), make_record("large", width=96), make_record("else", prompt="another"), make_record("full")]
    names = [record.arm for record in records]
    (prompt,) = prompts_of(records, [], [], {}, dict.fromkeys(names, 1), names, "full")
    told = {clip.arm: (clip.speedup, clip.unlike) for clip in prompt.clips}
    assert prompt.text == records[-1].prompt
    assert told["dvg"] == (2.0, "")
    assert told["large"] == (None, "another shape: 9 frames of 96 x 48, full's 9 frames of 48 x 48")
    assert told["else"] == (None, "made of another text: another")


def test_the_front_follows_which_way_is_better() -> None:
    points = {"slow and good": (9.0, 0.9), "fast and poor": (1.0, 0.5), "beaten": (9.5, 0.6)}
    assert set(front_of(points)) == {"slow and good", "fast and poor"}
    assert set(front_of(points, lower_is_better=True)) == {"fast and poor"}


def test_only_what_has_a_better_way_is_charted_and_means_are_per_arm() -> None:
    records = make_records(2)
    rows = [quality_row(r, psnr=20.0 + i) | {"motion": 1.0, "frames_ok": 1.0, "lpips": 0.2} for i, r in enumerate(records[1::2])]
    found = {one.name: one for one in measured(records, rows, {})}
    assert set(found) == {"psnr", "ssim", "lpips"}
    assert found["psnr"].arms == {"dvg": 20.5}
    assert found["psnr"].against == "full"


def test_a_board_has_a_spoke_per_dimension_and_refuses_totals_of_parts() -> None:
    raw = {dim: 0.5 + 0.02 * index for index, dim in enumerate(T2V.dimensions)}
    part = {dim: raw[dim] for dim in list(raw)[:2]}
    (board,) = boards(totals_of({"vbench": {"full": raw, "dvg": part}}), {}, {"full": 0, "dvg": 1})
    assert [spoke.name for spoke in board.spokes] == [dim.replace("_", " ") for dim in T2V.dimensions]
    assert [len(outline.dots) for outline in board.outlines] == [16, 2]
    assert board.heads == ("", "full", "dvg")
    assert all("n/a" in row[2] and "%" in row[1] for row in board.totals)
    assert [row[2] for row in board.rows].count("–") == 14
    (small,) = boards(totals_of({"vbench": {"dvg": part}}), {}, {"dvg": 1})
    assert small.spokes == ()


def test_vbench_results_of_an_arm_with_an_odd_name_are_that_arms(tmp_path: Path) -> None:
    records = [make_record("dvg 35 %", p) for p in ("orbit", "pan")]
    paths = make_run(tmp_path, records, videos=False)
    path = paths.vbench_results("vbench", "dvg 35 %")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"temporal_flickering": [0.97, []], "color": [0.5, []], "scene": [0.4, []]}))
    page = report_of([source(paths)]).page
    assert page.boards[0].heads == ("", "dvg 35 %")
    other = make_run(tmp_path / "other", make_records(1), videos=False)
    assert report_of([source(paths, "a"), source(other, "b")]).page.boards[0].heads == ("", "a/dvg 35 %")
    assert len(page.boards[0].spokes) == 3


def test_what_an_evaluation_could_not_measure_is_told_once_for_all_arms_also_without_any_score(tmp_path: Path) -> None:
    paths = make_run(tmp_path, make_records(1), videos=False)
    row = {"unavailable": "no weights of DINO", "failed": {}, "num_missing": 0, "note": "", "requested": True}
    cut = {**row, "unavailable": None, "failed": {"a-0.mp4": "cut short", "b-0.mp4": "gone"}, "num_missing": 2}
    for arm, more in (("full", {}), ("dvg", {"color": cut, "scene": {**row, "requested": False}})):
        folder = paths.vbench_arm("custom", arm)
        folder.mkdir(parents=True)
        (folder / f"{arm}_evaluation.json").write_text(json.dumps({"dimensions": {"subject_consistency": row, **more}}))
    (folder / "torn_evaluation.json").write_text("{")
    page = report_of([source(paths)])
    (board,) = page.page.boards
    assert board.rows == ()
    assert set(board.remarks) == {
        ("subject consistency", "dvg, full", "no weights of DINO"),
        ("color", "dvg", "2 videos failed, 'a-0.mp4' first: cut short; 2 videos are missing"),
    }
    page.write(tmp_path / "page.html")
    assert "no weights of DINO" in (tmp_path / "page.html").read_text()


def test_runs_stand_together_under_names_of_their_own_on_the_same_prompts(tmp_path: Path) -> None:
    one, two = (make_run(tmp_path / name, make_records(2)) for name in ("one", "two"))
    make_failure(two)
    found = report_of([source(one, "one"), source(two, "two")]).page
    assert [stats.arm for stats in found.arms] == ["one/full", "one/dvg", "two/dvg", "two/full"]
    assert found.reference == "one/full"
    assert [stats.speedup for stats in found.arms] == pytest.approx([1.0, 2.0, 2.0, 1.0])
    assert all(sum(clip.record is not None for clip in prompt.clips) == 4 for prompt in found.prompts[:2])
    charts = [chart for _, charts in found.charts for chart in charts]
    assert {chart.against for chart in charts} == {"one/full, two/full"}
    assert all({m.point.label for m in chart.scatter.marks} == {"", "one/dvg", "two/dvg"} for chart in charts)
    assert [failure["arm"] for failure in found.failures] == ["two/dvg"]
    based = report_of([source(one, "one"), source(two, "two")], base="two/dvg").page
    assert {stats.arm: stats.speedup for stats in based.arms}["one/full"] == pytest.approx(0.5)


def test_a_base_that_no_run_has_is_refused_with_the_choices(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown arm \(--base\) 'fulll' \(did you mean 'full'\?\); choices: dvg, full"):
        gather([source(make_run(tmp_path, make_records(1), videos=False))], "fulll")


def test_links_lead_from_wherever_the_page_is_written(tmp_path: Path) -> None:
    paths = make_run(tmp_path / "a run #1", make_records(1))
    (tmp_path / "pages").mkdir()
    report_of([source(paths)]).write(tmp_path / "pages" / "x.html", Options(num_held=0))
    assert 'src="../a%20run%20%231/videos/full/still-circle/0.mp4"' in (tmp_path / "pages" / "x.html").read_text()


def test_the_sheet_shows_frames_of_every_arm_and_names_what_is_missing(tmp_path: Path) -> None:
    records = make_records(3)
    paths = make_run(tmp_path, records)
    (tmp_path / records[1].video).unlink()
    (tmp_path / records[3].video).write_bytes(b"no video")
    write_report(paths, records, [], [])
    with Image.open(paths.sheet) as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24)}
        assert sheet.width > 800
        assert sheet.height > 300
    assert any(abs(r - 230) < 25 and g < 140 and b < 100 for r, g, b in colours), "the squares of the videos"
    assert (0xEC, 0xEE, 0xF1) in colours, "holes"


def test_the_sheet_of_a_large_run_has_few_prompts_and_prefers_those_that_all_arms_made(tmp_path: Path) -> None:
    records = [make_record(arm, f"p{n:02d}") for n in range(40) for arm in (("full", "dvg") if n % 2 else ("full",))]
    prompts = report_of([source(make_run(tmp_path / "many", records, videos=False))]).page.prompts
    assert len(chosen(prompts)) == MOST_PROMPTS
    assert all(clip.record for prompt in chosen(prompts) for clip in prompt.clips)
    few = prompts[: 2 * MOST_PROMPTS - 4]
    assert len(chosen(few)) == MOST_PROMPTS
    assert chosen(prompts[:3]) == list(prompts[:3])


def test_a_run_without_a_video_has_no_sheet(tmp_path: Path) -> None:
    paths = make_run(tmp_path, [], make_spec(make_records(1)))
    write_report(paths, [], [])
    assert paths.report.exists()
    assert not paths.sheet.exists()
