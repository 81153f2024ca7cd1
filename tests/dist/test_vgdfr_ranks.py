"""After VGDFR's compression: layers that are told the frames' places, and the rest of a clip, on any number of ranks."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator import vgdfr
from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Decision, Grid, Merged, VideoShape
from parallel.groups import Groups
from stages.denoise import Boundary, run_stages
from stages.models.base import Condition, Positions
from stages.planners import make_planner
from stages.resize import nested_axes
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import LEVEL, attach, hunyuan15_condition, hunyuan_condition, noise, resident
from tests.dist.test_wan import Case, condition

WIDTHS = (1, 2, 4)
GRID: Grid = (3, 6, 10)
SHAPE = VideoShape(25, 48, 80)
FAMILIES = ("wan-mini", "hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5")
TOLD = Positions((0, 1, 5), frozenset({1}))


@functools.cache
def packed(name: str) -> dict[str, Any]:
    if name == "wan-mini":
        return condition(Case("wan-mini", is_guided=True)).pack()
    return (hunyuan15_condition if "1.5" in name else hunyuan_condition)(name, 5, GRID).pack()


def velocity(own: Any, given: dict[str, Any], told: Positions | None = TOLD) -> Tensor:
    placed = own.place(Condition.unpack(given), nested_axes((GRID,))[0], "index")
    x = noise(1, own.geometry.latent_channels, *GRID, seed=1)
    found: Tensor = own.denoise(x, LEVEL, dataclasses.replace(placed, positions=told))
    return found


def velocities(groups: Groups, name: str, folder: str, given: dict[str, Any]) -> list[Tensor]:
    own, found = resident(name, folder), []
    for width in WIDTHS:
        attach(groups, own, width)
        found.append(velocity(own, given))
    own.attach(None, None)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_width_rotates_as_one_rank(gang: Gang, name: str) -> None:
    folder, given = str(checkpoint(name)), packed(name)
    own = resident(name, folder)
    expected = velocity(own, given)
    assert (expected - velocity(own, given, None)).abs().max() > 1e-4
    for of_rank in gang.run(velocities, name, folder, given):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


def rest(groups: Groups | None, folder: str, given: dict[str, Any], width: int) -> Tensor:
    """The end of a clip whose compression is done."""
    own = resident("wan-mini", folder)
    settings = {"before_compression_steps": 2, "global_layers": [1]}
    planner = make_planner("vgdfr", own.geometry, SHAPE, 6, None, DvgConfig(), settings=settings)
    if groups is not None:
        attach(groups, own, width)
    boundary, _ = run_stages(own, planner, Boundary.unpack(given), 2)
    own.attach(None, None)
    return boundary.x.cpu()


def test_the_stage_after_the_compression_is_the_same_on_two_ranks(gang: Gang) -> None:
    folder = str(checkpoint("wan-mini"))
    own, merged = resident("wan-mini", folder), Merged(25, (1,), ())
    action = vgdfr.schedule(own.geometry, SHAPE, 6, 2, 6)
    grid = action.stages[1].grid
    clip = condition(Case("wan-mini", is_guided=True))
    boundary = Boundary(noise(1, own.geometry.latent_channels, *grid, seed=1), 2, 1, Decision(action, "", merged=merged), clip, 7)
    expected = rest(None, folder, boundary.pack(), 1)
    assert expected.shape[2:] == grid
    for found in gang.run(rest, folder, boundary.pack(), 2):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
