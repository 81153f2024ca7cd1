"""DVG's steps, densities, action lists and matching against independently computed values."""

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
    choose,
    decide,
    density,
    density_executed,
    feasible_budgets,
    first_stage,
    format_budgets,
    forwards_per_stage,
    full_action,
    stage_grids,
    stage_shapes,
    steps_per_stage,
    transition_steps,
    weights,
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


STEPS = [  # steps, transitions, steps of the density, forwards that run
    (50, (14, 25, 36), (14, 11, 11, 14), (15, 11, 11, 13)),
    (40, (11, 20, 28), (11, 9, 8, 12), (12, 9, 8, 11)),
    (30, (8, 15, 21), (8, 7, 6, 9), (9, 7, 6, 8)),
    (25, (7, 12, 18), (7, 5, 6, 7), (8, 5, 6, 6)),
    (12, (3, 6, 8), (3, 3, 2, 4), (4, 3, 2, 3)),
    (8, (2, 4, 5), (2, 2, 1, 3), (3, 2, 1, 2)),
]


@pytest.mark.parametrize(("num_steps", "cuts", "steps", "forwards"), STEPS)
def test_step_counts(num_steps, cuts, steps, forwards):
    assert transition_steps(num_steps, RATES) == cuts
    assert steps_per_stage(num_steps, RATES) == steps
    assert forwards_per_stage(steps) == forwards


@pytest.mark.parametrize(("num_steps", "steps"), [(4, (1, 3)), (3, (1, 2)), (2, (2,)), (1, (1,))])
def test_few_steps_fall_back_to_fewer_stages(num_steps, steps):
    assert steps_per_stage(num_steps, RATES) == steps


def test_rates_that_meet_on_one_step_share_a_transition():
    assert steps_per_stage(10, (0.28, 0.29, 0.72)) == (2, 5, 3)


@given(st.integers(1, 200))
def test_transitions_are_distinct_and_leave_a_step_on_either_side(num_steps):
    cuts = transition_steps(num_steps, RATES)
    assert all(before < after for before, after in pairwise(cuts))
    assert all(1 <= cut < num_steps - 1 for cut in cuts)
    steps = steps_per_stage(num_steps, RATES)
    assert sum(steps) == sum(forwards_per_stage(steps)) == num_steps
    assert min(steps) >= 1
    assert min(forwards_per_stage(steps)) >= 1


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="num_steps is 0"):
        transition_steps(0, RATES)


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


def test_hunyuanvideo_plans_in_pixels_and_runs_on_whole_patches():
    geometry = model("hunyuanvideo")
    spatial, temporal = (0.5, 0.7, 1, 1), (0.4, 0.5, 0.5, 1)
    assert stage_shapes(geometry, (32, 90, 160), spatial, temporal)[:2] == ((13, 360, 640), (16, 504, 896))
    assert stage_grids(geometry, (32, 90, 160), spatial, temporal) == (
        (13, 44, 80),
        (16, 62, 112),
        (16, 90, 160),
        (32, 90, 160),
    )


def test_the_actions_carry_the_models_shifts_or_the_configured_ones():
    assert {tuple(stage.shift for stage in action.stages) for action in actions_of("wan2.2-a14b", 40, 0.5)} == {(5, 9, 11, 11)}
    config = DvgConfig(shifts=(3, 4, 5, 6))
    assert [stage.shift for stage in actions_of("wan-mini", 30, 0.5, config)[0].stages] == [3, 4, 5, 6]


SELECTIONS = [
    (0.05, 0.05, 0.5000, 0.5000, (0.8, 18)),
    (0.05, 0.20, 0.4037, 0.5963, (0.7, 20)),
    (0.10, 0.30, 0.3729, 0.6271, (0.7, 20)),
    (0.30, 0.10, 0.6271, 0.3729, (0.8, 17)),
    (0.40, 0.05, 0.7130, 0.2870, (0.9, 16)),
]


@pytest.mark.parametrize(("spatial", "temporal", "w_s", "w_t", "chosen"), SELECTIONS)
def test_weights_and_selections(spatial, temporal, w_s, w_t, chosen):
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5)
    pair = weights(Demand(spatial, temporal), RELEASE.sharpness)
    assert pair == pytest.approx((w_s, w_t), abs=5.1e-5)
    action = choose(actions, pair, RELEASE)
    assert (action.s2, action.f2) == chosen
    assert 0.5 <= action.density <= 0.52


