"""Tokens of two grids at once: which there are, where they lie, and what every family's transformer makes of them."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.types import Grid
from stages.mixed import Mixed, Regions
from tests.unit.test_trunk import EMBEDDED, GRID, LEVEL, Blocks, Parts, noise, placed, resident, velocity

FAMILIES = ("wan-mini", "wan2.1-i2v-14b", "wan2.2-ti2v-5b", "hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5")
REGIONS = Regions(2, (2, 8, 12), (1, 2, 2))
HD = Regions(2, (32, 90, 160), (1, 2, 2))
ODD = Regions(3, (2, 14, 20), (1, 2, 2))
regions = st.builds(
    Regions,
    st.integers(2, 4),
    st.tuples(st.integers(1, 3), st.integers(4, 9).map(lambda n: 2 * n), st.integers(4, 9).map(lambda n: 2 * n)),
    st.just((1, 2, 2)),
)


def chosen(lying: Regions, num_whole: int, seed: int = 0) -> Mixed:
    return lying.mixed(noise(*lying.grid, seed=seed), num_whole)


def latent(mixed: Mixed, channels: int = 3, seed: int = 1) -> Tensor:
    """A mixed one: coarse cells over all their children, all others of their own."""
    x = noise(1, channels, *mixed.regions.full_grid, seed=seed)
    return torch.where(mixed.cells, mixed.regions.children(mixed.regions.parents(x)), x)


def parts(x: Tensor) -> Tensor:
    _, c, t, h, w = x.shape
    return x.reshape(1, c, t, h // 2, 2, w // 2, 2).permute(0, 2, 3, 5, 1, 4, 6).reshape(1, t * h * w // 4, 4 * c)


def laid(rows: Tensor, grid: Grid) -> Tensor:
    x = rows.reshape(len(rows), *grid, -1, 2, 2).permute(0, 4, 1, 2, 5, 3, 6)
    return x.reshape(len(rows), -1, grid[0], 2 * grid[1], 2 * grid[2])


def test_squares_are_as_many_as_fit_and_the_rest_has_no_coarse_token() -> None:
    assert (HD.tokens, HD.grid, HD.coarse_grid) == ((32, 45, 80), (32, 22, 40), (32, 44, 80))
    assert HD.axes[1][:3] == (1, 3, 5)
    assert HD.axes[1][-1] == 87
    assert HD.num_tokens(0) == 115_200
    assert HD.num_tokens(32 * 22 * 40) == 32 * (22 * 40 + 80)


@given(regions, st.floats(0, 1))
def test_there_are_as_many_tokens_as_asked_for_but_for_half_a_square(lying: Regions, share: float) -> None:
    fewest, most = lying.num_tokens(math.prod(lying.grid)), lying.num_tokens(0)
    asked = round(fewest + share * (most - fewest))
    assert abs(lying.num_tokens(lying.num_whole(asked)) - asked) <= lying.factor**2 / 2
    assert lying.num_whole(0) == math.prod(lying.grid)
    assert lying.num_whole(most + 5) == 0


@given(regions, st.floats(0, 1), st.integers(0, 3))
def test_every_cell_has_one_token_and_a_latent_comes_back_from_its_tokens(lying: Regions, share: float, seed: int) -> None:
    mixed = chosen(lying, round(share * math.prod(lying.grid)), seed)
    x = latent(mixed)
    tokens = mixed.take(x, parts)
    assert tokens.shape[1] == mixed.num_tokens == lying.num_tokens(int(mixed.whole.sum()))
    assert torch.equal(mixed.lay(tokens, laid), x)
    assert torch.equal(lying.unpromoted(x, mixed.num_whole).whole, mixed.whole), "the latent tells by itself"


@given(regions)
def test_the_children_of_a_coarse_cell_are_copies_of_it(lying: Regions) -> None:
    x = noise(1, 2, *lying.coarse_grid, seed=1)
    y, factor = lying.children(x), lying.factor
    assert y.shape[2:] == lying.full_grid
    assert torch.equal(lying.parents(y), x)
    assert torch.equal(y[..., factor - 1, factor - 1], x[..., 0, 0])
    assert torch.equal(y[..., -1, -1], x[..., -1, -1]), "what is left over repeats the last cells"


def test_the_least_urgent_squares_stay_coarse_and_of_equals_the_earlier() -> None:
    lying = Regions(2, (1, 8, 12), (1, 2, 2))
    mixed = lying.mixed(torch.tensor([[[3.0, 0, 1], [2, 1, 5]]]), 2)
    assert mixed.whole.int().tolist() == [[[0, 1, 1], [0, 0, 0]]]


def test_the_mean_of_a_square_is_of_its_own_cells() -> None:
    lying = Regions(2, (1, 10, 8), (1, 2, 2))
    cells = torch.arange(80.0).view(1, 10, 8)
    assert lying.grid == (1, 2, 2)
    assert torch.equal(lying.mean(cells)[0, 1, 0], cells[0, 4:8, :4].mean())


def table(grid: Grid) -> Tensor:
    """Rotations of three frequencies, one for each axis."""
    places = torch.stack(torch.meshgrid(*(torch.arange(float(size)) for size in grid), indexing="ij"), -1).flatten(0, 2)
    angles = places * torch.tensor([1.0, 0.7, 0.3])
    return torch.stack([angles.cos(), angles.sin()], -1)


@pytest.mark.parametrize(("lying", "middle"), [(ODD, (1, 1)), (REGIONS, (0.5, 0.5))])
def test_a_coarse_token_is_at_the_middle_of_its_children(lying: Regions, middle: tuple[float, float]) -> None:
    mixed = chosen(lying, math.prod(lying.grid))
    found = mixed.rotations(table)[mixed.num_tokens - mixed.num_whole :].view(*lying.grid, 3, 2)
    place = torch.tensor([1.0, 0 + middle[0], lying.factor + middle[1]])
    angles = place * torch.tensor([1.0, 0.7, 0.3])
    torch.testing.assert_close(found[1, 0, 1], torch.stack([angles.cos(), angles.sin()], -1))


def test_a_fine_token_is_at_its_own_place_and_frames_are_told() -> None:
    mixed = chosen(REGIONS, 5)
    fine = mixed.rows[0]
    assert torch.equal(mixed.rotations(table)[: len(fine)], table(REGIONS.tokens)[fine])
    per_frame = [int(mixed.whole[0].logical_not().sum()) * 4, int(mixed.whole[0].sum())]
    assert int(mixed.first_frame.sum()) == sum(per_frame)


def forward(name: str, mixed: Mixed | None, grid: Grid = GRID, make: Any = None) -> Tensor:
    return velocity(name, make, grid, dataclasses.replace(placed(name, grid), mixed=mixed))


def lying_on(name: str, grid: Grid = GRID, factor: int = 2) -> Regions:
    return Regions(factor, grid, resident(name).geometry.patch)


@pytest.mark.parametrize("name", FAMILIES)
def test_with_every_square_fine_a_forward_is_the_plain_one(name: str) -> None:
    assert torch.equal(forward(name, chosen(lying_on(name), 0)), forward(name, None))


class Stretched(Mixed):
    """Coarse tokens counted among themselves, as on a grid of their own."""

    def rotations(self, table: Any) -> Tensor:
        found: Tensor = table(self.regions.grid)
        return found


@pytest.mark.parametrize("name", ["wan-mini", "hunyuanvideo", "hunyuanvideo-1.5"])
def test_with_every_square_coarse_a_forward_is_the_small_grids_but_for_places(name: str) -> None:
    grid: Grid = (2, 8, 12)
    lying, own = lying_on(name, grid), resident(name)
    num = math.prod(lying.grid)
    given = placed(name, grid)
    x = noise(1, own.geometry.latent_channels, *lying.coarse_grid, seed=1)
    small = dataclasses.replace(placed(name, lying.coarse_grid), condition=given.condition)

    def seen(x: Tensor, beside: Any) -> Tensor:
        found: Tensor = own.denoise(x, LEVEL, beside)
        return found

    alone, mixed = seen(x, small), chosen(lying, num)
    stretched = Stretched(lying, mixed.whole, num)
    found = seen(lying.children(x), dataclasses.replace(given, mixed=stretched))
    torch.testing.assert_close(found, lying.children(alone), atol=1e-5, rtol=0)
    apart = seen(lying.children(x), dataclasses.replace(given, mixed=mixed))
    assert (apart - found).abs().max() > 1e-4, "their true places are further apart"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_coarse_square_moves_as_one(name: str) -> None:
    mixed = chosen(lying_on(name), 1 if "1.5" not in name else 9)
    found = forward(name, mixed)
    assert found.isfinite().all()
    assert found.shape[2:] == GRID
    if name not in ("wan2.2-ti2v-5b", "hunyuanvideo-i2v"):  # there the first frame is held in its place
        assert mixed.regions.unpromoted(found, mixed.num_whole).whole.equal(mixed.whole)
    assert (found - forward(name, None)).abs().max() > 1e-4


@pytest.mark.parametrize("by", [Blocks, Parts])
@pytest.mark.parametrize("name", ["wan-mini", "hunyuanvideo-i2v", "hunyuanvideo-1.5"])
def test_a_forward_in_parts_has_the_same_tokens(name: str, by: type) -> None:
    mixed = chosen(lying_on(name), 1 if "1.5" not in name else 9)
    torch.testing.assert_close(forward(name, mixed, make=by), forward(name, mixed), atol=1e-5, rtol=0)


def test_tables_are_made_once_for_a_stage_and_kept_no_longer() -> None:
    own = resident(EMBEDDED).parts.experts[0]
    mixed, before = chosen(lying_on(EMBEDDED), 1), own._rope.cache_info().currsize
    forward(EMBEDDED, mixed)
    (kept,) = mixed.kept.values()
    forward(EMBEDDED, mixed)
    assert next(iter(mixed.kept.values())) is kept
    assert own._rope.cache_info().currsize == before
