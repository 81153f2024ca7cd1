"""Tokens other than a grid's own, in their own order: what a transformer asks of them in one forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from orchestrator.types import Grid


class TokenSet(Protocol):
    """Some tokens of a latent."""

    @property
    def num_tokens(self) -> int: ...

    @property
    def unit(self) -> int:
        """So many tokens after each other, from the first on, stay on one rank."""
        ...

    @property
    def first_frame(self) -> Tensor:
        """Which tokens are of the first frame, ``[n, 1]``, on any device."""
        ...

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        """Tokens ``[1, n, c]`` of a latent; ``cut`` gives those ``[1, t h w, c]`` of a uniform one."""
        ...

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        """Back to a latent ``[B, C, T, H, W]``; ``laid`` does so for the tokens ``[B, t h w, c]`` of a uniform grid of tokens."""
        ...

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        """Cosines and sines ``[n, d / 2, 2]`` of their places; ``table`` gives those of a uniform grid."""
        ...

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gave the first time, kept as long as this is."""
        ...


@dataclass(frozen=True, eq=False)
class All:
    """All tokens of one grid as they come, of somebody who is told what is found for them."""

    grid: Grid
    """Tokens along (time, height, width)."""
    told: Callable[[Tensor], None]
    """Given each velocity ``[B, C, T, H, W]``."""
    kept: dict[Hashable, Any] = field(default_factory=dict)
    unit: int = 1

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    @property
    def first_frame(self) -> Tensor:
        return (torch.arange(self.num_tokens) < self.grid[1] * self.grid[2]).unsqueeze(-1)

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        return cut(x)

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        found = laid(tokens, self.grid)
        self.told(found)
        return found

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        return table(self.grid)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return _once(self.kept, key, make)


@dataclass(frozen=True, eq=False)
class Some:
    """Tokens of one grid, by their indices in it, in any order. Cells of the others come of ``fill``."""

    rows: Tensor
    """``[n]`` int64."""
    grid: Grid
    """Tokens along (time, height, width)."""
    patch: Grid
    fill: Callable[[Tensor], Tensor]
    """Given a velocity ``[B, C, T, H, W]`` with zeros in the cells of tokens that are not here: the whole of it."""
    kept: dict[Hashable, Any] = field(default_factory=dict)
    unit: int = 1

    @property
    def num_tokens(self) -> int:
        return len(self.rows)

    @property
    def first_frame(self) -> Tensor:
        return (self.rows < self.grid[1] * self.grid[2]).unsqueeze(-1)

    @property
    def cells(self) -> Tensor:
        """The latent cells ``[T, H, W]`` of the tokens here."""
        here = torch.zeros(math.prod(self.grid), dtype=torch.bool, device=self.rows.device)
        here.index_fill_(0, self.rows, True)
        return in_cells(here.view(self.grid), self.patch)

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        return cut(x)[:, self.rows]

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        whole = tokens.new_zeros(len(tokens), math.prod(self.grid), tokens.shape[2])
        whole[:, self.rows] = tokens
        return self.fill(laid(whole, self.grid))

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        return table(self.grid)[self.rows]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        return _once(self.kept, key, make)


def _once(kept: dict[Hashable, Any], key: Hashable, make: Callable[[], Any]) -> Any:
    if key not in kept:
        kept[key] = make()
    return kept[key]


def in_patches(x: Tensor, patch: Grid) -> Tensor:
    """What is in the cells of each token: a latent ``[1, C, T, H, W]`` to ``[t h w, C pt ph pw]``."""
    (pt, ph, pw), (t, h, w) = patch, (size // step for size, step in zip(x.shape[2:], patch, strict=True))
    return x[0].reshape(-1, t, pt, h, ph, w, pw).permute(1, 3, 5, 0, 2, 4, 6).flatten(3).flatten(0, 2)


def in_cells(tokens: Tensor, patch: Grid) -> Tensor:
    """What is said of tokens ``[t, h, w]``, said of their cells ``[T, H, W]``."""
    for dim, size in enumerate(patch):
        tokens = tokens.repeat_interleave(size, dim)
    return tokens