@pytest.mark.parametrize(("pair", "chosen"), [((0.24, 0.76), (0.5, 24)), ((0.5, 0.5), (0.5, 20)), ((0.71, 0.29), (1.0, 13))])
def test_the_papers_equation_9_runs_to_the_corners_of_the_list(pair, chosen):
    action = choose(actions_of("hunyuanvideo-1.5", 50, 0.5), pair, DvgConfig(matching="stage_mean"))
    assert (action.s2, action.f2) == chosen


def test_demand_match_keeps_to_its_shortlist():
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5)
    shortlist = [action for action in actions if action.s2 >= 0.6][:10]
    config = DvgConfig(matching="demand_match")
    assert {choose(actions, (w / 10, 1 - w / 10), config) for w in range(11)} <= set(shortlist)


def test_demand_match_without_a_prior_is_the_nearest_gain():
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5)
    config = DvgConfig(matching="demand_match", demand_match_prior=0.0)

    def distance(action):
        space = ((action.s2**2 * 11 + 11) / 22 - 0.25) / 0.75
        time = (action.f2 / 31 - 12 / 31) / (1 - 12 / 31)
        return (space - 0.8) ** 2 + (time - 0.2) ** 2

    shortlist = [action for action in actions if action.s2 >= 0.6][:10]
    assert choose(actions, (0.8, 0.2), config) == min(shortlist, key=distance)


def test_linear_matching_follows_the_only_demand():
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5)
    config = DvgConfig(matching="linear")
    assert decide(actions, Demand(0.9, 0.0), config).action.s2 == 1.0
    assert decide(actions, Demand(0.0, 0.9), config).action.f2 == 24


def test_no_sharpness_weighs_space_and_time_alike():
    assert weights(Demand(0.9, 0.1), 0.0) == (0.5, 0.5)


def test_more_spatial_demand_never_lowers_the_spatial_rate():
    actions = actions_of("hunyuanvideo-1.5", 50, 0.5)
    rates = [choose(actions, (w / 20, 1 - w / 20), RELEASE).s2 for w in range(21)]
    assert rates == sorted(rates)


def test_a_decision_says_why():
    decision = decide(actions_of("wan-mini", 30, 0.5), Demand(0.1, 0.4), RELEASE)
    assert decision.demand == Demand(0.1, 0.4)
    assert decision.weights == weights(Demand(0.1, 0.4), RELEASE.sharpness)
    assert decision.action.name in decision.why
    assert "\n" not in decision.why


def test_a_neutral_demand_is_said_to_be_unmeasured():
    decision = decide(actions_of("wan-mini", 30, 0.5), Demand(0.0, 0.0, neutral=True), RELEASE)
    assert decision.weights == (0.5, 0.5)
    assert "not measurable" in decision.why


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


def test_the_choice_on_wan_mini_reaches_at_least_three_actions():
    actions = actions_of("wan-mini", 30, 0.5)
    demands = [Demand(s / 20, t / 20) for s in range(15) for t in range(15)]
    chosen = [decide(actions, demand, RELEASE).action.name for demand in demands]
    assert len(set(chosen)) >= 3


def test_an_infeasible_budget_names_the_nearest_actions_and_budgets():
    with pytest.raises(InfeasibleBudget, match=r"budget 0\.2: .*s0\.50-f5 with .*0\.36, 0\.37, 0\.38.*0\.36-0\.78") as caught:
        actions_of("hunyuanvideo-1.5", 50, 0.2)
    assert len(caught.value.nearest) == 3
    assert caught.value.feasible[0] == 0.36


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


@pytest.mark.parametrize(
    ("spatial", "temporal", "value"),
    [(1.0, 9 / 31, 0.489), (0.51, 1.0, 0.463), (0.7, 0.55, 0.473)],
    ids=["temporal only", "spatial only", "fixed ratio"],
)
def test_densities_of_the_papers_ablations(spatial, temporal, value):
    shapes = stage_shapes(model("hunyuanvideo-1.5"), (31, 30, 53), (spatial,) * 3 + (1,), (temporal,) * 3 + (1,))
    assert density(shapes, (14, 11, 11, 14)) == pytest.approx(value, abs=5.1e-4)


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
        assert all(a <= b for before, after in pairwise(grids) for a, b in zip(before, after, strict=True))
        assert all(size % patch == 0 for grid in grids for size, patch in zip(grid, geometry.patch, strict=True))
        assert sum(stage.steps for stage in action.stages) == num_steps
        assert 0 < density_executed(geometry, action) <= 1


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 50))
def test_weights_sum_to_one_and_follow_the_larger_demand(spatial, temporal, sharpness):
    w_s, w_t = weights(Demand(spatial, temporal), sharpness)
    assert w_s + w_t == pytest.approx(1.0)
    assert w_s >= w_t or temporal >= spatial


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
