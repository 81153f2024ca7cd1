"""Jenga's progressive resolution: its published lists, and the level that its clean estimate goes by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from orchestrator.actions import forwards_per_stage
from stages.sampling import sigmas
from tests.spies import SpyModel
from tests.unit.planner_runs import draws, made, refusals, scheduled, watched

GRIDS = [(2, 12, 12), (2, 16, 16)]
SHIFTS = 3.0, 3.0 * 9 / 7


@pytest.mark.parametrize(
    ("preset", "forwards", "shifts", "rates"),
    [("turbo", (25, 25), (7, 9), (66 / 90, 1)), ("3-stage", (15, 10, 25), (7, 9, 11), (44 / 90, 66 / 90, 1))],
)
def test_the_published_presets_on_hunyuanvideo(preset: str, forwards: Any, shifts: Any, rates: Any) -> None:
    stages = scheduled("jenga-prores", "hunyuanvideo", preset=preset).stages
    assert forwards_per_stage([stage.steps for stage in stages]) == forwards
    assert tuple(stage.shift for stage in stages) == pytest.approx(shifts)
    assert [stage.grid[1] / 90 for stage in stages] == pytest.approx(rates)
    assert {stage.grid[0] for stage in stages} == {32}


def test_a_model_with_another_shift_keeps_the_ratio_of_the_stages() -> None:
    assert [stage.shift for stage in made("jenga-prores").decide(None).action.stages] == pytest.approx(SHIFTS)


@pytest.mark.parametrize(("which", "shift"), [("new", SHIFTS[1]), ("old", SHIFTS[0])])
def test_the_clean_estimate_goes_by_the_new_schedules_level_as_released(which: str, shift: float) -> None:
    (passage,) = watched(made("jenga-prores", clean_sigma=which), SpyModel())
    assert torch.allclose(passage.clean, passage.x - float(sigmas(10, shift)[4]) * passage.v, atol=1e-6)


def test_it_comes_back_at_the_next_steps_level_under_fresh_noise() -> None:
    model = SpyModel()
    (passage,) = watched(made("jenga-prores"), model)
    sigma = float(sigmas(10, SHIFTS[1])[5])
    assert [level.sigma for level in model.levels] == [float(sigmas(10, SHIFTS[k > 4])[k]) for k in range(10)]
    clean = F.interpolate(passage.clean, size=GRIDS[1], mode="trilinear", align_corners=False)
    assert torch.allclose(passage.after, (1 - sigma) * clean + sigma * draws(GRIDS)[1], atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": [0.5, 0.75]}, "the last 1, which is what is decoded"),
        ({"rates": [0.5, 0.75, 1], "preset": "turbo"}, "of 3 rates there must be 3"),
        ({"step_rates": [0.5, 0.9]}, "the last must be 1"),
        ({"step_rates": [0.0, 1]}, "must rise, above 0 and below 1"),
        ({"rates": [0.25, 0.5, 0.75, 1], "step_rates": [0.2, 0.4, 0.6, 1]}, "give shifts for other than 2 or 3 rates"),
        ({"shifts": [7]}, "of 2 rates there must be 2"),
        ({"text_boost": 0.5}, "wan2.1-1.3b attends to its text by itself.*leave it 0"),
        ({"preset": "flash"}, "turbo"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert refusals("jenga-prores", **settings) == ""


def test_the_bias_on_text_keys_is_refused_where_text_and_image_attend_together() -> None:
    assert "kernels without a bias on keys" in refusals("jenga-prores", model="hunyuanvideo", text_boost=0.5)


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_too_few_steps_are_refused_with_what_would_do(num_steps: int) -> None:
    assert "Take more steps, fewer rates, or planner full" in refusals("jenga-prores", num_steps)
    assert refusals("jenga-prores", 4) == ""
