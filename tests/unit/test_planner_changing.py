"""Changing resolution as LightX2V ships it: where it changes, and at which level it goes on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from orchestrator.actions import forwards_per_stage
from orchestrator.types import Stage
from stages.sampling import sigmas
from tests.spies import SpyModel
from tests.unit.planner_runs import draws, made, refusals, scheduled, watched

GRIDS = [(2, 16, 16), (2, 12, 12), (2, 16, 16)]


def changes(stages: tuple[Stage, ...]) -> list[int]:
    """After how many forwards the grid changes."""
    return list(itertools.accumulate(forwards_per_stage([stage.steps for stage in stages])))[:-1]


@pytest.mark.parametrize(
    ("model", "num_steps", "settings", "expected", "heights"),
    [
        ("wan2.1-14b", 50, {}, [10, 35], [60, 44, 60]),
        ("wan2.1-i2v-14b", 40, {}, [5, 25], [60, 44, 60]),
        ("wan2.1-14b", 50, {"shape": "rising"}, [20], [44, 60]),
        ("wan2.1-14b", 30, {}, [6, 21], [60, 44, 60]),
        ("wan2.1-14b", 50, {"step_rates": [0.1, 0.5]}, [5, 25], [60, 44, 60]),
    ],
)
def test_the_released_changes(model: str, num_steps: int, settings: dict[str, Any], expected: list[int], heights: Any) -> None:
    stages = scheduled("changing-resolution", model, num_steps, **settings).stages
    assert changes(stages) == expected
    assert [stage.grid[1] for stage in stages] == heights
    assert [stage.shift for stage in stages] == [5.0 + k for k in range(len(stages))]


def test_the_latent_comes_back_at_the_level_of_the_step_it_was_at() -> None:
    spy = SpyModel()
    passages = watched(made("changing-resolution"), spy)
    for passage, step, target in zip(passages, (1, 6), (1, 2), strict=True):
        old = float(sigmas(10, 2.0 + target)[step])
        assert passage.sigma == old
        assert torch.allclose(passage.clean, passage.x - old * passage.v, atol=1e-6)
        clean = F.interpolate(passage.clean, size=GRIDS[target], mode="trilinear", align_corners=False)
        assert torch.allclose(passage.after, (1 - old) * clean + old * draws(GRIDS)[target], atol=1e-6)


def test_the_network_is_told_the_next_step_of_the_schedule_that_begins() -> None:
    spy = SpyModel()
    watched(made("changing-resolution"), spy)
    stage_of = [0] * 2 + [1] * 5 + [2] * 3
    assert [level.sigma for level in spy.levels] == [float(sigmas(10, 3.0 + stage_of[k])[k]) for k in range(10)]
    assert spy.grids == [GRIDS[k] for k in stage_of]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rates": [0.75, 0.5]}, "the last 1"),
        ({"rates": [0.25, 0.5, 0.75, 1]}, "4 rates need 3 changes"),
        ({"step_rates": [0.7, 0.2]}, "must rise"),
        ({"shape": "v"}, "rising"),
    ],
)
def test_what_it_cannot_do_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert refusals("changing-resolution", **settings) == ""


def test_too_few_steps_are_refused() -> None:
    assert "with 9 steps its grids would change in step 1, 6" in refusals("changing-resolution", 9)
    assert refusals("changing-resolution", 10) == ""
