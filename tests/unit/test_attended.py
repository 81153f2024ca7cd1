"""What attention kept, from a stage's end to records, MLflow and comparisons; and where methods that attend are refused."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow import MlflowClient

from experiments import tracking
from experiments.compare.comparison import compare
from experiments.compare.export import csv_text
from experiments.compare.page import html_text
from experiments.compare.sources import read_runs
from experiments.compare.table import tables
from experiments.mlflow_rows import attention_steps, prompt_metrics
from orchestrator import method_widths
from orchestrator.attended import as_text, from_text, told
from orchestrator.checkpoints import Checkpoints, load
from orchestrator.degrees import Limits
from orchestrator.ledger import Ledger
from orchestrator.methods import Method, find
from orchestrator.resolve_methods import conflicts
from orchestrator.types import Attended, Record
from stages.accelerators.base import Boost
from stages.denoise import Boundary
from tests.fakerun import make_records, make_run, make_spec
from tests.mlflowstate import by_level
from tests.spies import STAGES
from tests.unit.comparing import arm_records, write_run
from tests.unit.test_method_widths import arm
from tests.unit.test_methods_shown import text_of
from tests.unit.test_worker_keeps import ITEM, worker

STEPS = (Attended(3, 0.0, None, 0.0, 0.5), Attended(4, 0.75, 0.96, 0.01, 0.25), Attended(5, 0.85, 0.94, 0.02, 0.125))
SPARSE = Method("sparse", "accelerator", "attention", "a test", "attends to some", "paper", make=lambda *given: None)
digits = st.floats(-1, 1).map(lambda value: float(f"{value:.4g}"))
seconds = st.floats(0, 1e4).map(lambda value: float(f"{value:.4g}"))


@given(st.lists(st.builds(Attended, st.integers(0, 99), digits, st.none() | digits, seconds, seconds), max_size=5))
def test_steps_are_read_back_from_a_record(steps: list[Attended]) -> None:
    assert list(from_text(as_text(steps))) == steps


def test_what_is_no_text_of_steps_is_refused_with_its_form() -> None:
    with pytest.raises(ValueError, match=r"'3:0\.5' is no step:sparsity:recall:choose_s:attend_s"):
        from_text("3:0.5")


def test_a_record_tells_means_over_all_steps_and_recall_over_those_that_measured_it() -> None:
    assert told(()) == {}
    fields = told(STEPS)
    assert fields["sparsity"] == pytest.approx((0.75 + 0.85) / 3)
    assert fields["recall"] == pytest.approx(0.95)
    assert (fields["choose_s"], fields["attend_s"]) == (pytest.approx(0.03), 0.875)
    assert told(STEPS[:1])["recall"] is None
    assert fields.keys() <= {field.name for field in dataclasses.fields(Record)}


def attended_in(boost: Boost) -> tuple[Attended, ...]:
    return tuple(Attended(step, 0.5, None, 0.0, 0.0) for step in boost.event.steps)


def test_a_boundary_knows_every_step_that_led_there_also_from_a_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Boost, "attended", attended_in)
    made, kept = worker(monkeypatch)
    _, _, first = made.sketch(ITEM)
    assert [step.step for step in first.past.attended] == list(range(STAGES[0].steps + 1)), "with the transition"
    last, _ = made.refine(ITEM, first)
    assert [step.step for step in last.past.attended] == list(range(sum(stage.steps for stage in STAGES)))
    disk = Checkpoints(tmp_path)
    for boundary in kept.boundaries[:-1]:
        disk.save(ITEM.item_key, boundary.pack())
        found = disk.find(ITEM.item_key)
        assert found is not None
        again, _ = made.refine(ITEM, Boundary.unpack(load(found.handle)))
        assert again.past.attended == last.past.attended
        assert again.past.tflops == last.past.tflops


def records() -> list[Record]:
    sparse = {"accelerators": "svg", **told(STEPS)}
    return [*arm_records(["full"]), *arm_records(["dvg"], **sparse)]


def test_a_comparison_tells_it_where_an_arm_has_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", records())
    found = compare(read_runs([str(tmp_path / "run")]))
    rows = {row["arm"]: row for row in csv.DictReader(io.StringIO(csv_text(found)))}
    assert (float(rows["dvg"]["sparsity"]), rows["full"]["sparsity"]) == (pytest.approx(1.6 / 3), "")
    wide, narrow = (text_of(list(tables(found, width)), width) for width in (160, 80))
    assert "53% 0.950" in wide
    assert "recall: dense attention's weight" in wide
    assert "53%" not in narrow
    assert "53%<small>recall 0.950</small>" in html_text(found)


def test_a_comparison_of_dense_arms_has_no_column_of_it(tmp_path: Path) -> None:
    write_run(tmp_path / "run", arm_records(["full", "dvg"]))
    found = compare(read_runs([str(tmp_path / "run")]))
    assert "sparsity" not in text_of(list(tables(found, 160)), 160)
    assert "sparsity" not in html_text(found)


@pytest.mark.usefixtures("own_mlflow")
def test_mlflow_gets_the_means_as_metrics_and_every_step_once(tmp_path: Path) -> None:
    (record,) = make_records(1, arms=("dvg",))
    record = dataclasses.replace(record, **told(STEPS))
    paths = make_run(tmp_path, [record], make_spec([record], videos="none"), videos=False)
    for _ in range(2):
        tracking.mirror(Ledger(paths))
    (run,) = by_level(paths)["prompt"]
    assert run.data.metrics["attention.recall"] == pytest.approx(0.95)
    history = MlflowClient(tracking_uri=paths.mlflow_uri).get_metric_history
    points = {
        name: [(p.step, p.value) for p in history(run.info.run_id, f"attention.step.{name}")] for name in ("sparsity", "recall")
    }
    assert points == {"sparsity": [(3, 0.0), (4, 0.75), (5, 0.85)], "recall": [(4, 0.96), (5, 0.94)]}


def test_mlflow_gets_nothing_of_a_dense_record() -> None:
    (record,) = make_records(1, arms=("dvg",))
    assert attention_steps(record) == []
    assert not any(name.startswith("attention") for name in prompt_metrics(record, None))


@pytest.mark.parametrize("lever", ["attention", "tokens"])
def test_a_planner_that_mixes_grids_goes_with_no_method_that_needs_rows_and_frames(lever: Any) -> None:
    method = dataclasses.replace(SPARSE, lever=lever)
    (line,) = conflicts([find("fresco", "planner"), method])
    assert line.startswith("fresco and sparse cannot be combined: its stages mix tokens of two grids")
    assert conflicts([find("dvg", "planner"), method]) == []


@pytest.mark.parametrize(("backend", "width", "is_refused"), [("usp", 4, True), ("usp", 2, False), ("native", 4, False)])
def test_a_method_that_attends_otherwise_is_refused_where_keys_go_round_a_ring(
    monkeypatch: pytest.MonkeyPatch, backend: str, width: int, is_refused: bool
) -> None:
    monkeypatch.setattr(method_widths, "_accelerators", lambda arm: [(SPARSE, None)])
    found = method_widths.backend_mistake(arm(guidance=1.0), Limits(max_width=width, backend=backend))
    assert bool(found) == is_refused
    if found:
        assert found.endswith("and sparse decides by head; take backend auto, native, peer or ulysses")


@pytest.mark.parametrize("name", ["ras", "lipar", "tome", "svg"])
@pytest.mark.parametrize(("guidance", "width"), [(1.0, 2), (5.0, 2), (5.0, 4)])
def test_a_method_that_leaves_out_tokens_is_refused_where_shares_must_be_equal(name: str, guidance: float, width: int) -> None:
    asked = arm(guidance=guidance, accelerators=[name])
    is_shared = guidance == 1.0 or width == 4
    found = method_widths.backend_mistake(asked, Limits(max_width=width, backend="usp"))
    assert bool(found) == (is_shared and name != "svg")
    if found:
        assert found.startswith(f"backend usp needs as many tokens on every rank, and {name} leaves some out")
        assert found.endswith("take backend auto, native, peer or ulysses")
    assert method_widths.backend_mistake(asked, Limits(max_width=width, backend="native")) == ""
