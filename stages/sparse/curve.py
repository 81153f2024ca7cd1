"""A box's cells along a generalised 3-D Hilbert curve: cells that are close along it are close in the box.

Hilbert's curve goes through a box from one corner to a neighbouring one, and through its halves along each side in the same way.
Here sides need not be equal, nor powers of two: a box that is much longer or flatter than a cube is not cut along every side, and
halves are even where they can be. If all sides are even, each step leads to a neighbouring cell; around odd ones a step may go
along the diagonal of a square.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.types import Grid

Cells = NDArray[np.int64]


def hilbert(grid: Grid) -> Tensor:
    """Which cell comes where: ``[t h w]`` int64 numbers of cells, which count row by row and frame by frame."""
    longest_first = sorted(range(3), key=lambda axis: -grid[axis])
    cells = _curve(*(grid[axis] for axis in longest_first))
    t, h, w = (cells[:, longest_first.index(axis)] for axis in range(3))
    return torch.from_numpy((t * grid[1] + h) * grid[2] + w)


@dataclass(frozen=True)
class _Part:
    """Of a box: which of its sides ``(a, b, c)`` its own sides lie along, how long they are, where its curve begins.

    A side is named by 1, 2 or 3, and by the negative where the curve runs it backwards.
    """

    sides: tuple[int, int, int]
    sizes: tuple[int, int, int]
    begin: tuple[int, int, int]

    def cells(self) -> Cells:
        own = _curve(*self.sizes)
        found = np.tile(np.array(self.begin), (len(own), 1))
        for axis, side in enumerate(self.sides):
            found[:, abs(side) - 1] += own[:, axis] if side > 0 else -own[:, axis]
        return found


@functools.lru_cache(maxsize=1024)
def _curve(a: int, b: int, c: int) -> Cells:
    """Cells ``[a b c, 3]`` of a box, from a corner to the one at the other end of its first side."""
    if (a > 1) + (b > 1) + (c > 1) <= 1:
        return np.indices((a, b, c)).reshape(3, -1).T
    parts = [part for part in _parts(a, b, c) if min(part.sizes) > 0]
    return np.concatenate([part.cells() for part in parts])


def _parts(a: int, b: int, c: int) -> list[_Part]:
    """In the order of the curve; each begins beside the end of the one before."""
    if 2 * a > 3 * b and 2 * a > 3 * c:
        return _in_two(a, b, c)
    if 3 * b > 4 * c:
        return _in_three(a, b, c)
    if 3 * c > 4 * b:
        return [_swapped(part) for part in _in_three(a, c, b)]
    return _in_five(a, b, c)


def _half(size: int) -> int:
    """Even where it can be, so that the curve through it ends where it should."""
    half = size // 2
    return half + 1 if half % 2 and size > 2 else half


def _in_two(a: int, b: int, c: int) -> list[_Part]:
    near = _half(a)
    return [_Part((1, 2, 3), (near, b, c), (0, 0, 0)), _Part((1, 2, 3), (a - near, b, c), (near, 0, 0))]


def _in_three(a: int, b: int, c: int) -> list[_Part]:
    """The plane curve's turns, over the third side whole: out along the second side, along the first, and back."""
    left, near = _half(a), _half(b)
    return [
        _Part((2, 3, 1), (near, c, left), (0, 0, 0)),
        _Part((1, 2, 3), (a, b - near, c), (0, near, 0)),
        _Part((-2, 3, -1), (near, c, a - left), (a - 1, near - 1, 0)),
    ]


def _in_five(a: int, b: int, c: int) -> list[_Part]:
    """Hilbert's eight octants, three pairs of which are passed in one go."""
    left, near, low = _half(a), _half(b), _half(c)
    return [
        _Part((2, 3, 1), (near, low, left), (0, 0, 0)),
        _Part((3, 1, 2), (c, left, b - near), (0, near, 0)),
        _Part((1, -2, -3), (a, near, c - low), (0, near - 1, c - 1)),
        _Part((-3, -1, 2), (c, a - left, b - near), (a - 1, near, c - 1)),
        _Part((-2, 3, -1), (near, low, a - left), (a - 1, near - 1, 0)),
    ]


def _swapped(part: _Part) -> _Part:
    """With the second and the third side of the box in each other's place."""
    other = {1: 1, 2: 3, 3: 2}
    x, y, z = (other[abs(side)] * (1 if side > 0 else -1) for side in part.sides)
    return _Part((x, y, z), part.sizes, (part.begin[0], part.begin[2], part.begin[1]))
