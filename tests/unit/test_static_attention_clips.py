"""Re-ttention, Sparse-vDiT and FreeLong over clips of the embedded model: from settings, through DVG's stages, as counted."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import pytest
import torch

from orchestrator.arms import Arm
from orchestrator.dvg_config import DvgConfig
from orchestrator.flops import attention_share, forward_tflops
from orchestrator.resolve import resolve_arm
from orchestrator.types import Stage, VideoShape
from stages.accelerators import makers
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Condition, Request, load
from stages.planners import make_planner

SHAPE = VideoShape(25, 64, 64, 16)
"""7 latent frames of 4 x 4 tokens."""
GRID = (7, 8, 8)
WINDOW = 4
SETTINGS: Mapping[str, dict[str, Any]] = {
    "re-ttention": {"sparsity": 0.7, "block": 16, "dense_steps": 0.0, "interval": 3},
    "sparse-vdit": {"block": 16, "heads": [["diagonal:0.5", "multi-diagonal:0.1", "skip", "stripe:0.3", *["full"] * 4]] * 7},
    "freelong": {"window": WINDOW},
}
NEUTRAL: Mapping[str, dict[str, Any]] = {"re-ttention": {"sparsity": 0}, "sparse-vdit": {"balance": 0}, "freelong": {}}


@functools.cache
def model() -> Any:
    return load("wan-mini", None)


@functools.cache
def condition() -> Condition:
    found: Condition = model().encode(Request("a large red circle stays still on a plain background", SHAPE, 2.0))
    return found


def arm(planner: str, steps: int, accelerators: Mapping[str, Any]) -> Arm:
    mistakes: list[str] = []
    size = {"frames": SHAPE.num_frames, "height": SHAPE.height, "width": SHAPE.width, "steps": steps}
    budget = {"budget": 0.5} if planner == "dvg" else {}
    asked: dict[str, Any] = {"model": "wan-mini", "planner": planner, **size, **budget}
    if accelerators:
        asked["accelerators"] = [dict(accelerators)]
    found = resolve_arm("own", asked, mistakes)
    assert found is not None, mistakes
    return found


def run(planner: str, steps: int, accelerators: Mapping[str, Any], boundary: Boundary | None = None) -> list[Boundary]:
    """Every boundary of a clip, or those after ``boundary``."""
    own = arm(planner, steps, accelerators)
    budget, config = (own.budget, DvgConfig(tolerance=0.3)) if planner == "dvg" else (None, own.dvg)
    made = makers(own, model().geometry)
    plan = make_planner(planner, model().geometry, SHAPE, steps, budget, config, accelerators=made)
    found = [boundary or start(model(), plan, condition(), 3)]
    while (decision := found[-1].decision) is None or found[-1].stage < len(decision.action.stages):
        found.append(run_stages(model(), plan, found[-1], found[-1].stage + 1)[0])
    return found


@functools.cache
def plain(planner: str, steps: int) -> Boundary:
    return run(planner, steps, {})[-1]


@functools.cache
def staged(name: str) -> list[Boundary]:
    """All boundaries of a clip of DVG."""
    return run("dvg", 9, {name: SETTINGS[name]})


def forwards(boundary: Boundary) -> list[tuple[Stage, range]]:
    """Stages of a clip, and the steps whose forwards run there: a transition's too."""
    assert boundary.decision is not None
    stages = boundary.decision.action.stages
    ends = [sum(stage.steps for stage in stages[: num + 1]) + (num < len(stages) - 1) for num in range(len(stages))]
    return [(stage, range(*span)) for stage, span in zip(stages, itertools.pairwise((0, *ends)), strict=True)]


@pytest.mark.parametrize("name", SETTINGS)
def test_with_nothing_left_out_a_clip_is_the_same_bit_for_bit(name: str) -> None:
    found = run("full", 3, {name: NEUTRAL[name]})[-1]
    assert torch.equal(found.x, plain("full", 3).x)
    assert found.past.tflops == pytest.approx(plain("full", 3).past.tflops)


@pytest.mark.parametrize("name", SETTINGS)
def test_operations_are_those_of_the_pairs_that_were_attended(name: str) -> None:
    found = run("full", 4, {name: SETTINGS[name]})[-1]
    assert not torch.equal(found.x, plain("full", 4).x)
    geometry = model().geometry
    share, whole = attention_share(geometry, GRID), forward_tflops(geometry, GRID)
    assert [row.step for row in found.past.attended] == [0, 1, 2, 3]
    kept = [1 - row.sparsity for row in found.past.attended]
    if name == "re-ttention":  # a full step finds what the pattern does too
        kept = [one + min(kept) if one == 1 else one for one in kept]
        assert max(kept) > 1 > min(kept)
    expected = sum(2 * whole * (1 - share + one * share) for one in kept)
    assert found.past.tflops == pytest.approx(expected)
    if name == "freelong":
        assert [row.sparsity for row in found.past.attended] == pytest.approx([-WINDOW / 7] * 4)
        assert found.past.tflops > plain("full", 4).past.tflops
    else:
        assert found.past.tflops < plain("full", 4).past.tflops


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_of_one_stage_is_used_in_the_next(name: str) -> None:
    """Run on from a boundary that was packed, by another planner object, the last stage is the same."""
    through = staged(name)
    assert len(forwards(through[-1])) > 1
    apart = run("dvg", 9, {name: SETTINGS[name]}, Boundary.unpack(through[-2].pack()))[-1]
    assert torch.equal(through[-1].x, apart.x)
    assert through[-1].past.tflops == pytest.approx(apart.past.tflops)
    kept = [[(row.step, row.sparsity, row.recall) for row in found.past.attended] for found in (through[-1], apart)]
    assert kept[0] == kept[1]


def test_in_stages_within_the_window_freelong_costs_nothing() -> None:
    found = staged("freelong")[-1]
    sparsity = {row.step: row.sparsity for row in found.past.attended}
    assert {stage.grid[0] <= WINDOW for stage, _ in forwards(found)} == {True, False}, "DVG compresses time"
    for stage, steps in forwards(found):
        assert {sparsity[step] < 0 for step in steps} == {stage.grid[0] > WINDOW}


def test_the_first_step_of_every_stage_is_measured_by_re_ttention() -> None:
    found = staged("re-ttention")[-1]
    sparsity = {row.step: row.sparsity for row in found.past.attended}
    large = [steps for stage, steps in forwards(found) if math.prod(stage.grid) > 4 * 2 * 16]
    assert len(large) > 1, "beside stages of so few blocks that all are kept"
    for steps in large:
        assert [sparsity[step] <= 0 for step in steps] == [(step - steps[0]) % 3 == 0 for step in steps]
