"""Merged tokens, and steps that are reflected, on 1, 2 and 4 ranks: each has whole windows, and the same video comes of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.accelerators.base import Boost, StageEvent
from stages.models.base import Condition, Placed
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import resident as joint_resident
from tests.dist.method_runs import CASE, beside_text, guided_clip, maker
from tests.dist.test_wan import Case, condition, random, resident

SETTINGS: Mapping[str, dict[str, Any]] = {"tome": {"ratio": 0.5, "window": (2, 2)}, "w2sd": {"steps": 2}}
SHAPE = VideoShape(17, 96, 112)
"""Of 5 x 6 x 7 tokens on wan-mini: nine windows in a frame, and loose tokens."""
GRID: Grid = (3, 12, 10)
"""Of 3 x 6 x 5 tokens by patches of 2 x 2."""
Found = tuple[Tensor, float]
"""The latent, the operations."""


def clip(groups: Groups, name: str, folder: str, width: int, num_branches: int = 1, planner: str = "full") -> Found | None:
    """A guided clip by the first ``width`` ranks."""
    make = functools.partial(maker, name, SETTINGS[name])
    boundary = guided_clip(groups, make, folder, SHAPE, 4, width, num_branches, planner)
    return None if boundary is None else (boundary.x, boundary.past.tflops)


@pytest.mark.parametrize("planner", ["full", "dvg"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_every_width_makes_the_same_video_by_as_many_operations(gang: Gang, name: str, planner: str) -> None:
    """Runs of windows and loose tokens; DVG changes the grid."""
    folder = str(checkpoint(CASE.name))
    expected, tflops = gang.run(clip, name, folder, 1, 1, planner)[0]
    for width, num_branches in ((2, 1), (4, 1), (4, 2)):
        for x, own_tflops in gang.run(clip, name, folder, width, num_branches, planner)[:width]:
            torch.testing.assert_close(x, expected, atol=1e-5, rtol=0)
            assert own_tflops == pytest.approx(tflops)


def velocity(groups: Groups, name: str, folder: str, width: int) -> Found | None:
    """One step with merged tokens, and its operations as a share of the whole's."""
    if groups.rank >= width:
        return None
    own = resident(name, folder) if name.startswith("wan") else joint_resident(name, folder)
    own.attach(layout(groups, 0, width, 1), Native())
    placed = place(own, name)
    boost = Boost((maker("tome", SETTINGS["tome"], own.geometry),), StageEvent(GRID, range(4), 4, 0, False), own.geometry)
    level = NoiseLevel(0.64, 640.0, 512.0)
    boost.at(0, level)
    own.accelerate(boost)
    found: Tensor = own.denoise(placed.pin(random(1, own.geometry.latent_channels, *GRID, seed=1)), level, placed)
    own.accelerate(None)
    own.attach(None, None)
    return found, boost.share


def place(own: Any, name: str) -> Placed:
    if name.startswith("wan"):
        given: Condition = condition(Case(name, is_guided=True))
        return Placed(given, pinned=random(1, own.geometry.latent_channels, 1, *GRID[1:], seed=5))
    return beside_text(own, name, GRID)


@pytest.mark.parametrize("name", ["wan2.2-ti2v-5b", "hunyuanvideo-i2v", "hunyuanvideo-1.5"])
def test_a_clean_first_frame_and_text_among_the_tokens_are_the_same_on_every_width(gang: Gang, name: str) -> None:
    folder = str(checkpoint(name))
    expected, share = gang.run(velocity, name, folder, 1)[0]
    assert share < 1
    for width in (2, 4):
        for found, _ in gang.run(velocity, name, folder, width)[:width]:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
