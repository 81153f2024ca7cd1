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
    def first_frame(self) -> Tensor:
        """Which tokens are of the first frame, ``[n, 1]``."""
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
        here[self.rows] = True
        y = here.view(self.grid)
        for dim, size in enumerate(self.patch):
            y = y.repeat_interleave(size, dim)
        return y

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        return cut(x)[:, self.rows]

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        whole = tokens.new_zeros(len(tokens), math.prod(self.grid), tokens.shape[2])
        whole[:, self.rows] = tokens
        return self.fill(laid(whole, self.grid))

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        return table(self.grid)[self.rows]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]
