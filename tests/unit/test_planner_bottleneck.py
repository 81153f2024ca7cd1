"""Bottleneck Sampling, as reconstructed: fewer steps of its own, in a U."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from orchestrator.actions import density_executed, forwards_per_stage
from orchestrator.geometry import model
from stages.sampling import sigmas
from tests.spies import SpyModel
from tests.unit.planner_runs import draws, made, refusals, scheduled, watched

GRIDS = [(2, 16, 16), (2, 12, 12), (2, 16, 16)]
SHIFTS = [3.0, 3.0 * 5 / 7, 3.0 * 9 / 7]


def test_thirty_of_fifty_steps_on_hunyuanvideo() -> None:
    action = scheduled("bottleneck", "hunyuanvideo")
    assert forwards_per_stage([stage.steps for stage in action.stages]) == (6, 18, 6)
    assert [stage.shift for stage in action.stages] == pytest.approx([7, 5, 9])
    assert [stage.grid for stage in action.stages] == [(32, 90, 160), (32, 66, 120), (32, 90, 160)]
    small = 66 * 120 / (90 * 160)
    assert density_executed(model("hunyuanvideo"), action, 50) == pytest.approx((12 + 18 * small) / 50)


@pytest.mark.parametrize(("steps", "forwards"), [(None, (4, 10, 4)), (20, (4, 12, 4)), (12, (2, 8, 2))])
def test_its_steps_are_a_share_of_the_arms_or_as_set(steps: int | None, forwards: tuple[int, ...]) -> None:
    planner = made("bottleneck", 30, steps=steps)
    action = planner.decide(None).action
    assert forwards_per_stage([stage.steps for stage in action.stages]) == forwards
    assert planner.task.num_steps == sum(forwards)
    cells = [stage.grid[1] * stage.grid[2] for stage in action.stages]
    assert action.density == pytest.approx(sum(c * s.steps for c, s in zip(cells, action.stages, strict=True)) / cells[0] / 30)


def test_each_stage_starts_where_its_own_schedule_has_that_step() -> None:
    spy = SpyModel()
    down, up = watched(made("bottleneck", 20, steps=10), spy)
    stage_of = [0] * 2 + [1] * 6 + [2] * 2
    assert [level.sigma for level in spy.levels] == [float(sigmas(10, SHIFTS[stage_of[k]])[k]) for k in range(10)]
    assert spy.grids == [GRIDS[k] for k in stage_of]
    for passage, step, target in ((down, 1, 1), (up, 7, 2)):
        assert torch.allclose(passage.clean, passage.x - float(sigmas(10, SHIFTS[target - 1])[step]) * passage.v, atol=1e-6)
        sigma = float(sigmas(10, SHIFTS[target])[step + 1])
        clean = F.interpolate(passage.clean, size=GRIDS[target], mode="trilinear", align_corners=False)
        assert torch.allclose(passage.after, (1 - sigma) * clean + sigma * draws(GRIDS)[target], atol=1e-6)


def test_a_shift_that_rises_rewinds_to_more_noise_than_there_was() -> None:
    spy = SpyModel()
    _, up = watched(made("bottleneck", 50), spy)
    assert up.sigma > spy.levels[23].sigma


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": [1, 0.5]}, "the last 1"),
        ({"rates": [1, 0.5, 0.75, 1]}, "4 rates need 3 changes"),
        ({"rates": [1, 0.5, 0.75, 1], "step_rates": [0.2, 0.4, 0.8]}, "give shifts for other than 3 rates"),
        ({"rates": [0.75, 1], "step_rates": [0.5]}, "give shifts for other than 3 rates"),
        ({"shifts": [7, 5]}, "of 3 rates there must be 3"),
        ({"steps": 3}, r"its own 3 of the arm's 50 steps \(setting steps\)"),
        ({"steps": 60}, "steps is 60, and the arm's steps are 50"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert refusals("bottleneck", **settings) == ""


def test_a_default_that_does_not_do_is_told_as_the_methods_own_number() -> None:
    told = refusals("bottleneck", 8)
    assert told.startswith("with its own 5 of the arm's 8 steps (setting steps) its grids would change in step 1, 4")


def test_a_step_distilled_model_takes_all_its_steps() -> None:
    name = "hunyuanvideo-1.5-i2v-step-distilled"
    assert sum(stage.steps for stage in scheduled("bottleneck", name, 12).stages) == 12
    assert sum(stage.steps for stage in scheduled("bottleneck", name, 12, steps=10).stages) == 10
    assert refusals("bottleneck", 12, name) == ""
