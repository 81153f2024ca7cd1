"""Tokens of two grids at once, shared over any number of ranks; a mixed stage of a clip on two."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Grid, VideoShape
from parallel.groups import Groups
from stages.denoise import Boundary, run_stages, start
from stages.mixed import Mixed, Regions
from stages.models.base import Condition
from stages.planners import make_planner
from stages.resize import nested_axes
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang
from tests.dist.joint_runs import LEVEL, attach, noise, resident
from tests.dist.test_vgdfr_ranks import FAMILIES, GRID, WIDTHS, packed
from tests.dist.test_wan import Case, condition

SHAPE = VideoShape(9, 64, 96)


def mixed_on(own: Any, grid: Grid = GRID) -> Mixed:
    lying = Regions(2, grid, own.geometry.patch)
    return lying.mixed(noise(*lying.grid, seed=2), lying.num_whole(0) // 2 + 1)


def velocity(own: Any, given: dict[str, Any], mixed: Mixed | None) -> Tensor:
    placed = own.place(Condition.unpack(given), nested_axes((GRID,))[0], "index")
    x = noise(1, own.geometry.latent_channels, *GRID, seed=1)
    found: Tensor = own.denoise(x, LEVEL, dataclasses.replace(placed, mixed=mixed))
    return found


def velocities(groups: Groups, name: str, folder: str, given: dict[str, Any]) -> list[Tensor]:
    own, found = resident(name, folder), []
    mixed = mixed_on(own)
    for width in WIDTHS:
        attach(groups, own, width)
        found.append(velocity(own, given, mixed))
    own.attach(None, None)
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_every_width_has_the_tokens_of_one_rank(gang: Gang, name: str) -> None:
    folder, given = str(checkpoint(name)), packed(name)
    own = resident(name, folder)
    expected = velocity(own, given, mixed_on(own))
    assert (expected - velocity(own, given, None)).abs().max() > 1e-4
    for of_rank in gang.run(velocities, name, folder, given):
        for of_width in of_rank:
            torch.testing.assert_close(of_width, expected, atol=1e-5, rtol=0)


def clip(groups: Groups | None, folder: str, given: dict[str, Any], width: int) -> Tensor:
    own = resident("wan-mini", folder)
    planner = make_planner("fresco", own.geometry, SHAPE, 8, None, DvgConfig(), settings={"steps": 8})
    if groups is not None:
        attach(groups, own, width)
    boundary, _ = run_stages(own, planner, start(own, planner, Condition.unpack(given), 7), 3)
    own.attach(None, None)
    return boundary.x.cpu()


def test_a_whole_clip_is_the_same_on_two_ranks(gang: Gang) -> None:
    folder, given = str(checkpoint("wan-mini")), condition(Case("wan-mini", is_guided=True)).pack()
    expected = clip(None, folder, given, 1)
    for found in gang.run(clip, folder, given, 2):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_a_boundary_travels_with_its_mixture(gang: Gang) -> None:
    """From a mixed stage's boundary on, as a pod that never saw the sketch goes on."""
    folder, given = str(checkpoint("wan-mini")), condition(Case("wan-mini", is_guided=True))
    own = resident("wan-mini", folder)
    planner = make_planner("fresco", own.geometry, SHAPE, 8, None, DvgConfig(), settings={"steps": 8})
    boundary, _ = run_stages(own, planner, start(own, planner, given, 7), 1)
    expected = run_stages(own, planner, boundary, 3)[0].x
    for found in gang.run(rest, folder, boundary.pack()):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def rest(groups: Groups, folder: str, given: dict[str, Any]) -> Tensor:
    own = resident("wan-mini", folder)
    planner = make_planner("fresco", own.geometry, SHAPE, 8, None, DvgConfig(), settings={"steps": 8})
    attach(groups, own, 2)
    boundary, _ = run_stages(own, planner, Boundary.unpack(given), 3)
    own.attach(None, None)
    return boundary.x.cpu()
