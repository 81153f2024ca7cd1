"""Predicted seconds: the arithmetic, and how near it comes to what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.calibrate_fit import fit_forward
from orchestrator.actions import DvgConfig, action_list, full_action
from orchestrator.calibration import StepRow, cost_model
from orchestrator.cost import (
    GPUS,
    CostModel,
    ForwardCost,
    denoise_s,
    full_s,
    num_branches,
    rates,
    shared_s,
    uncalibrated,
    with_degrees,
)
from orchestrator.geometry import MODELS, model
from orchestrator.types import Action, Grid, Stage, VideoShape

MEASURED = {
    "hunyuanvideo": (
        ((32, 90, 160), 20.51),
        ((32, 68, 120), 7.76),
        ((16, 90, 160), 6.31),
        ((22, 62, 112), 3.42),
        ((32, 44, 80), 2.10),
        ((16, 44, 80), 0.83),
        ((11, 32, 56), 0.257),
    ),
    "wan2.1-14b": (
        ((21, 60, 104), 3.24),
        ((21, 44, 78), 1.44),
        ((10, 60, 104), 1.24),
        ((15, 42, 72), 0.82),
        ((21, 30, 52), 0.586),
        ((10, 30, 52), 0.238),
        ((7, 20, 36), 0.081),
    ),
    "hunyuanvideo-1.5": (((31, 30, 53), 4.09), ((22, 21, 37), 0.80), ((16, 15, 26), 0.23)),
}
"""Median seconds of one eager forward of one branch on one H200, cuDNN attention, no mask."""
H200 = "NVIDIA H200"
MADE_UP = CostModel(
    label="calibrated",
    device="made up",
    forwards=(ForwardCost(fixed_s=0.5, token_s=0.001, token2_s=1e-6),),
    transition_token_s=1e-4,
)


def rows(name: str) -> list[StepRow]:
    tokens = model(name).num_tokens
    return [StepRow(grid=grid, tokens=tokens(grid), median_s=seconds, repeats=5) for grid, seconds in MEASURED[name]]


@pytest.mark.parametrize("name", MEASURED)
def test_a_fit_to_the_measured_rows_is_within_a_twentieth_at_every_size(name: str) -> None:
    fit, error = fit_forward(rows(name))
    assert error < 0.05
    assert all(fit.seconds(row.tokens) == pytest.approx(row.median_s, rel=0.05) for row in rows(name))


@pytest.mark.parametrize("name", MEASURED)
def test_the_roofline_is_within_a_factor_of_two_of_every_measured_forward(name: str) -> None:
    cost = uncalibrated(model(name), H200)
    assert cost.label == "uncalibrated"
    for row in rows(name):
        assert 0.5 < row.median_s / cost.forward_s(row.tokens) < 2, row


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("budget", [0.5, 0.7])
def test_the_rooflines_speedups_are_within_a_twentieth_of_those_of_the_measured_forwards(name: str, budget: float) -> None:
    geometry = model(name)
    run = (geometry, geometry.default_shape, geometry.default_steps)
    fitted = CostModel(label="calibrated", device=H200, forwards=(fit_forward(rows(name))[0],))
    roofline = uncalibrated(geometry, H200)
    for action in action_list(*run, budget, DvgConfig()):
        of_each = [full_s(*run, cost) / denoise_s(geometry, action, cost) for cost in (fitted, roofline)]
        assert of_each[1] == pytest.approx(of_each[0], rel=0.05), action.name


@given(
    st.sampled_from(sorted(MODELS)),
    st.sampled_from([H200, "NVIDIA A100-SXM4-80GB", "CPU somebody's", "NVIDIA Next"]),
    st.integers(1, 200_000),
    st.integers(1, 5_000),
)
def test_more_tokens_never_cost_less(name: str, device: str, num_tokens: int, more: int) -> None:
    cost = uncalibrated(model(name), device)
    assert 0 < cost.forward_s(num_tokens) < cost.forward_s(num_tokens + more)


@given(
    st.lists(st.integers(50, 120_000), min_size=3, max_size=9, unique=True),
    st.floats(1e-4, 1.0),
    st.floats(1e-7, 1e-3),
    st.floats(1e-11, 1e-7),
)
@settings(max_examples=50)
def test_a_fit_recovers_seconds_that_follow_the_curve(counts: list[int], fixed_s: float, token_s: float, token2_s: float) -> None:
    truth = ForwardCost(fixed_s=fixed_s, token_s=token_s, token2_s=token2_s)
    made = [StepRow(grid=(1, 1, n), tokens=n, median_s=truth.seconds(n), repeats=1) for n in counts]
    fit, error = fit_forward(made)
    assert error < 1e-3
    assert min(fit.fixed_s, fit.token_s, fit.token2_s) >= 0


def test_a_schedule_costs_its_executed_forwards_branches_and_transitions() -> None:
    geometry = model("hunyuanvideo-1.5")
    action = Action("two", (Stage((1, 10, 10), 4, 7.0), Stage((1, 20, 20), 6, 11.0)), 0.5)
    small, large = 0.5 + 0.1 + 0.01, 0.5 + 0.4 + 0.16
    one_branch = 5 * small + 5 * large  # the transition's forward runs on the grid it leaves
    assert denoise_s(geometry, action, MADE_UP) == pytest.approx(one_branch + 400 * 1e-4)
    two = MADE_UP.model_copy(update={"num_branches": 2})
    assert denoise_s(geometry, action, two) == pytest.approx(2 * one_branch + 400 * 1e-4)


def test_the_full_run_costs_one_forward_a_step() -> None:
    geometry, shape = model("wan-mini"), VideoShape(41, 144, 144)
    assert full_s(geometry, shape, 30, MADE_UP) == pytest.approx(30 * MADE_UP.forward_s(891))
    assert full_action(geometry, shape, 30).density == 1


@pytest.mark.parametrize(
    ("name", "guidance", "branches"),
    [
        ("wan2.2-a14b", 4.0, 2),
        ("wan2.2-a14b", 1.0, 1),
        ("hunyuanvideo", 6.0, 1),
        ("hunyuanvideo-1.5", 6.0, 2),
        ("hunyuanvideo-1.5-i2v-distilled", 1.0, 1),
    ],
)
def test_only_true_guidance_doubles_the_forwards(name: str, guidance: float, branches: int) -> None:
    assert num_branches(model(name), guidance) == branches


def test_a_degree_that_was_not_measured_is_refused_with_those_that_were() -> None:
    wider = ForwardCost(degree=4, fixed_s=0.1, token_s=0.0, token2_s=0.0)
    cost = MADE_UP.model_copy(update={"forwards": (*MADE_UP.forwards, wider)})
    assert cost.forward_s(1000, degree=4) == pytest.approx(0.1)
    with pytest.raises(ValueError, match=r"degree 2 .* it has 1, 4"):
        cost.forward_s(1000, degree=2)


def test_a_device_is_known_by_a_part_of_its_name_and_an_unknown_gpu_is_taken_for_the_slowest() -> None:
    assert rates("NVIDIA H200") != rates("NVIDIA H100 80GB HBM3") != rates("NVIDIA A100-SXM4-80GB")
    assert rates("NVIDIA Next") == min((known for _, known in GPUS), key=lambda known: known.linear)
    assert rates("CPU AMD EPYC").linear < rates("NVIDIA Next").linear / 100


def test_the_made_up_rows_are_the_grids_they_claim() -> None:
    counts: dict[Grid, int] = {(32, 90, 160): 115_200, (21, 60, 104): 32_760, (31, 30, 53): 49_290}
    found = {row.grid: row.tokens for name in MEASURED for row in rows(name)}
    assert counts.items() <= found.items()


POINTS = ((1_000, 0.20), (4_000, 0.30), (20_000, 2.0))


def test_a_curve_goes_through_what_was_measured_and_keeps_its_shape_beyond() -> None:
    plain = ForwardCost(fixed_s=0.1, token_s=5e-5, token2_s=1e-9)
    bent = plain.model_copy(update={"points": POINTS})
    assert [bent.seconds(tokens) for tokens, _ in POINTS] == pytest.approx([seconds for _, seconds in POINTS])
    ends = [bent.seconds(n) / plain.seconds(n) for n in (10, 1_000, 20_000, 90_000)]
    assert ends[0] == pytest.approx(ends[1])
    assert ends[2] == pytest.approx(ends[3])
    assert plain.model_copy(update={"points": POINTS[:1]}).seconds(1_000) == pytest.approx(0.2)


@given(st.integers(1, 200_000))
def test_between_two_measurements_the_error_is_between_theirs(num_tokens: int) -> None:
    plain = ForwardCost(fixed_s=0.1, token_s=5e-5, token2_s=1e-9)
    shares = [seconds / plain.seconds(tokens) for tokens, seconds in POINTS]
    bent = plain.model_copy(update={"points": POINTS})
    assert min(shares) - 1e-9 <= bent.seconds(num_tokens) / plain.seconds(num_tokens) <= max(shares) + 1e-9


def test_two_branches_run_side_by_side_on_half_of_the_ranks_each() -> None:
    wider = ForwardCost(degree=2, fixed_s=0.3, token_s=0.0, token2_s=0.0)
    cost = MADE_UP.model_copy(update={"forwards": (*MADE_UP.forwards, wider), "num_branches": 2})
    alone = MADE_UP.forward_s(100)
    assert [cost.step_s(100, width) for width in (1, 2, 4)] == pytest.approx([2 * alone, alone, 0.3])
    assert MADE_UP.step_s(100) == alone
    with pytest.raises(ValueError, match="degree 4"):
        cost.step_s(100, 8)


@given(st.sampled_from(sorted(MODELS)), st.sampled_from([H200, "NVIDIA L40S", "CPU"]), st.integers(1, 200_000))
def test_degrees_nobody_measured_are_predicted_never_faster_than_an_even_share(name: str, device: str, num_tokens: int) -> None:
    geometry = model(name)
    cost = with_degrees(geometry, uncalibrated(geometry, device), (1, 2, 4, 8))
    alone = cost.forward_s(num_tokens)
    for degree in (2, 4, 8):
        assert cost.is_predicted(degree)
        assert cost.forward_s(num_tokens, degree) > alone / degree


def test_a_measured_degree_is_taken_as_it_is_and_only_of_its_backend() -> None:
    measured = ForwardCost(degree=4, backend="usp", fixed_s=0.1, token_s=0.0, token2_s=0.0)
    cost = MADE_UP.model_copy(update={"forwards": (*MADE_UP.forwards, measured)})
    geometry = model("wan2.1-14b")
    usp, native = (with_degrees(geometry, cost, (1, 2, 4), backend) for backend in ("usp", "native"))
    assert usp.forward_s(9_999, 4) == 0.1
    assert not usp.is_predicted(4)
    assert usp.is_predicted(2)
    assert native.is_predicted(4)
    assert native.forward_s(9_999, 4) != 0.1
    assert cost.alone == MADE_UP


def test_launches_under_which_small_grids_lie_are_a_floor() -> None:
    truth = ForwardCost(fixed_s=0.0, token_s=1e-5, token2_s=1e-9, floor_s=0.08)
    counts = (500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000)
    made = [StepRow(grid=(1, 1, n), tokens=n, degree=8, median_s=truth.seconds(n), repeats=1) for n in counts]
    fit, error = fit_forward(made)
    assert fit.floor_s == pytest.approx(0.08)
    assert error < 1e-6


def test_several_gpus_take_their_share_of_one_and_what_sharing_adds() -> None:
    one = ForwardCost(fixed_s=0.0, token_s=1e-5, token2_s=0.0, points=((1_000, 0.010), (4_000, 0.060)))
    two = ForwardCost(degree=2, fixed_s=0.0, token_s=5e-6, token2_s=0.0, points=((1_000, 0.006), (4_000, 0.034)))
    assert [shared_s(one, two, n) for n, _ in two.points] == pytest.approx([0.006, 0.034])
    assert shared_s(one, two, 2_500) == pytest.approx(one.seconds(2_500) / 2 + 0.0025)
    assert shared_s(one, two, 500) == pytest.approx(one.seconds(500) / 2 + 0.001)
    assert shared_s(one, two, 8_000) == pytest.approx(one.seconds(8_000) / 2 + 0.008)
    assert shared_s(one, one, 2_500) == one.seconds(2_500)


@pytest.mark.parametrize("name", ["hunyuanvideo", "hunyuanvideo-1.5", "wan2.2-a14b"])
def test_more_gpus_than_were_measured_are_predicted_from_fewer_within_6_percent_for_long_sequences(name: str) -> None:
    known = cost_model(model(name), model(name).default_shape, 1.0, "NVIDIA H200")
    seen = known.model_copy(update={"forwards": tuple(forward for forward in known.forwards if forward.degree < 4)})
    guessed = with_degrees(model(name), seen, (1, 2, 4), "peer")
    assert guessed.forward_of(4).predicted
    for tokens, seconds in known.forward_of(4).points:
        error = guessed.forward_s(tokens, 4) / seconds - 1
        assert error > -0.03, "never much too fast, also where latency counts"
        assert error < 0.06 or tokens < 13_000
