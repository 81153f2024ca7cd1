"""The benchmark of sequence parallelism: what it measures, its arithmetic, and a rehearsal of it over gloo."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.bench import parallel_report
from experiments.bench.parallel_cases import (
    NATIVE,
    PEER,
    REAL,
    STOCK_GRIDS,
    about_s,
    cases,
    degrees,
    exchanges,
    narrowed,
    odd_and_small,
    repeats,
    sent_bytes,
    settled,
    traced_grids,
)
from experiments.bench.parallel_rig import of_slices
from experiments.bench.parallel_tables import of, share, tables
from experiments.bench.parallel_trace import length, merged, uncovered
from orchestrator.geometry import model

WAN = "wan2.2-a14b"
ROOT = Path(__file__).parents[2]
SPANS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 10)).map(lambda span: (span[0], span[0] + span[1])), max_size=12)


def is_prime(number: int) -> bool:
    return number > 1 and all(number % factor for factor in range(2, int(number**0.5) + 1))


def forward(degree: int, seconds: float, grid: tuple[int, int, int] = (13, 44, 80), **more: Any) -> dict[str, Any]:
    tokens = model(WAN).num_tokens(grid)
    row = {"section": "forwards", "model": WAN, "grid": grid, "tokens": tokens, "degree": degree, "backend": NATIVE}
    return {**row, "median_s": seconds, "repeats": 3, **more}


@pytest.mark.parametrize("kind", REAL)
def test_grids_fit_the_patch_and_some_divide_by_nothing(kind: str) -> None:
    subject = REAL[kind]
    for grid in subject.grids:
        assert all(side % patch == 0 for side, patch in zip(grid, subject.geometry.patch, strict=True))
    tokens = [subject.tokens(grid) for grid in subject.grids]
    assert len(set(tokens)) == len(tokens)
    assert any(is_prime(count) and count > 10_000 for count in tokens)
    assert min(tokens) == 960


@pytest.mark.parametrize("kind", REAL)
def test_token_counts_are_close_enough_for_a_curve(kind: str) -> None:
    tokens = sorted(REAL[kind].tokens(grid) for grid in REAL[kind].grids)
    assert all(more / fewer <= 2.4 for fewer, more in itertools.pairwise(tokens))


def test_what_is_measured_of_stock_is_measured_of_ours_too() -> None:
    assert set(STOCK_GRIDS) <= set(REAL["wan"].grids)


@pytest.mark.parametrize("here", [(NATIVE,), (PEER, NATIVE, "ulysses")])
@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_every_grid_is_measured_on_every_degree_one_gpu_first(num_ranks: int, here: tuple[str, ...]) -> None:
    found = list(cases(REAL["wan"], num_ranks, here))
    assert len(found) == len(set(found))
    for grid in REAL["wan"].grids:
        of_grid = [(degree, name) for other, degree, name in found if other == grid]
        assert [degree for degree, name in of_grid if name == settled(here)][-len(degrees(num_ranks)) + 1 :] == list(
            degrees(num_ranks)[1:]
        )
        assert of_grid[0] == (1, NATIVE)


def test_all_exchanges_are_measured_where_it_tells_most() -> None:
    here = (PEER, NATIVE, "ulysses")
    assert exchanges(REAL["wan"], (13, 44, 80), 4, 4, here) == (PEER, NATIVE, "peer-1", "native-1", "ulysses")
    assert exchanges(REAL["wan"], (13, 44, 80), 2, 4, here) == (PEER, NATIVE)
    assert exchanges(REAL["wan"], (13, 44, 80), 2, 2, (NATIVE,)) == (NATIVE, "native-1")
    assert exchanges(REAL["hv"], (32, 90, 160), 4, 4, here) == (PEER, NATIVE)
    assert exchanges(REAL["hv"], (32, 90, 160), 2, 4, here) == (PEER,)
    assert exchanges(REAL["wan"], (8, 30, 32), 4, 4, here) == (PEER,)


def test_degrees_are_the_powers_of_two_there_is_room_for() -> None:
    assert [degrees(num) for num in (1, 2, 3, 4, 8)] == [(1,), (1, 2), (1, 2), (1, 2, 4), (1, 2, 4, 8)]


def test_fewer_grids_keep_their_order() -> None:
    assert narrowed(REAL["wan"], 20_000, 2).grids == ((13, 44, 80), (11437, 2, 2))
    with pytest.raises(ValueError, match="no grid of at most 100 tokens"):
        narrowed(REAL["wan"], 100, 2)


def test_what_is_compared_has_an_odd_count_and_the_smallest() -> None:
    assert odd_and_small(REAL["wan"]) == ((11437, 2, 2), (4, 30, 32))
    assert traced_grids(REAL["hv"])[0] == (16, 44, 80)


@given(st.floats(0.001, 50), st.floats(0.001, 50))
def test_longer_calls_are_never_repeated_more_often(one_s: float, other_s: float) -> None:
    assert sum(repeats(max(one_s, other_s))) <= sum(repeats(min(one_s, other_s)))


def test_a_guess_falls_with_the_degree_and_grows_with_the_tokens() -> None:
    assert about_s(model(WAN), 32_760, 4) < about_s(model(WAN), 32_760, 1) < about_s(model(WAN), 75_600, 1)


def test_bytes_sent_are_four_projections_less_the_part_that_stays() -> None:
    geometry = model(WAN)
    assert sent_bytes(geometry, 32_760, 1) == 0
    assert sent_bytes(geometry, 32_760, 8) == 40 * 4 * 4095 * 5120 * 2 * 7 // 8


@given(SPANS, SPANS)
def test_uncovered_time_is_what_no_other_span_covers(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    ticks = {tick for start, end in spans for tick in range(start, end)} - {t for start, end in others for t in range(start, end)}
    assert uncovered(spans, others) == len(ticks)
    assert length(spans) == len({tick for start, end in spans for tick in range(start, end)})
    assert all(before[1] < after[0] for before, after in zip(merged(spans), merged(spans)[1:], strict=False))


def test_the_slowest_rank_of_the_median_slice_counts() -> None:
    assert of_slices([1.0, 2.0, 5.0, 3.0], 1) == 2.5
    assert of_slices([1.0, 2.0, 5.0, 3.0], 2) == 3.5
    assert of_slices([1.0, 2.0, 5.0, 3.0], 4) == 5.0


def test_efficiency_is_against_one_gpu_on_the_same_grid() -> None:
    rows = [forward(1, 0.8), forward(4, 0.25), forward(1, 9.0, grid=(21, 60, 104))]
    assert share(rows, rows[1]) == pytest.approx(0.8)


def test_the_latest_row_counts_and_failed_ones_do_not() -> None:
    rows = [forward(4, 0.5), forward(4, 0.25), {**forward(4, 0.1), "error": "RuntimeError: no"}]
    assert [row["median_s"] for row in of(rows, "forwards")] == [0.25]


def test_tables_tell_seconds_efficiency_and_what_failed() -> None:
    text = tables([forward(1, 0.8), forward(4, 0.25), {**forward(2, 0.1), "error": "RuntimeError: no | way"}])
    assert "| wan2.2-a14b | 11,440 | native | 0.8000 | 0.2500 (80.0 %) |" in text
    assert "RuntimeError: no / way" in text


def test_what_failed_and_then_was_measured_is_not_told() -> None:
    failed = {**forward(4, 0.1), "error": "RuntimeError: once"}
    assert "once" in tables([forward(1, 0.8), failed])
    assert "once" not in tables([forward(1, 0.8), failed, forward(4, 0.25)])


def file(rows: list[dict[str, Any]], num_ranks: int = 4) -> dict[str, Any]:
    facts = {"benchmark": "parallel", "device": "NVIDIA H200", "torch": "2.11", "date": "2026-11-21", "commit": "abc"}
    return {**facts, "num_ranks": num_ranks, "rows": rows}


def test_the_report_answers_what_was_asked_and_tells_where_gpus_do_not_pay() -> None:
    rows = [forward(1, 0.8), forward(4, 0.25), forward(1, 0.05, grid=(4, 30, 32)), forward(4, 0.06, grid=(4, 30, 32))]
    rows += [forward(4, 0.26, grid=(11437, 2, 2)), {**forward(4, 0.3), "section": "stock", "backend": "diffusers"}]
    text = parallel_report.report({"x4": file(rows)}, ["A note."])
    assert "| wan2.2-a14b, 11,440 tokens, one branch on 4 | 80.0 % (0.8000 s to 0.2500 s) |" in text
    assert "| 11,437 tokens (a prime) against 11,440 on 4 | +4.0 % |" in text
    assert "ours is 1.20x as fast" in text
    assert "| wan2.2-a14b | 960 | 4 | 0.0600 | 1 | 0.0500 |" in text
    assert "A note." in text


def test_a_calibration_has_every_degree() -> None:
    grids = REAL["wan"].grids[:6]
    rows = [forward(degree, 1e-5 * model(WAN).num_tokens(grid) / degree, grid) for grid in grids for degree in (1, 2, 4)]
    rows.append(forward(4, 0.5, backend="usp"))  # too few sizes for a curve
    (found,) = parallel_report.calibrations({"x4": file(rows)})
    assert {(fit.degree, fit.backend) for fit in found.fits} == {(1, NATIVE), (2, NATIVE), (4, NATIVE)}
    assert found.fit_error < 0.02


@pytest.mark.slow
def test_a_rehearsal_over_gloo_measures_equality_and_switching(tmp_path: Path) -> None:
    out = tmp_path / "rows.json"
    command = [
        sys.executable,
        "-m",
        "experiments.bench.parallel",
        "--device",
        "cpu",
        "--tiny",
        "--ranks",
        "2",
        "--exchanges",
        "native",
    ]
    command += ["--models", "wan", "--sections", "equality", "switch", "--minutes", "3", "--out", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=250)
    rows = json.loads(out.read_text())["rows"]
    distances = {(row["backend"], row["degree"]): row["distance"] for row in of(rows, "equality") if "distance" in row}
    assert distances[NATIVE, 2] < 1e-5 < 1e-3 < distances["local", 2]
    (switch,) = of(rows, "switch")
    assert [(step["from"], step["to"]) for step in switch["changes"]] == [(2, 1), (1, 2), (2, 1)]
