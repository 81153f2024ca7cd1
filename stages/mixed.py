"""Tokens of two grids at once: squares of the full grid's tokens, each of which one coarse token may stand for.

A mixed latent is one of the full grid whose coarse cells are repeated over their children, so solvers take it as it is, and
coarse squares are told by it: their children are equal bit for bit. Only the transformers see fewer tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Grid
from stages.resize import Axes


@dataclass(frozen=True)
class Regions:
    """How the squares lie on a latent grid: ``factor`` by ``factor`` tokens, in as many rows and columns as fit.

    What is left over below and to the right has no coarse token.
    """

    factor: int
    full_grid: Grid
    """Latent cells."""
    patch: Grid

    @property
    def tokens(self) -> Grid:
        """Of the full grid."""
        t, h, w = (size // patch for size, patch in zip(self.full_grid, self.patch, strict=True))
        return t, h, w

    @property
    def grid(self) -> Grid:
        """Squares along time, height and width: the coarse tokens."""
        t, h, w = self.tokens
        return t, h // self.factor, w // self.factor

    @property
    def coarse_grid(self) -> Grid:
        """Latent cells."""
        t, h, w = (size * patch for size, patch in zip(self.grid, self.patch, strict=True))
        return t, h, w

    @property
    def axes(self) -> Axes:
        """The child that each coarse cell takes its noise from: the middle one, the second of two."""
        t, h, w = self.coarse_grid
        return tuple(range(t)), tuple(self._middles(h)), tuple(self._middles(w))

    def _middles(self, size: int) -> range:
        return range(self.factor // 2, size * self.factor, self.factor)

    def num_tokens(self, num_whole: int) -> int:
        """With ``num_whole`` squares of one token each."""
        return math.prod(self.tokens) - num_whole * (self.factor**2 - 1)

    def num_whole(self, num_tokens: int) -> int:
        """How many squares must be of one token to come as near to ``num_tokens`` as may be."""
        spared = (math.prod(self.tokens) - num_tokens) / (self.factor**2 - 1)
        return min(max(round(spared), 0), math.prod(self.grid))

    def children(self, x: Tensor) -> Tensor:
        """Coarse cells ``[..., T, h, w]`` to all cells: repeated, the last ones over what is left over."""
        _, height, width = self.full_grid
        y = x.repeat_interleave(self.factor, -2).repeat_interleave(self.factor, -1)
        shape, frames = y.shape, y.reshape(1, -1, *y.shape[-2:])
        padded = F.pad(frames, (0, width - shape[-1], 0, height - shape[-2]), mode="replicate")
        return padded.reshape(*shape[:-2], height, width)

    def parents(self, x: Tensor) -> Tensor:
        """Of all cells ``[..., T, H, W]`` those of :attr:`axes`."""
        rows, columns = (self._middles(size) for size in self.coarse_grid[1:])
        return x[..., rows.start : rows.stop : rows.step, columns.start : columns.stop : columns.step]

    def mean(self, x: Tensor) -> Tensor:
        """Of each square of cells: ``[T, H, W]`` to ``[t, h, w]``."""
        (t, h, w), (_, patch_h, patch_w) = self.grid, self.patch
        high, wide = self.factor * patch_h, self.factor * patch_w
        inside = x[:, : h * high, : w * wide].reshape(t, -1, h, high, w, wide)
        return inside.mean(dim=(1, 3, 5))

    def spread(self, squares: Tensor, sizes: Grid) -> Tensor:
        """``[t, h, w]`` of bools to ``sizes``, tokens or cells of the full grid; False where there is no square."""
        per = [size // count for size, count in zip(sizes, self.tokens, strict=True)]
        y = squares.repeat_interleave(per[0], 0)
        for dim in (1, 2):
            y = y.repeat_interleave(per[dim] * self.factor, dim)
        return F.pad(y, (0, sizes[2] - y.shape[2], 0, sizes[1] - y.shape[1]))

    def unpromoted(self, x: Tensor, num_whole: int) -> Mixed:
        """The squares of a mixed latent ``[1, C, T, H, W]`` that are coarse, known to be ``num_whole``."""
        same = (x == self.children(self.parents(x))).all(dim=1)[0]
        return self.mixed(-self.mean(same.double()), num_whole)

    def mixed(self, urgency: Tensor, num_whole: int) -> Mixed:
        """With all squares promoted but ``num_whole``, in order of ``urgency [t, h, w]``: the lowest stay coarse; of equals the
        earlier ones. Waits for no device."""
        order = torch.argsort(urgency.flatten(), stable=True)
        whole = torch.zeros(math.prod(self.grid), dtype=torch.bool, device=urgency.device)
        whole[order[:num_whole]] = True
        return Mixed(self, whole.view(self.grid), num_whole)


@dataclass(frozen=True, eq=False)
class Mixed:
    """Which squares are coarse. Tokens come in this order: the fine ones row by row, then the coarse ones."""

    regions: Regions
    whole: Tensor
    """Of each square whether one token stands for it, ``[t, h, w]``."""
    num_whole: int
    kept: dict[Hashable, Any] = field(default_factory=dict)
    unit: int = 1

    @property
    def num_tokens(self) -> int:
        return self.regions.num_tokens(self.num_whole)

    @functools.cached_property
    def cells(self) -> Tensor:
        """The cells ``[T, H, W]`` of coarse squares."""
        return self.regions.spread(self.whole, self.regions.full_grid)

    @functools.cached_property
    def rows(self) -> tuple[Tensor, Tensor]:
        """Indices of the tokens there are: of the full grid's, and of the coarse one's."""
        is_coarse = self.regions.spread(self.whole, self.regions.tokens).flatten()
        fine = torch.argsort(is_coarse.to(torch.uint8), stable=True)[: self.num_tokens - self.num_whole]
        return fine, torch.argsort((~self.whole).flatten().to(torch.uint8), stable=True)[: self.num_whole]

    @property
    def first_frame(self) -> Tensor:
        """Which tokens are of the first frame, ``[n, 1]``."""
        sizes = (math.prod(grid[1:]) for grid in (self.regions.tokens, self.regions.grid))
        return torch.cat([rows < size for rows, size in zip(self.rows, sizes, strict=True)]).unsqueeze(-1)

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens ``[1, n, c]`` of a latent; ``cut`` gives those ``[1, t h w, c]`` of a uniform one."""
        fine, coarse = self.rows
        return torch.cat([cut(x)[:, fine], cut(self.regions.parents(x))[:, coarse]], dim=1)

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        """``[B, n, c]`` to ``[B, C, T, H, W]``, a coarse token's over all its children; ``laid`` does so for a uniform grid."""
        counts = [self.num_tokens - self.num_whole, self.num_whole]
        found = []
        for part, rows, grid in zip(
            tokens.split(counts, dim=1), self.rows, (self.regions.tokens, self.regions.grid), strict=True
        ):
            whole = tokens.new_zeros(len(tokens), math.prod(grid), tokens.shape[2])
            whole[:, rows] = part
            found.append(laid(whole, grid))
        return torch.where(self.cells, self.regions.children(found[1]), found[0])

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        """Cosines and sines ``[n, d / 2, 2]``: fine tokens at their own places, coarse ones at the middle of their children's.

        ``table`` gives those of a uniform grid, places counted from 0 at one radian a place or less.
        """
        factor, fine = self.regions.factor, table(self.regions.tokens)
        (_, h, w), whole = self.regions.grid, fine.unflatten(0, self.regions.tokens)
        corners = torch.view_as_complex(whole[:, : h * factor : factor, : w * factor : factor].contiguous()).flatten(0, 2)
        one = torch.view_as_complex(table((1, 2, 2)).contiguous())
        shift = (one[1].angle() + one[2].angle()) * (factor - 1) / 2
        middles = torch.view_as_real(corners * torch.polar(torch.ones_like(shift), shift))
        return torch.cat([fine[self.rows[0]], middles[self.rows[1]].to(fine.dtype)])

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gave the first time, kept as long as this is: tables of one clip's stage are of use to no other."""
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]
