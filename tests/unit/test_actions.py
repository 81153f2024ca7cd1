"""DVG's action lists and budgets, against independently computed values."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.actions import (
    DvgConfig,
    InfeasibleBudget,
    action_list,
    decide,
    density_executed,
    feasible_budgets,
    first_stage,
    format_budgets,
    forwards_per_stage,
    full_action,
    uniform_action,
)
from orchestrator.geometry import MODELS, model
from orchestrator.types import Demand, VideoShape

RELEASE = DvgConfig()
RATES = RELEASE.transition_rates


def actions_of(name, num_steps, budget, config=RELEASE):
    geometry = model(name)
    return action_list(geometry, geometry.default_shape, num_steps, budget, config)


def frames_by_rate(actions):
    """{s2: (least F2, most F2)}, checked to be without gaps."""
    ranges = {}
    for s2 in sorted({action.s2 for action in actions}):
        frames = sorted(action.f2 for action in actions if action.s2 == s2)
        assert frames == list(range(frames[0], frames[-1] + 1))
        ranges[s2] = (frames[0], frames[-1])
    return ranges


def action_named(actions, s2, f2):
    return next(action for action in actions if (action.s2, action.f2) == (s2, f2))


LISTS = [  # model, steps, budget, F1, number of actions, {s2: range of F2}
    (
        "hunyuanvideo-1.5",
        50,
        0.5,
        12,
        24,
        {0.5: (20, 24), 0.6: (18, 22), 0.7: (17, 20), 0.8: (15, 18), 0.9: (14, 16), 1.0: (13, 15)},
    ),
    ("hunyuanvideo-1.5", 50, 0.7, 17, 6, {0.9: (29, 31), 1.0: (26, 28)}),
    (
        "wan2.2-a14b",
        40,
        0.5,
        8,
        15,
        {0.5: (13, 15), 0.6: (12, 14), 0.7: (11, 13), 0.8: (10, 11), 0.9: (9, 10), 1.0: (8, 9)},
    ),
    ("wan2.2-a14b", 40, 0.7, 12, 5, {0.8: (21, 21), 0.9: (19, 20), 1.0: (17, 18)}),
    (
        "hunyuanvideo",
        50,
        0.5,
        13,
        23,
        {0.5: (20, 24), 0.6: (19, 22), 0.7: (17, 20), 0.8: (16, 18), 0.9: (14, 17), 1.0: (13, 15)},
    ),
    ("hunyuanvideo", 50, 0.7, 18, 8, {0.8: (32, 32), 0.9: (29, 32), 1.0: (27, 29)}),
    ("hunyuanvideo-1.5", 12, 0.7, 17, 8, {0.8: (30, 31), 0.9: (27, 29), 1.0: (24, 26)}),
    (
        "hunyuanvideo-1.5",
        25,
        0.5,
        12,
        22,
        {0.5: (19, 22), 0.6: (18, 21), 0.7: (16, 19), 0.8: (15, 18), 0.9: (14, 16), 1.0: (13, 15)},
    ),
]


@pytest.mark.parametrize(("name", "num_steps", "budget", "f1", "num_actions", "ranges"), LISTS)
def test_action_lists(name, num_steps, budget, f1, num_actions, ranges):
    actions = actions_of(name, num_steps, budget)
    assert {action.stages[0].grid[0] for action in actions} == {f1}
    assert len(actions) == num_actions
    assert frames_by_rate(actions) == ranges


DENSITIES = [
    ("hunyuanvideo-1.5", 50, 0.7, 17, 0.4862, ((12, 15, 26), (17, 21, 37), (17, 30, 53), (31, 30, 53))),
    ("hunyuanvideo-1.5", 50, 0.6, 20, 0.4999, None),
    ("hunyuanvideo-1.5", 50, 0.7, 20, 0.5179, None),
    ("wan2.2-a14b", 40, 0.6, 13, 0.4998, ((8, 30, 52), (13, 36, 62), (13, 60, 104), (21, 60, 104))),
]


@pytest.mark.parametrize(("name", "num_steps", "s2", "f2", "value", "grids"), DENSITIES)
def test_example_densities(name, num_steps, s2, f2, value, grids):
    action = action_named(actions_of(name, num_steps, 0.5), s2, f2)
    assert action.density == pytest.approx(value, abs=5.1e-5)
    assert action.name == f"s{s2:.2f}-f{f2}"
    if grids:
        assert tuple(stage.grid for stage in action.stages) == grids


def test_the_actions_carry_the_models_shifts_or_the_configured_ones():
    assert {tuple(stage.shift for stage in action.stages) for action in actions_of("wan2.2-a14b", 40, 0.5)} == {(5, 9, 11, 11)}
    config = DvgConfig(shifts=(3, 4, 5, 6))
    assert [stage.shift for stage in actions_of("wan-mini", 30, 0.5, config)[0].stages] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("name", "num_steps", "ranges"),
    [
        ("hunyuanvideo-1.5", 50, "0.36-0.78, 1.00"),
        ("wan2.2-a14b", 40, "0.38-0.78, 1.00"),
        ("hunyuanvideo-1.5", 12, "0.41-0.80, 1.00"),
        ("hunyuanvideo-1.5", 25, "0.37-0.78, 1.00"),
        ("wan-mini", 30, "0.37-0.78, 1.00"),
    ],
)
def test_feasible_budgets(name, num_steps, ranges):
    geometry = model(name)
    budgets = feasible_budgets(geometry, geometry.default_shape, num_steps, RELEASE)
    assert format_budgets(budgets) == ranges


def test_wan_mini_offers_eight_actions_at_half_the_budget():
    names = {action.name for action in actions_of("wan-mini", 30, 0.5)}
    expected = "s0.50-f8 s0.60-f7 s0.60-f8 s0.70-f6 s0.70-f7 s0.80-f6 s0.90-f5 s1.00-f5"
    assert names == set(expected.split())


def test_an_infeasible_budget_names_the_nearest_actions_and_budgets():
    with pytest.raises(InfeasibleBudget, match=r"budget 0\.2: .*s0\.50-f5 with .*0\.36, 0\.37, 0\.38.*0\.36-0\.78") as caught:
        actions_of("hunyuanvideo-1.5", 50, 0.2)
    assert len(caught.value.nearest) == 3
    assert caught.value.feasible[0] == 0.36


@pytest.mark.parametrize(
    ("num_steps", "words"), [(1, "at least 3 are needed"), (2, "at least 3 are needed"), (4, "5 steps offer more")]
)
def test_too_few_steps_for_a_budget_are_named(num_steps, words):
    with pytest.raises(InfeasibleBudget, match=words):
        actions_of("wan-mini", num_steps, 0.5)


@pytest.mark.parametrize(("planner", "budget"), [("temporal-only", 0.5), ("spatial-only", 0.5), ("fixed", None)])
def test_no_planner_runs_on_the_full_grid_in_silence_where_steps_are_too_few(planner, budget):
    geometry = model("wan-mini")
    with pytest.raises(ValueError, match="at least 3"):
        uniform_action(planner, geometry, geometry.default_shape, 2, budget, RELEASE)


@pytest.mark.parametrize("budget", [0.0, -1.0, 1.01, math.nan])
def test_a_budget_out_of_range_is_an_error(budget):
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        actions_of("wan-mini", 30, budget)


def test_a_budget_of_one_is_the_plain_run():
    geometry = model("wan-mini")
    actions = actions_of("wan-mini", 30, 1.0)
    assert actions == (full_action(geometry, geometry.default_shape, 30),)
    assert actions[0].stages[0].shift == geometry.full_shift
    assert density_executed(geometry, actions[0]) == actions[0].density == 1.0


def test_two_stages_leave_nothing_to_choose():
    (action,) = actions_of("wan-mini", 4, 0.8)
    assert (action.s2, action.f2) == (None, None)
    assert [stage.steps for stage in action.stages] == [1, 3]
    assert [stage.shift for stage in actions_of("wan2.2-a14b", 4, 0.8)[0].stages] == [5, 11]
    assert decide((action,), Demand(0.5, 0.1), RELEASE).action == action


def test_a_one_sided_filter_never_exceeds_the_budget():
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5, DvgConfig(one_sided=True))
    assert actions
    assert all(0.48 <= action.density <= 0.5 for action in actions)


def test_the_papers_grid_of_rates_deduplicates_frame_counts():
    rates = tuple(value / 100 for value in range(50, 101, 5))
    config = DvgConfig(spatial_rates=rates, temporal_rate_step=0.05)
    actions = actions_of("wan2.2-a14b", 40, 0.5, config)
    assert {0.55, 0.65} <= {action.s2 for action in actions}
    assert len({action.stages for action in actions}) == len(actions)


def test_the_list_starts_with_the_nearest_density():
    gaps = [round(abs(action.density - 0.5), 12) for action in actions_of("hunyuanvideo-1.5", 50, 0.5)]
    assert gaps == sorted(gaps)


SPEEDUPS = [  # model, steps, budget, linear share of the cost, slowest / mean / fastest action
    ("hunyuanvideo-1.5", 50, 0.5, 0.0, (2.48, 2.77, 2.99)),
    ("hunyuanvideo-1.5", 50, 0.5, 0.5, (2.21, 2.37, 2.51)),
    ("hunyuanvideo", 50, 0.5, 0.2, (2.41, 2.62, 2.79)),
    ("wan2.2-a14b", 40, 0.5, 0.35, (2.37, 2.50, 2.61)),
    ("hunyuanvideo-1.5", 50, 0.7, 0.0, (1.58, 1.66, 1.74)),
]


@pytest.mark.parametrize(("name", "num_steps", "budget", "linear", "expected"), SPEEDUPS)
def test_ideal_speedups_of_the_executed_forwards(name, num_steps, budget, linear, expected):
    geometry = model(name)
    full_tokens = geometry.num_tokens(geometry.latent_grid(geometry.default_shape))

    def speedup(action):
        shares = [geometry.num_tokens(stage.grid) / full_tokens for stage in action.stages]
        forwards = forwards_per_stage([stage.steps for stage in action.stages])
        costs = (n * (linear * x + (1 - linear) * x * x) for n, x in zip(forwards, shares, strict=True))
        return num_steps / sum(costs)

    gains = sorted(speedup(action) for action in actions_of(name, num_steps, budget))
    assert (gains[0], sum(gains) / len(gains), gains[-1]) == pytest.approx(expected, abs=0.0051)


@st.composite
def requests(draw):
    geometry = draw(st.sampled_from(list(MODELS.values())))
    multiple_h, multiple_w = geometry.pixel_multiple
    shape = VideoShape(
        4 * draw(st.integers(0, 20)) + 1, multiple_h * draw(st.integers(1, 24)), multiple_w * draw(st.integers(1, 24))
    )
    return geometry, shape, draw(st.integers(1, 60)), draw(st.floats(0.3, 0.8))


@settings(max_examples=60, deadline=None)
@given(requests())
def test_every_listed_action_meets_the_budget_on_growing_aligned_grids(request):
    geometry, shape, num_steps, budget = request
    try:
        actions = action_list(geometry, shape, num_steps, budget, RELEASE)
    except InfeasibleBudget:
        assume(False)
    full_grid = geometry.latent_grid(shape)
    sketch = first_stage(geometry, shape, num_steps, budget, RELEASE)
    assert len({action.stages for action in actions}) == len(actions)
    for action in actions:
        grids = [stage.grid for stage in action.stages]
        assert abs(action.density - budget) <= RELEASE.tolerance + 1e-6
        assert action.stages[0] == sketch
        assert grids[-1] == full_grid
        assert min(map(min, grids)) >= 1
        assert all(a <= b for before, after in pairwise(grids) for a, b in zip(before, after, strict=True))
        assert all(size % patch == 0 for grid in grids for size, patch in zip(grid, geometry.patch, strict=True))
        assert sum(stage.steps for stage in action.stages) == num_steps
        assert 0 < density_executed(geometry, action) <= 1


@pytest.mark.parametrize(
    "bad",
    [
        {"transition_rates": (0.5, 0.28)},
        {"transition_rates": (0.5, 1.0)},
        {"spatial_rates": (0.0, 1.0)},
        {"balance": 2.0},
        {"tolerance": 0.0},
        {"spatial_demand": "magic"},
        {"shifts": (1.0, 2.0)},
        {"unknown": 1},
    ],
    ids=lambda bad: next(iter(bad)),
)
def test_a_bad_knob_is_refused(bad):
    with pytest.raises(ValidationError):
        DvgConfig(**bad)


def test_the_defaults_are_the_release():
    assert RATES == (0.28, 0.50, 0.72)
    assert (RELEASE.stage1_spatial, RELEASE.stage1_temporal) == (0.5, 0.8)
    assert (RELEASE.tolerance, RELEASE.balance, RELEASE.sharpness) == (0.02, 0.5, 2.6)
    assert (RELEASE.spatial_demand, RELEASE.temporal_demand, RELEASE.matching) == ("fft", "global_lk", "minmax")
    assert (RELEASE.resize, RELEASE.smoothing) == ("temporal_interp_spatial_restore", 0.3)
