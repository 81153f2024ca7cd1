"""summary.csv and the table of arms."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from experiments.summary import COLUMNS, arm_stats, arm_table, busy_s, table_rows, write_summary
from orchestrator.paths import RunPaths
from tests.fakerun import make_record, make_records, quality_row

GOLDEN_COLUMNS = (
    "item_key,arm,prompt_id,prompt,seed,model,planner,budget,num_steps,guidance,num_frames,height,width,fps,"
    "spatial_demand,temporal_demand,spatial_weight,temporal_weight,neutral_demand,action,s2,f2,why,density,"
    "density_executed,tokens_full,stage_grids,stage_s,text_s,sketch_s,refine_s,denoise_s,decode_s,encode_s,latency_s,"
    "device_s,degree,attempts,device,host,video,num_bytes,sha256,finished_at,"
    "target,predicted_s,cost_label,cost_device,image,solver,stage_degrees,sizing,accelerators,reconstructed,tflops,"
    "num_restored,restored_by,restore_s,sparsity,recall,choose_s,attend_s,attended,reference_arm,psnr,ssim,"
    "lpips,latent_cosine,flicker,motion,static,frames_ok,semantic_colour,semantic_shape,semantic_size,semantic_direction,"
    "semantic_speed,semantic_background,semantic_camera"
)


def test_summary_has_the_documented_columns_in_order_and_one_row_per_item(tmp_path: Path) -> None:
    records = make_records(3)
    quality = [quality_row(r) for r in records if r.arm == "dvg"]
    text = write_summary(RunPaths(tmp_path), records, quality).read_text()
    assert text.splitlines()[0] == GOLDEN_COLUMNS == ",".join(COLUMNS)
    rows = list(csv.DictReader(io.StringIO(text)))
    assert {row["item_key"] for row in rows} == {r.item_key for r in records}
    assert len(rows) == len(records)
    assert [(row["psnr"], row["reference_arm"]) for row in rows[:2]] == [("27.5", "full"), ("", "")]


def test_summary_survives_commas_quotes_and_line_breaks_in_a_prompt(tmp_path: Path) -> None:
    prompt = 'a "red", round\nthing; 50% <b>'
    text = write_summary(RunPaths(tmp_path), [make_record(prompt=prompt)], []).read_text()
    assert next(csv.DictReader(io.StringIO(text)))["prompt"] == prompt


def test_speedup_compares_only_prompts_that_both_arms_have() -> None:
    records = [
        make_record("full", "orbit", denoise_s=8.0),
        make_record("dvg", "orbit", denoise_s=4.0),
        make_record("full", "drift", denoise_s=100.0),
        make_record("dvg", "bounce", denoise_s=1.0),
    ]
    full, dvg = arm_stats(records, reference_arm="full")
    assert (full.arm, full.speedup, dvg.speedup) == ("full", 1.0, 2.0)


@pytest.mark.parametrize("other", [{"prompt": "else"}, {"width": 96}, {"height": 96}, {"num_frames": 17}, {"seed": 1}])
def test_speedup_is_over_videos_of_one_task(other: dict[str, Any]) -> None:
    records = [
        make_record("full", "orbit", denoise_s=8.0),
        make_record("dvg", "orbit", denoise_s=4.0),
        make_record("full", "drift", denoise_s=100.0),
        make_record("dvg", "drift", denoise_s=1.0, **other),
    ]
    assert [stats.speedup for stats in arm_stats(records, reference_arm="full")] == [1.0, 2.0]


def test_speedup_counts_the_ranks_that_a_stage_ran_on() -> None:
    wide = make_record("full", "orbit", denoise_s=2.0, stage_s="2.0", stage_degrees="8")
    mixed = make_record("dvg", "orbit", denoise_s=4.0, stage_s="2.0|1.0|1.0", stage_degrees="1|2|4")
    _, dvg = arm_stats([wide, mixed], reference_arm="full")
    assert dvg.speedup == 2.0


def test_an_arm_without_a_reference_or_quality_shows_no_number_rather_than_zero() -> None:
    (stats,) = arm_stats([make_record("dvg")])
    assert (stats.speedup, stats.psnr, stats.ssim) == (None, None, None)


def test_arm_figures_are_means_over_its_videos() -> None:
    records = [make_record("dvg", p, device_s=d, latency_s=d) for p, d in (("orbit", 2.0), ("drift", 4.0))]
    (stats,) = arm_stats(records, [quality_row(records[0], 20.0, 0.8), quality_row(records[1], 30.0, 0.9)])
    assert (stats.device_s, stats.videos_per_device_hour, stats.latency_p50_s) == (3.0, 1200.0, 3.0)
    assert (stats.psnr, stats.ssim) == pytest.approx((25.0, 0.85))


def test_restored_frames_are_work_and_part_of_the_decode_that_the_table_tells() -> None:
    plain, restored = make_record("full"), make_record("vgdfr", restore_s=3.0)
    full, merged = arm_stats([plain, restored])
    assert busy_s(restored) == restored.text_s + restored.denoise_s + restored.decode_s + 3.0 + restored.encode_s
    assert (full.restore_s, merged.restore_s, merged.busy_s) == (0.0, 3.0, busy_s(restored))
    columns, (first, second) = table_rows([full, merged])
    at = columns.index("decode s")
    assert (first[at], second[at]) == ("0.70", "3.70")


def test_work_is_told_in_gpu_seconds_on_gpus_and_in_rank_seconds_elsewhere() -> None:
    on_cpu = [make_record("dvg", device_s=36.0)]
    on_gpus = [dataclasses.replace(on_cpu[0], device="NVIDIA H200")]
    columns, (row,) = table_rows(arm_stats(on_gpus))
    assert columns[-2:] == ("GPU s", "videos /GPU-h")
    assert row[-2:] == ("36.00", "100")
    assert table_rows(arm_stats(on_cpu))[0][-2:] == ("rank s", "videos /rank-h")
    both = [*on_cpu, dataclasses.replace(on_gpus[0], arm="other")]
    assert table_rows(arm_stats(both))[0][-2:] == ("rank s", "videos /rank-h"), "a mixture is not told as GPUs"


def test_the_table_fits_80_columns_and_shows_every_arm_its_failures_and_its_speedup() -> None:
    records = make_records(2)
    quality = [quality_row(r) for r in records if r.arm == "dvg"]
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(arm_table(arm_stats(records, quality, failures=[{"arm": "dvg"}])))
    text = console.export_text()
    assert "2/3" in text
    assert max(map(len, text.splitlines())) <= 80
    assert "2.00x" in text
    assert text.index("full") < text.index("dvg")


def test_a_name_that_looks_like_markup_is_shown_as_it_is() -> None:
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(arm_table(arm_stats([make_record("[/full]"), make_record("[red]")]), title="[/demo]"))
    text = console.export_text()
    assert all(name in text for name in ("[/full]", "[red]", "[/demo]"))


def test_an_arm_of_which_every_item_was_given_up_is_a_row_without_figures() -> None:
    records = [dataclasses.replace(record, device="NVIDIA H200") for record in make_records(2, ("full",))]
    full, dvg = arm_stats(records, reference_arm="full", failures=[{"arm": "dvg"}, {"arm": "dvg"}])
    assert (dvg.arm, dvg.num_videos, dvg.num_failed, dvg.speedup) == ("dvg", 0, 2, None)
    columns, (first, second) = table_rows([full, dvg])
    assert second == ("dvg", "0/2", *["–"] * (len(columns) - 2))
    assert len(first) == len(second) == len(columns)
    assert columns[-2:] == ("GPU s", "videos /GPU-h"), "the unit is that of the arms that have videos"


def test_a_run_without_a_single_video_has_a_table_of_what_was_given_up() -> None:
    _, rows = table_rows(arm_stats([], failures=[{"arm": "dvg"}, {}]))
    assert [row[:2] for row in rows] == [("dvg", "0/1"), ("unknown", "0/1")]


def test_every_metric_has_its_mean_and_those_beside_psnr_and_ssim_a_column_where_there_is_room() -> None:
    records = make_records(2)
    dvg = [r for r in records if r.arm == "dvg"]
    rows = [quality_row(r) | {"flicker": 0.5 + 0.25 * n, "semantic_colour": 1.0} for n, r in enumerate(dvg)]
    rows += [{"item_key": records[0].item_key, "arm": "full", "reference_arm": None, "flicker": 1.0}]
    full, fast = arm_stats(records, rows)
    assert (full.arm, full.quality, full.psnr) == ("full", {"flicker": 1.0}, None)
    assert fast.quality == {"psnr": 27.5, "ssim": 0.91, "flicker": 0.625, "semantic_colour": 1.0}
    columns, (first, second) = table_rows([full, fast])
    at = columns.index("flicker")
    assert columns[at : at + 2] == ("flicker", "semantic")
    assert (first[at : at + 2], second[at : at + 2]) == (("1.0000", "–"), ("0.6250", "1.00"))
    assert len(columns) == len(first) == len(second)
    assert "flicker" not in table_rows([full, fast], with_metrics=False)[0]
