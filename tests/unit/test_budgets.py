"""Budgets as density, speedup or GPU-seconds, and the actions that meet them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import DvgConfig, InfeasibleBudget, action_list, first_stage, full_action, uniform_action
from orchestrator.arms import Arm, item_key
from orchestrator.budgets import InfeasibleTarget, Target, actions_for, density_for, parse_target, uniform_density_for
from orchestrator.cost import CostModel, ForwardCost, denoise_s, full_s, uncalibrated
from orchestrator.geometry import model
from orchestrator.types import Action, Stage
from tests.arms import ARM

CONFIG = DvgConfig()
H200 = "NVIDIA H200"
MODELS = ("wan2.1-14b", "hunyuanvideo", "hunyuanvideo-1.5")
QUADRATIC = CostModel(label="calibrated", device="made up", forwards=(ForwardCost(fixed_s=0.01, token_s=4e-5, token2_s=2e-9),))


def actions_of(
    name: str, target: Target, config: DvgConfig = CONFIG, steps: int | None = None
) -> tuple[Stage, tuple[Action, ...]]:
    geometry = model(name)
    return actions_for(
        geometry, geometry.default_shape, steps or geometry.default_steps, target, config, uncalibrated(geometry, H200)
    )


def seconds_of(name: str, actions: tuple[Action, ...], cost: CostModel) -> list[float]:
    return [denoise_s(model(name), action, cost) for action in actions]


@given(st.sampled_from(MODELS), st.floats(1.5, 3.2))
@settings(max_examples=15, deadline=None)
def test_every_action_of_a_speedup_is_predicted_to_be_that_much_faster_under_one_stage_1(name: str, speedup: float) -> None:
    geometry = model(name)
    cost = uncalibrated(geometry, H200)
    first, actions = actions_of(name, Target(kind="speedup", value=speedup))
    whole_s = full_s(geometry, geometry.default_shape, geometry.default_steps, cost)
    assert all(s == pytest.approx(whole_s / speedup, rel=CONFIG.cost_tolerance + 1e-6) for s in seconds_of(name, actions, cost))
    assert {action.stages[0] for action in actions} == {first}
    assert len({action.stages for action in actions}) == len(actions)


@given(st.sampled_from(MODELS), st.floats(1.7, 3.0))
@settings(max_examples=12, deadline=None)
def test_stage_1_is_that_of_the_density_the_actions_have(name: str, speedup: float) -> None:
    geometry, target = model(name), Target(kind="speedup", value=speedup)
    task = (geometry, geometry.default_shape, geometry.default_steps)
    cost = uncalibrated(geometry, H200)
    first, actions = actions_for(*task, target, CONFIG, cost)
    b = density_for(*task, target, CONFIG, cost)
    assert first == first_stage(*task, b, CONFIG)
    mean = sum(action.density for action in actions) / len(actions)
    assert abs(mean - b) <= CONFIG.tolerance + 1e-9


@given(st.sampled_from(MODELS), st.floats(1.5, 3.2))
@settings(max_examples=10, deadline=None)
def test_seconds_and_the_speedup_they_mean_give_the_same_actions(name: str, speedup: float) -> None:
    geometry = model(name)
    whole_s = full_s(geometry, geometry.default_shape, geometry.default_steps, uncalibrated(geometry, H200))
    by_speedup = actions_of(name, Target(kind="speedup", value=speedup))
    by_seconds = actions_of(name, Target(kind="gpu_seconds", value=whole_s / speedup))
    assert {a.name for a in by_speedup[1]} == {a.name for a in by_seconds[1]}


@given(st.sampled_from(MODELS), st.integers(40, 75))
@settings(max_examples=10, deadline=None)
def test_a_density_gives_the_released_list_whatever_the_cost(name: str, percent: int) -> None:
    geometry, target = model(name), Target(value=percent / 100)
    task = (geometry, geometry.default_shape, geometry.default_steps)
    expected = first_stage(*task, percent / 100, CONFIG), action_list(*task, percent / 100, CONFIG)
    assert actions_for(*task, target, CONFIG, None) == actions_for(*task, target, CONFIG, QUADRATIC) == expected
    assert density_for(*task, target, CONFIG, None) == percent / 100


def test_the_list_of_a_made_up_calibration_is_the_one_computed_independently() -> None:
    geometry = model("wan2.1-14b")
    target = Target(kind="speedup", value=2.5)
    task = (geometry, geometry.default_shape, 40)
    first, actions = actions_for(*task, target, CONFIG, QUADRATIC)
    assert density_for(*task, target, CONFIG, QUADRATIC) == 0.49
    assert first.grid == (8, 30, 52)
    assert len(actions) == 13
    assert [action.name for action in actions[:5]] == ["s0.50-f13", "s0.60-f12", "s0.70-f11", "s0.80-f11", "s1.00-f9"]
    assert full_s(*task, QUADRATIC) == pytest.approx(40 * (0.01 + 4e-5 * 32_760 + 2e-9 * 32_760**2))


def test_one_sided_never_exceeds_the_seconds_asked_for() -> None:
    config = DvgConfig(one_sided=True)
    geometry = model("hunyuanvideo")
    cost = uncalibrated(geometry, H200)
    _, actions = actions_of("hunyuanvideo", Target(kind="gpu_seconds", value=400.0), config)
    assert max(seconds_of("hunyuanvideo", actions, cost)) <= 400.0
    _, both = actions_of("hunyuanvideo", Target(kind="gpu_seconds", value=400.0))
    assert max(seconds_of("hunyuanvideo", both, cost)) > 400.0


@pytest.mark.parametrize("target", [Target(kind="speedup", value=1), Target(kind="gpu_seconds", value=1e9)])
def test_what_the_full_run_meets_is_the_full_run(target: Target) -> None:
    geometry = model("hunyuanvideo")
    first, actions = actions_of("hunyuanvideo", target)
    assert actions == (full_action(geometry, geometry.default_shape, geometry.default_steps),)
    assert first == actions[0].stages[0]


def test_a_speedup_beyond_reach_is_refused_with_what_can_be_had() -> None:
    with pytest.raises(InfeasibleTarget, match=r"speedup=9: .*uncalibrated, NVIDIA H200.* 4% .*Nearest speedup: 3\.") as caught:
        actions_of("hunyuanvideo", Target(kind="speedup", value=9))
    least, most = caught.value.possible
    assert 1 < least < 2 < 3 < most < 4
    assert len(set(caught.value.nearest)) == len(caught.value.nearest) == 3
    assert max(caught.value.nearest) == most
    actions_of("hunyuanvideo", Target(kind="speedup", value=caught.value.nearest[0]))


def test_seconds_below_reach_are_refused_with_a_hint() -> None:
    with pytest.raises(InfeasibleTarget, match=r"gpu_seconds=1: .*fewer steps"):
        actions_of("hunyuanvideo", Target(kind="gpu_seconds", value=1))


def test_a_speedup_without_a_cost_model_is_refused() -> None:
    geometry = model("wan-mini")
    with pytest.raises(ValueError, match="speedup=2 needs a cost model"):
        actions_for(geometry, geometry.default_shape, 30, Target(kind="speedup", value=2), CONFIG, None)


@pytest.mark.parametrize("planner", ["temporal-only", "spatial-only"])
def test_a_uniform_planner_takes_the_density_that_costs_as_asked(planner: str) -> None:
    geometry = model("hunyuanvideo")
    task, cost = (geometry, geometry.default_shape, 50), uncalibrated(geometry, H200)
    b = uniform_density_for(planner, *task, Target(kind="speedup", value=2.0), CONFIG, cost)
    action = uniform_action(planner, *task, b, CONFIG)
    assert full_s(*task, cost) / denoise_s(geometry, action, cost) == pytest.approx(2.0, rel=0.041)
    with pytest.raises(InfeasibleTarget, match="speedup=9"):
        uniform_density_for(planner, *task, Target(kind="speedup", value=9), CONFIG, cost)


@pytest.mark.parametrize(
    ("written", "kind", "value"),
    [
        (0.5, "density", 0.5),
        (1, "density", 1.0),
        ("0.5", "density", 0.5),
        ("density=0.7", "density", 0.7),
        ("speedup=4", "speedup", 4.0),
        (" gpu_seconds = 120 ", "gpu_seconds", 120.0),
        ({"speedup": 4}, "speedup", 4.0),
        ({"kind": "gpu_seconds", "value": 120}, "gpu_seconds", 120.0),
        (Target(kind="speedup", value=2), "speedup", 2.0),
    ],
)
def test_a_budget_is_read_in_every_form(written: object, kind: str, value: float) -> None:
    target = parse_target(written)
    assert (target.kind, target.value) == (kind, value)
    assert parse_target(target.model_dump()) == parse_target(str(target)) == target


@pytest.mark.parametrize(
    ("written", "words"),
    [
        (1.5, r"budget must be in \(0, 1\], got 1.5"),
        (0, r"budget must be in \(0, 1\], got 0"),
        ("speedup=0.5", "speedup must be at least 1, got 0.5"),
        ("speedup=inf", "speedup must be at least 1, got inf"),
        ("gpu_seconds=-3", "gpu_seconds must be above 0, got -3"),
        ("gpu_seconds=nan", "gpu_seconds must be above 0, got nan"),
        ("sped=4", "'sped' is not known.*speedup=3"),
        ("much", "'much' is not a number.*gpu_seconds=120"),
        (True, "True is not a number"),
        ([0.5], "is not a number"),
        ({"speedup": 4, "gpu_seconds": 3}, "is not a number"),
    ],
)
def test_a_budget_that_cannot_be_read_names_the_rule(written: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_target(written)


def arm(**changes: object) -> Arm:
    return ARM.model_copy(update=changes)


def test_the_key_of_an_item_heeds_the_cost_only_where_it_chooses_the_actions() -> None:
    other = QUADRATIC.model_copy(update={"label": "uncalibrated"})
    speedup = Target(kind="speedup", value=2)
    assert item_key(arm(cost=QUADRATIC), "p", 0) == item_key(arm(cost=other), "p", 0) == item_key(arm(), "p", 0)
    assert item_key(arm(cost=QUADRATIC, target=speedup), "p", 0) != item_key(arm(cost=other, target=speedup), "p", 0)
    assert item_key(arm(cost=QUADRATIC, target=speedup), "p", 0) != item_key(arm(cost=QUADRATIC), "p", 0)


def test_an_infeasible_density_is_still_told_as_such() -> None:
    with pytest.raises(InfeasibleBudget, match="Nearest feasible budgets"):
        actions_of("hunyuanvideo", Target(value=0.9))
