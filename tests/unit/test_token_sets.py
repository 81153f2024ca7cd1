"""Tokens of one grid by their indices: taken, placed, laid back; all of them give what a plain forward does."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.types import Grid
from stages.models.base import Positions
from stages.token_sets import All, Some, TokenSet, in_cells, in_patches
from tests.unit.test_trunk import LEVEL, noise, placed, resident
from tests.unit.token_runs import FAMILIES, GRID

SIZES = st.integers(1, 3)


@given(grid=st.tuples(SIZES, SIZES, SIZES), patch=st.tuples(SIZES, SIZES, SIZES))
def test_a_token_has_the_cells_of_its_box(grid: Grid, patch: Grid) -> None:
    cells = tuple(size * step for size, step in zip(grid, patch, strict=True))
    x = torch.arange(2 * cells[0] * cells[1] * cells[2], dtype=torch.float32).view(1, 2, *cells)
    found = in_patches(x, patch)
    places = [(t, h, w) for t in range(grid[0]) for h in range(grid[1]) for w in range(grid[2])]
    for row, place in zip(found, places, strict=True):
        box = tuple(slice(i * step, (i + 1) * step) for i, step in zip(place, patch, strict=True))
        assert torch.equal(row, x[0][:, *box].flatten())
        marked = torch.zeros(grid)
        marked[place] = 1
        assert torch.equal(in_cells(marked, patch).bool(), torch.zeros(cells).index_put(_box(box), torch.ones(())).bool())


def _box(box: tuple[slice, ...]) -> tuple[Tensor, ...]:
    axes = [torch.arange(part.start, part.stop) for part in box]
    return tuple(torch.meshgrid(*axes, indexing="ij"))


def velocity(model: str, tokens: TokenSet | None, positions: Positions | None = None) -> Tensor:
    own, cond = resident(model), placed(model, GRID)
    x = cond.pin(noise(1, own.geometry.latent_channels, *GRID, seed=1))
    found: Tensor = own.denoise(x, LEVEL, replace(cond, mixed=tokens, positions=positions))
    return found


def tokens_of(model: str) -> Grid:
    t, h, w = (size // step for size, step in zip(GRID, resident(model).geometry.patch, strict=True))
    return t, h, w


@pytest.mark.parametrize("frames", [None, (0, 2, 5)])
@pytest.mark.parametrize("model", FAMILIES)
def test_all_tokens_in_any_order_give_what_a_plain_forward_does(model: str, frames: tuple[int, ...] | None) -> None:
    """With frames at places of their own too, and a first frame that is told another time."""
    grid, patch = tokens_of(model), resident(model).geometry.patch
    positions = frames and Positions(frames, frozenset({0}))
    plain, heard = velocity(model, None, positions), list[Tensor]()
    order = torch.randperm(grid[0] * grid[1] * grid[2], generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(velocity(model, Some(order, grid, patch, lambda v: v), positions), plain, atol=2e-5, rtol=1e-4)
    assert torch.equal(velocity(model, All(grid, heard.append), positions), plain)
    assert {v.shape for v in heard} == {plain.shape}
    if positions:
        assert not torch.allclose(plain, velocity(model, None), atol=1e-4)


@pytest.mark.parametrize("model", FAMILIES)
def test_cells_of_tokens_that_are_not_there_come_of_what_fills_them(model: str) -> None:
    grid, patch = tokens_of(model), resident(model).geometry.patch
    last = grid[0] * grid[1] * grid[2] - 1
    some = Some(torch.tensor([1, 5, last]), grid, patch, lambda v: torch.where(some.cells, v, 7.0))
    found = velocity(model, some)[:, :, 1:]  # a held first frame does not move
    others = ~some.cells[1:].expand_as(found)
    assert bool((found[others] - 7).abs().max() < 1e-4)
    assert bool((found[~others] - 7).abs().max() > 1)
