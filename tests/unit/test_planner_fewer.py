"""Fewer steps: the plain run on a shorter schedule, counted against the arm's."""

from __future__ import annotations

import pytest

from orchestrator.actions import density_executed
from orchestrator.geometry import model
from stages.sampling import sigmas
from tests.spies import SpyModel
from tests.unit.planner_runs import finished, made, refusals, scheduled


@pytest.mark.parametrize(("settings", "steps"), [({}, 11), ({"steps": 20}, 20), ({"share": 0.5}, 25), ({"share": 0.001}, 1)])
def test_a_number_or_a_share_of_the_arms_steps(settings: dict[str, float], steps: int) -> None:
    action = scheduled("fewer-steps", "hunyuanvideo", **settings)
    assert [(stage.grid, stage.steps, stage.shift) for stage in action.stages] == [((32, 90, 160), steps, 7.0)]
    assert action.density == density_executed(model("hunyuanvideo"), action, 50) == steps / 50
    assert action.num_sketched == 0


def test_it_takes_the_whole_schedule_of_that_many_steps() -> None:
    spy, planner = SpyModel(), made("fewer-steps", 10, steps=4)
    finished(spy, planner)
    assert planner.task.num_steps == 4
    assert [level.sigma for level in spy.levels] == [float(level) for level in sigmas(4, 3.0)[:-1]]
    assert planner.decide(None).why == "4 of 10 steps, all on the full grid"


def test_more_steps_than_the_arm_has_are_refused() -> None:
    told = refusals("fewer-steps", 50, steps=60)
    assert "steps is 60, and the arm's steps are 50: take at most those, or raise the arm's" in told
    assert refusals("fewer-steps", 50, steps=50) == ""


def test_a_step_distilled_model_is_cut_only_by_as_much_as_was_asked_for() -> None:
    name = "hunyuanvideo-1.5-i2v-step-distilled"
    assert "0.22 would leave 2 of 8: say how many by steps or share" in refusals("fewer-steps", 8, name)
    assert refusals("fewer-steps", 8, name, steps=4) == refusals("fewer-steps", 8, name, share=0.5) == ""
