"""The generalised Hilbert curve: every cell once, steps to neighbours, close along it is close in the box."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from orchestrator.types import Grid
from stages.sparse.curve import hilbert

SIDES = st.integers(1, 12)
EVEN = st.integers(1, 6).map(lambda half: 2 * half)


def cells(grid: Grid) -> Tensor:
    """``[cells, 3]`` in the order of the curve."""
    return torch.stack(torch.unravel_index(hilbert(grid), grid), dim=1)


def steps(grid: Grid) -> Tensor:
    return cells(grid).diff(dim=0).abs()


@given(grid=st.tuples(SIDES, SIDES, SIDES))
@settings(max_examples=150, deadline=None)
def test_every_cell_comes_once_and_no_step_is_longer_than_a_squares_diagonal(grid: Grid) -> None:
    assert sorted(hilbert(grid).tolist()) == list(range(math.prod(grid)))
    assert all(sum(step) <= 2 and max(step) <= 1 for step in steps(grid).tolist())


@given(grid=st.tuples(EVEN, EVEN, EVEN))
@settings(max_examples=60, deadline=None)
def test_with_even_sides_every_step_leads_to_a_neighbour(grid: Grid) -> None:
    assert set(steps(grid).sum(1).tolist()) == {1}


@pytest.mark.parametrize("grid", [(13, 45, 80), (31, 30, 53), (11, 9, 9)])
def test_on_real_grids_hardly_a_step_is_diagonal(grid: Grid) -> None:
    assert float((steps(grid).sum(1) > 1).double().mean()) < 0.03


def test_the_smallest_curve_is_hilberts_own() -> None:
    assert cells((2, 2, 2)).tolist() == [
        [0, 0, 0], [0, 1, 0], [0, 1, 1], [0, 0, 1], [1, 0, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0],
    ]  # fmt: skip


def test_a_plane_of_four_by_four_is_the_plane_curve() -> None:
    drawn = torch.zeros(4, 4, dtype=torch.long)
    drawn.view(-1)[hilbert((1, 4, 4))] = torch.arange(16)
    corners = [drawn[0, 0], drawn[3, 0]]
    assert sorted(int(corner) for corner in corners) == [0, 15]
    for quarter in drawn.unfold(0, 2, 2).unfold(1, 2, 2).reshape(4, 4).tolist():
        assert max(quarter) - min(quarter) == 3, "a quarter is passed in one go"


def test_a_block_along_the_curve_is_compact() -> None:
    """The control of the order: rows of the grid are long and thin."""

    def reach(tokens: Tensor) -> float:
        blocks = tokens[: len(tokens) // 128 * 128].view(-1, 128, 3)
        return float((blocks.amax(1) - blocks.amin(1)).amax(1).double().mean())

    grid = (13, 45, 80)
    in_rows = torch.stack(torch.unravel_index(torch.arange(math.prod(grid)), grid), dim=1)
    assert reach(cells(grid)) < 12 < 70 < reach(in_rows)
