"""From demands to weights to an action, against independently computed values."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import (
    DvgConfig,
    action_list,
    choose,
    decide,
    weights,
)
from orchestrator.geometry import model
from orchestrator.types import Demand

RELEASE = DvgConfig()


def actions_of(name, num_steps, budget, config=RELEASE):
    geometry = model(name)
    return action_list(geometry, geometry.default_shape, num_steps, budget, config)


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


def test_the_choice_on_wan_mini_reaches_at_least_three_actions():
    actions = actions_of("wan-mini", 30, 0.5)
    demands = [Demand(s / 20, t / 20) for s in range(15) for t in range(15)]
    chosen = [decide(actions, demand, RELEASE).action.name for demand in demands]
    assert len(set(chosen)) >= 3


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 50))
def test_weights_sum_to_one_and_follow_the_larger_demand(spatial, temporal, sharpness):
    w_s, w_t = weights(Demand(spatial, temporal), sharpness)
    assert w_s + w_t == pytest.approx(1.0)
    assert w_s >= w_t or temporal >= spatial


WAN_MINI = DvgConfig.for_model(model("wan-mini"), {"matching": "fitted", "spatial_demand": "sobel"})


def test_a_fitted_rule_scores_each_action_by_its_quadratic():
    actions = actions_of("wan-mini", 30, 0.5, WAN_MINI)
    mean, deviation, *weights_of = WAN_MINI.fitted

    def score(action, demand):
        space, time = (action.s2**2 - 0.25) / 0.75, (action.f2 - 5) / 3
        base, slope = (
            part[0] * space + part[1] * time + part[2] * space**2 + part[3] * time**2 for part in (weights_of[:4], weights_of[4:])
        )
        return base + slope * min(max((demand - mean) / deviation, -2.5), 2.5)

    for demand in (0.0, 0.1, 0.2, 0.3, 0.5, 1.0):
        chosen = decide(actions, Demand(demand, 0.5), WAN_MINI).action
        assert score(chosen, demand) == pytest.approx(max(score(action, demand) for action in actions))


def test_a_fitted_rule_gives_more_detail_more_space():
    actions = actions_of("wan-mini", 30, 0.5, WAN_MINI)
    chosen = [decide(actions, Demand(detail / 20, 0.5), WAN_MINI).action.s2 for detail in range(21)]
    assert chosen == sorted(chosen)
    assert len(set(chosen)) > 1


def test_fitted_matching_needs_a_rule():
    with pytest.raises(ValueError, match="no rule was fitted"):
        DvgConfig(matching="fitted")
    with pytest.raises(ValueError, match="it must have 10"):
        DvgConfig(fitted=(1.0, 2.0))
