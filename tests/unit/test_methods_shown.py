"""What is said of an arm's methods wherever arms are shown: caches, what is reconstructed, operations that were executed."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from experiments.compare.comparison import Comparison, compare
from experiments.compare.export import as_json, csv_text
from experiments.compare.page import html_text
from experiments.compare.sources import read_runs
from experiments.compare.table import tables
from experiments.mlflow_rows import arm_metrics, prompt_metrics, prompt_params, prompt_tags
from experiments.report.material import Material
from experiments.report.page import build_page
from experiments.summary import arm_stats, arm_table
from orchestrator.types import Record
from tests.unit.comparing import arm_records, write_run

SAID = {
    "full": {"tflops": 8.0},
    "dvg": {"planner": "bottleneck", "reconstructed": "bottleneck", "tflops": 3.0},
    "tiny": {"accelerators": "delta-dit", "reconstructed": "delta-dit", "tflops": 2.0},
}
"""By the arms of ``tests.unit.comparing``; speedups are 2 and 4."""


def records(told: bool = True) -> list[Record]:
    return [record for arm, said in SAID.items() for record in arm_records([arm], **(said if told else {}))]


def compared(root: Path, found: Sequence[Record]) -> Comparison:
    write_run(root / "run", found)
    return compare(read_runs([str(root / "run")]))


def text_of(parts: object, width: int = 80) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    for part in parts if isinstance(parts, list) else [parts]:
        console.print(part)
    return " ".join(console.file.getvalue().split())  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [80, 160])
def test_a_comparison_tells_the_share_of_operations_and_marks_what_is_reconstructed(tmp_path: Path, width: int) -> None:
    told = text_of(list(tables(compared(tmp_path, records()), width)), width)
    assert "full 16 1.000 1.000" in told
    assert "dvg † 16 0.500 0.375 2.00x" in told
    assert "tiny † 16 0.250 0.250 4.00x" in told
    assert "† reconstructed, follows no released code: bottleneck, delta-dit" in told
    assert "ops: executed operations of denoising, as a share of that" in told
    assert ("TFLOP" in told) == (width > 80)


def test_rows_of_a_comparison_hold_them_under_stable_names(tmp_path: Path) -> None:
    comparison = compared(tmp_path, records())
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(csv_text(comparison)))}
    assert [rows[arm]["operations_share"] for arm in SAID] == ["1.0", "0.375", "0.25"]
    assert [rows[arm]["tflops"] for arm in SAID] == ["8.0", "3.0", "2.0"]
    assert [rows[arm]["reconstructed"] for arm in SAID] == ["", "bottleneck", "delta-dit"]
    assert (rows["tiny"]["accelerators"], rows["dvg"]["planner"]) == ("delta-dit", "bottleneck")
    assert float(rows["tiny"]["speedup"]) == pytest.approx(4.0), "of denoising"
    assert as_json(comparison)["arms"][0]["operations_share"] == 1.0


def test_the_page_of_a_comparison_says_the_same(tmp_path: Path) -> None:
    page = html_text(compared(tmp_path, records()))
    assert "tiny † <small>delta-dit</small>" in page
    assert "0.250<small>2 TFLOP</small>" in page
    assert "† reconstructed, follows no released code: bottleneck, delta-dit" in page


def test_records_that_do_not_say_leave_no_column_and_no_mark(tmp_path: Path) -> None:
    comparison = compared(tmp_path, records(told=False))
    told = text_of(list(tables(comparison, 80)))
    assert "ops" not in told
    assert "†" not in told
    assert ">ops<" not in html_text(comparison)
    assert [row.operations for row in comparison.rows] == [None] * 3


def test_one_record_that_does_not_say_leaves_its_arm_without_a_share(tmp_path: Path) -> None:
    found = records()
    found[-1] = arm_records(["tiny"], num_prompts=8, num_seeds=2)[-1]
    shares = {row.arm.name: row.operations for row in compared(tmp_path, found).rows}
    assert shares == {"full": 1.0, "dvg": 0.375, "tiny": None}


def test_the_table_of_a_sweep_and_the_report_mark_and_explain_it() -> None:
    stats = arm_stats(records(), reference_arm="full")
    assert {one.arm: one.marked for one in stats} == {"full": "full", "dvg": "dvg †", "tiny": "tiny †"}
    assert "† reconstructed, follows no released code: bottleneck, delta-dit" in text_of(arm_table(stats), 160)
    page = build_page(Material(records(), [], [], {"reference": "full"}, [], {}, {}))
    assert page.reconstructed.endswith("bottleneck, delta-dit")
    assert "tiny †" in [row[0] for row in page.table[1]]
    assert arm_table(arm_stats(records(told=False))).caption is None


def test_mlflow_has_them_as_params_tags_and_a_metric() -> None:
    tiny = records()[-1]
    assert prompt_params(tiny)["accelerators"] == prompt_tags(tiny)["reconstructed"] == "delta-dit"
    assert prompt_params(tiny)["reconstructed"] == prompt_tags(tiny)["accelerators"] == "delta-dit"
    assert prompt_metrics(tiny, None)["tflops"] == 2.0
    (stats,) = arm_stats([tiny])
    assert arm_metrics([tiny], {}, stats)["tflops"] == 2.0
    assert math.isclose(stats.tflops or 0.0, 2.0)
