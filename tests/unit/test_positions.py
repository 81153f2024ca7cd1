"""Layers that rotate by the frames' places in the whole video (VGDFR's dynamic RoPE), in every family."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.base import Boost, StageEvent
from stages.models.base import Positions
from stages.models.layers import per_layer
from tests.unit.test_trunk import LEVEL, Blocks, Parts, noise, placed, resident

FAMILIES = ("wan-mini", "hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5")
GRID: Grid = (3, 4, 6)


def num_layers(name: str) -> int:
    own = resident(name)
    if name == "wan-mini":
        return len(own.parts.experts[0].layers)
    transformer = own.parts.transformer
    return len(transformer._blocks) if "1.5" in name else len(transformer.duals) + len(transformer.singles)


def velocity(name: str, frames: tuple[int, ...] | None, layers: frozenset[int] | None = None) -> Tensor:
    own = resident(name)
    told = None if frames is None else Positions(frames, frozenset(range(num_layers(name))) if layers is None else layers)
    found: Tensor = own.denoise(noise(1, own.geometry.latent_channels, *GRID, seed=3), LEVEL, with_places(name, told))
    return found


def with_places(name: str, told: Positions | None) -> Any:
    return dataclasses.replace(placed(name, GRID), positions=told)


@pytest.mark.parametrize("name", FAMILIES)
def test_frames_at_the_first_places_are_what_every_layer_counts(name: str) -> None:
    assert torch.equal(velocity(name, (0, 1, 2)), velocity(name, None))


@pytest.mark.parametrize("name", FAMILIES)
def test_only_the_distance_between_frames_counts(name: str) -> None:
    plain, moved, spread = (velocity(name, frames) for frames in ((0, 1, 2), (4, 5, 6), (0, 4, 6)))
    if "hunyuan" in name:  # text stands still beside the frames
        assert (moved - plain).abs().max() > 1e-4
    else:
        torch.testing.assert_close(moved, plain, atol=1e-4, rtol=0)
    assert (spread - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", FAMILIES)
def test_each_layer_can_be_told_alone(name: str) -> None:
    plain = velocity(name, None)
    found = [velocity(name, (0, 4, 6), frozenset({index})) for index in range(num_layers(name))]
    assert all((one - plain).abs().max() > 1e-5 for one in found)
    assert all((a - b).abs().max() > 1e-5 for a, b in itertools.pairwise(found))


@pytest.mark.parametrize("by", [Blocks, Parts])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_forward_in_parts_is_told_the_same(name: str, by: type) -> None:
    own, layers = resident(name), frozenset({1})
    expected = velocity(name, (0, 4, 6), layers)
    boost = Boost((by,), StageEvent(GRID, range(4), 4, 0, crosses=False))
    boost.at(0, LEVEL)
    own.accelerate(boost)
    try:
        found = velocity(name, (0, 4, 6), layers)
    finally:
        own.accelerate(None)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_rows_of_a_layer_are_those_of_its_frames_in_the_whole_video() -> None:
    def table(grid: Grid) -> Tensor:
        return torch.arange(float(grid[0] * grid[1] * grid[2])).unsqueeze(1)

    told = Positions((0, 3, 4), frozenset({1}))
    local, whole = per_layer(2, (3, 2, 2), told, table, lambda rows: rows[2:10])
    assert local[:, 0].tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert whole[:, 0].tolist() == [2, 3, 12, 13, 14, 15, 16, 17]


def test_layers_that_rotate_alike_share_one_table() -> None:
    tables = per_layer(
        4, (3, 2, 2), Positions((0, 3, 4), frozenset({1, 3})), lambda grid: torch.zeros(4 * grid[0], 1), torch.clone
    )
    assert tables[0] is tables[2]
    assert tables[1] is tables[3] is not tables[0]
