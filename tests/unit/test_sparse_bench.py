"""The benchmark of sparse attention: its tensors have structure, its figures are what was measured, and no row is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from experiments.bench.sparse import TOY, Bench
from experiments.bench.sparse_report import report, rows_of, worthwhile
from experiments.bench.sparse_rows import (
    CASES,
    Case,
    Layer,
    best_recall,
    made_twice,
    summed,
    through_a_clip,
    undisturbed,
    warm_up,
)
from experiments.bench.structured import Recipe, Structured
from orchestrator.geometry import model
from orchestrator.methods import ACCELERATORS, find
from orchestrator.types import Attended, VideoShape
from parallel.seam import Attention
from stages.accelerators.attending import Here, Stopwatch

CPU = torch.device("cpu")
GRID = (4, 8, 12)
SVG = Case("svg", "svg")


def structured(noise: float = Recipe.noise) -> Structured:
    return Structured(Recipe(noise=noise), GRID, 4, 32, 5, CPU, torch.float32)


def test_a_step_has_the_same_tensors_each_time_and_the_next_ones_are_near() -> None:
    source, again = structured(), structured()
    q, k, v = source.at(3)
    assert all(map(torch.equal, (q, k, v), again.at(3)))
    assert q.shape == k.shape == v.shape == (1, 4, 4 * 8 * 12 + 5, 32)
    other, _, _ = source.at(4)
    assert 0 < (other - q).norm() / q.norm() < 0.3


def test_a_tenth_of_the_keys_has_most_of_the_weight_unless_tokens_are_noise() -> None:
    q, k, _ = structured().at(0)
    noise = torch.randn(2, *q.shape, generator=torch.Generator().manual_seed(0))
    assert best_recall(q, k, 0.1) > 0.7
    assert best_recall(noise[0], noise[1], 0.1) < 0.5
    assert best_recall(q, k, 1.0) == pytest.approx(1.0)


def test_speeds_count_choosing_dense_steps_and_the_host() -> None:
    steps = (Attended(0, 0.0, None, 0.0, 4.0), Attended(1, 0.5, 0.9, 0.5, 1.5), Attended(2, 0.7, None, 0.0, 1.0))
    row = summed(steps, [4.0, 3.0, 1.0], dense_s=4.0, num_steps=3)
    assert row["num_sparse"] == 2
    assert (row["sparsity"], row["recall"]) == (pytest.approx(0.6), 0.9)
    assert row["kernel_speed"] == pytest.approx(4 / 1.25)
    assert row["speed"] == pytest.approx(4 / 1.5), "a mean over sparse steps, with choosing"
    assert row["clip_speed"] == pytest.approx(12 / 7)
    assert row["wall_speed"] == pytest.approx(12 / 8)


def test_searches_and_full_steps_count_in_the_speed_of_a_method_that_rests_on_them() -> None:
    search, full, sparse = Attended(1, -4.0, None, 16.0, 4.0), Attended(2, -0.03, None, 0.0, 5.0), Attended(3, 0.5, 0.9, 0.0, 1.0)
    row = summed((Attended(0, 0.0, None, 0.0, 4.0), search, full, sparse), [4.0, 20.0, 5.0, 1.0], dense_s=4.0, num_steps=4)
    assert row["speed"] == pytest.approx(3 * 4 / 26), "dense steps alone are left out"
    assert row["kernel_speed"] == pytest.approx(3 * 4 / 10)
    assert row["choose_s"] == pytest.approx(16 / 3)
    assert (row["num_sparse"], row["sparsity"], row["recall"]) == (1, 0.5, 0.9)


class Seen:
    """Dense in the first steps; then half is kept."""

    def __init__(self, compiles: frozenset[int] = frozenset(), recall: float | None = None) -> None:
        self.compiles, self.recall = compiles, recall
        self.steps: list[int] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        self.steps.append(here.now.step)
        if here.now.step in self.compiles:
            counters["stats"]["unique_graphs"] += 1
        is_dense = here.now.step < 3
        with Stopwatch(CPU) as watch:
            found = dense(q, k, v)
        recall = None if self.recall is None or is_dense else torch.tensor(self.recall)
        here.log.add(here, 1.0 if is_dense else 0.5, recall, attending=watch)
        return found


LAYER = Layer(model("wan-mini"), (3, 8, 8), 6, CPU)


def test_warming_up_goes_on_until_something_was_left_out() -> None:
    seen = Seen()
    warm_up(lambda: seen, LAYER, Structured(Recipe(), LAYER.tokens, 2, 16, 0, CPU, torch.float32))
    assert seen.steps == [0, 1, 2, 3]


def test_what_compiled_while_it_was_timed_is_timed_again_and_else_refused() -> None:
    calls: list[int] = []

    def measure(most: int) -> str:
        calls.append(len(calls))
        if len(calls) <= most:
            counters["stats"]["unique_graphs"] += 1
        return "timed"

    assert undisturbed(lambda: measure(1)) == "timed"
    assert len(calls) == 2
    with pytest.raises(RuntimeError, match="compiled while it was timed, twice"):
        undisturbed(lambda: measure(9))
    source = Structured(Recipe(), LAYER.tokens, 2, 16, 0, CPU, torch.float32)
    with pytest.raises(RuntimeError, match="twice"):
        through_a_clip(lambda: Seen(compiles=frozenset({5})), LAYER, source, 1.0)


def test_seconds_are_those_without_measuring_recall_which_another_clip_tells() -> None:
    source = Structured(Recipe(), LAYER.tokens, 2, 16, 0, CPU, torch.float32)
    fast, slow = Seen(recall=None), Seen(recall=0.7)
    row = through_a_clip(lambda: fast, LAYER, source, 1.0, lambda: slow)
    assert fast.steps[-6:] == slow.steps == [0, 1, 2, 3, 4, 5]
    assert row["recall"] == pytest.approx(0.7)
    assert through_a_clip(Seen, LAYER, source, 1.0)["recall"] is None
    shape = VideoShape(17, 96, 128)
    pair = [make().sparse for make in made_twice(SVG, LAYER.geometry, shape, 6)]  # type: ignore[attr-defined]
    assert [settings.measure_recall for settings in pair] == [False, True]


def test_a_method_that_keeps_all_has_no_speed_of_sparse_steps() -> None:
    row = summed((Attended(0, 0.0, None, 0.0, 4.0),), [4.0], dense_s=4.0, num_steps=1)
    assert (row["num_sparse"], row["clip_speed"]) == (0, 1.0)
    assert "speed" not in row


def test_worth_while_is_what_beats_dense_each_method_once_and_first_what_keeps_enough() -> None:
    told = {
        "spargeattn, top 50 %": (2.0, 0.9),
        "spargeattn, mass 0.98": (1.9, 0.9),
        "svg": (1.5, 0.95),
        "svg2": (0.9, 0.9),
        "adaspa": (3.0, 0.3),
    }
    rows = [
        {"section": "methods", "name": name, "model": "m", "num_sparse": 4, "clip_speed": speed, "recall": recall}
        for name, (speed, recall) in told.items()
    ]
    assert [case.name for case in worthwhile(rows, CASES, "m")] == ["spargeattn, top 50 %", "svg", "adaspa"]
    assert [case.name for case in worthwhile(rows[3:4], CASES, "m")] == ["svg2"]
    assert worthwhile(rows, CASES, "another model") == []


def test_cases_name_every_method_that_attends_by_pattern() -> None:
    attending = {name for name in ACCELERATORS if find(name, "accelerator").lever == "attention"}
    assert {case.method for case in CASES} == attending - {"freelong"}, "which is for length, not for speed"


def test_a_method_that_fails_or_finds_no_time_costs_no_other_row(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 8.0, TOY, CPU, [Case("unheard of", "unheard-of"), SVG])
    bench.run(["full"])
    bench.deadline_s = 0.0
    bench.run(["recorded"])
    rows = {(row["section"], row["name"]): row for row in rows_of(tmp_path)}
    assert "unknown accelerator 'unheard-of'" in rows["methods", "unheard of"]["left"]
    assert rows["methods", "svg"]["clip_speed"] > 0
    assert "0 s are left" in rows["recorded", "svg"]["left"]
    text = (tmp_path / "report.md").read_text()
    assert "## Not measured" in text
    assert "| svg |" in text


def test_the_toy_run_measures_clips_recorded_tensors_and_parts_of_the_kernel(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 8.0, TOY, CPU, [SVG])
    bench.run()
    rows = rows_of(tmp_path)
    assert [row["left"] for row in rows if "left" in row] == []
    assert {row["section"] for row in rows} == {"methods", "clips", "recorded", "kernel"}
    alone, best, full, full_best = [row for row in rows if row["section"] == "clips"]
    assert [row["name"] for row in (alone, best, full, full_best)] == ["dvg", "dvg + svg", "full", "full + svg"]
    assert alone["grids"] == best["grids"]
    assert alone["attended"] == []
    assert best["is_finite"]
    assert len(best["attended"]) == sum(best["num_steps"]) - best["num_steps"][0] - 1, (
        "the sketch, with its transition, is shared"
    )
    assert json.loads(next(tmp_path.glob("*.json")).read_text())["benchmark"] == "sparse"
    assert "DVG on wan-mini" in report(rows, bench.recipe)
