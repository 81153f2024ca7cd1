"""Video decoded by the ranks of a slice together is the video of one process."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from orchestrator.geometry import model
from parallel.groups import Group, Groups
from parallel.halo import HEIGHT, WIDTH, Borders, strips_of
from parallel.layout import layout
from stages.models import hunyuan15_vae, wan_decoder
from stages.models.base import load
from stages.sampling import initial_noise
from tests.checkpoints import checkpoint
from tests.dist.gang import Gang

WAN, WAN_22, HUNYUAN, HUNYUAN_15 = "wan2.1-1.3b", "wan2.2-ti2v-5b", "hunyuanvideo", "hunyuanvideo-1.5"
CELLS_AT_ONCE = 12
"""Of the latent: a few frames of a strip, so that a clip comes in several runs."""


@functools.cache
def tiny(name: str, folder: str) -> Any:
    """The decoder's half of a tiny checkpoint; a rank keeps it for all tests."""
    return load(name, folder, parts=frozenset({"vae"}))


def noise(name: str, grid: tuple[int, int, int]) -> torch.Tensor:
    return initial_noise(grid, model(name).latent_channels, seed=1) * (0.3 if name == HUNYUAN else 1.0)


@contextmanager
def short_runs(name: str) -> Iterator[None]:
    pixels = CELLS_AT_ONCE * math.prod(model(name).vae_stride)
    with mock.patch.object(wan_decoder, "MAX_CHUNK_PIXELS", pixels), mock.patch.object(hunyuan15_vae, "MAX_CHUNK_PIXELS", pixels):
        yield


@torch.inference_mode()
def decoded(
    groups: Groups, name: str, folder: str, grid: tuple[int, int, int], width: int, is_control: bool = False
) -> tuple[torch.Tensor, list[Any]]:
    """The whole video as each rank gets it, and the frames that it yields; all slices of ``width`` are at work."""
    loaded, latent = tiny(name, folder), noise(name, grid)
    local = mock.patch.object(Borders, "slots", return_value=()) if is_control else nullcontext()
    loaded.attach(layout(groups, groups.rank // width * width, width, 1), None)
    with local, short_runs(name):
        runs = list(loaded.decode(latent))
        whole = loaded.pixels(latent)
    loaded.attach(None, None)
    return whole, runs


def alone(name: str, grid: tuple[int, int, int]) -> torch.Tensor:
    video: torch.Tensor = tiny(name, str(checkpoint(name))).pixels(noise(name, grid))
    return video


CASES = [
    pytest.param(WAN, (4, 3, 7), id="wan, columns that do not divide"),
    pytest.param(WAN, (3, 5, 3), id="wan, rows that do not divide"),
    pytest.param(WAN_22, (3, 7, 3), id="wan of stride 16, rows that do not divide"),
    pytest.param(HUNYUAN_15, (5, 5, 2), id="hunyuan 1.5, rows that do not divide"),
    pytest.param(HUNYUAN_15, (8, 2, 3), id="hunyuan 1.5, fewer columns than ranks"),
    pytest.param(HUNYUAN, (17, 2, 3), id="hunyuan, six runs that blend"),
    pytest.param(HUNYUAN, (3, 2, 2), id="hunyuan, a single run"),
]


@pytest.mark.parametrize(("name", "grid"), CASES)
def test_ranks_that_decode_together_make_the_video_of_one(gang: Gang, name: str, grid: tuple[int, int, int]) -> None:
    expected = alone(name, grid)
    assert (expected.abs() < 1).float().mean() > 0.5, "little is clamped, so that much is compared"
    levels = ((expected[0].permute(1, 2, 3, 0) + 1) * 127.5).numpy()
    for width in (2, 4, 1):
        found = gang.run(decoded, name, str(checkpoint(name)), grid, width)
        for rank, (whole, runs) in enumerate(found):
            torch.testing.assert_close(whole, expected, atol=1e-5, rtol=0)
            assert bool(runs) == (rank % width == 0), "the first rank of a slice alone hands out frames"
        frames = found[0][1]
        assert (len(frames) > 1) == (name != HUNYUAN or grid[0] > 4), "what runs hand on to the next matters"
        assert np.abs(np.concatenate(frames) - levels).max() <= 0.5 + 1e-2


@pytest.mark.parametrize(("name", "grid"), [(WAN, (2, 3, 7)), (WAN_22, (2, 7, 3)), (HUNYUAN_15, (2, 5, 2))])
def test_strips_that_know_only_themselves_differ(gang: Gang, name: str, grid: tuple[int, int, int]) -> None:
    found = gang.run(decoded, name, str(checkpoint(name)), grid, 2, True)[0]
    assert (found[0] - alone(name, grid)).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("size", "width", "dim", "counts"),
    [
        ((60, 104), 8, WIDTH, (13,) * 8),
        ((45, 80), 4, WIDTH, (20,) * 4),
        ((104, 60), 8, HEIGHT, (13,) * 8),
        ((16, 16), 2, HEIGHT, (8, 8)),
        ((5, 3), 4, WIDTH, (1, 1, 1, 0)),
        ((1, 1), 2, HEIGHT, (1, 0)),
    ],
)
def test_a_picture_is_cut_where_that_leaves_the_smallest_strips(
    size: tuple[int, int], width: int, dim: int, counts: tuple[int, ...]
) -> None:
    groups = [Group(range(width), rank, None, torch.device("cpu")) for rank in range(width)]
    cut = [strips_of(group, *size) for group in groups]
    assert {(strips.dim, strips.counts) for strips in cut if strips} == {(dim, counts)}
    picture = torch.arange(size[0] * size[1]).view(size)
    assert torch.equal(torch.cat([strips.cut(picture) for strips in cut if strips and strips.has_rows], dim), picture)
    assert strips_of(None, *size) is None
