"""A long video by blocks, its layers in a row over 1, 2 and 4 ranks: the same one."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.denoise import run_stages, start
from stages.models.base import Branch, Condition
from stages.models.embedded import FOLDER
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import hunyuan15_condition, hunyuan_condition
from tests.dist.joint_runs import resident as joint_resident
from tests.dist.test_wan import Case, random, resident
from tests.unit.planner_runs import made_for

CASE = Case("wan-mini", is_guided=True)
LONG = VideoShape(45, 48, 64)
"""12 latent frames."""
SETTINGS: dict[str, dict[str, Any]] = {
    "overlapping": {"block_frames": 3, "overlap_frames": 2, "in_flight": 3},
    "overlapping, one in flight": {"block_frames": 4, "overlap_frames": 1, "in_flight": 1},
    "overlapping, cleanest": {"block_frames": 2, "overlap_frames": 2, "in_flight": 5, "order": "cleanest"},
    "noisiest": {"block_frames": 3, "context_frames": 2, "in_flight": 4},
    "cleanest": {"block_frames": 3, "context_frames": 2, "in_flight": 4, "order": "cleanest"},
    "fewer blocks in flight than ranks": {"block_frames": 5, "context_frames": 5, "in_flight": 1},
}


def clip(groups: Groups, name: str, folder: str, width: int, settings: dict[str, Any], branches: int = 2) -> Any:
    """Its latent, what of it lay on this rank at most, the operations."""
    if groups.rank >= width:
        return None
    model, asked = prepared(name, folder)
    shared = layout(groups, 0, width, branches)
    model.attach(shared, Native())
    planner = made_for(LONG, "dualparal", 5, name, settings, solver="unipc" if name == CASE.name else "euler")
    boundary = start(model, planner, asked, 3)
    legs: list[Any] = []
    make = planner.leg
    planner.leg = lambda *given: legs.append(make(*given)) or legs[0]  # type: ignore[method-assign]
    boundary, _ = run_stages(model, planner, boundary, 1)
    assert model.attached[0] is shared, "it is attached again"
    model.attach(None, None)
    return boundary.x, legs[0].most_bytes, boundary.past.tflops


def prepared(name: str, folder: str) -> tuple[Any, Condition]:
    if name == CASE.name:
        model = resident(name, str(FOLDER))  # of 7 layers, the tiny one has 2
        dim = model.parts.experts[0].weights.config.text_dim
        branches = (Branch({"text": random(1, 6, dim, seed=seed)}, 100) for seed in (1, 2))
        return model, Condition(*branches, 3.0)
    make = hunyuan15_condition if "1.5" in name else hunyuan_condition
    return joint_resident(name, folder), make(name, 7, (12, 6, 8))


@functools.cache
def alone(gang: Gang, name: str, which: str) -> tuple[Tensor, int, float]:
    found: tuple[Tensor, int, float] = gang.run(clip, name, str(checkpoint(name)), 1, SETTINGS[which])[0]
    return found


@pytest.mark.parametrize("width", [2, 4])
@pytest.mark.parametrize("which", SETTINGS)
def test_every_width_makes_the_same_long_video(gang: Gang, which: str, width: int) -> None:
    expected, most_bytes, tflops = alone(gang, CASE.name, which)
    ranks = gang.run(clip, CASE.name, str(checkpoint(CASE.name)), width, SETTINGS[which])[:width]
    for x, own_bytes, own_tflops in ranks:
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
        assert torch.equal(x, ranks[0][0])
        assert own_tflops == tflops
        assert own_bytes < most_bytes or not SETTINGS[which].get("context_frames"), "keys lie where their layers run"


@pytest.mark.parametrize("name", ["hunyuanvideo", "hunyuanvideo-1.5"])
def test_models_with_text_among_the_tokens_too(gang: Gang, name: str) -> None:
    for which in ("noisiest", "overlapping"):
        _compare(gang, name, which)


def _compare(gang: Gang, name: str, which: str) -> None:
    expected, _, _ = alone(gang, name, which)
    for x, _, _ in gang.run(clip, name, str(checkpoint(name)), 2, SETTINGS[which], 1)[:2]:
        torch.testing.assert_close(x, expected, atol=1e-5, rtol=1e-5)
