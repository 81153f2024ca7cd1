"""Tokens of one frame that become one for a while: windows of a grid, who joins whom in them, and the way back.

Token merging (arXiv 2210.09461; for diffusion 2303.17604): in every 2 x 2 cell one token is a destination, the others look for
the destination of their window that is most like them, and of a window those that found the best likeness join it. How many is
fixed, so shapes are known without asking the device, and every rank has whole windows.
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

CELL = 2
"""Tokens along height and width that have one destination among them."""


@dataclass(frozen=True)
class Windows:
    """As many as fit into the frames of a grid; the tokens left over below and to the right are in none."""

    tokens: Grid
    """Along (time, height, width)."""
    size: tuple[int, int]
    """Tokens along height and width, multiples of ``CELL``."""

    @property
    def area(self) -> int:
        return math.prod(self.size)

    @property
    def num(self) -> int:
        t, h, w = self.tokens
        return t * (h // self.size[0]) * (w // self.size[1])

    @property
    def num_destinations(self) -> int:
        """Of one window."""
        return self.area // CELL**2

    def order(self) -> Tensor:
        """All tokens by their indices ``[t h w]``: window after window, then those in none."""
        (t, h, w), (high, wide) = self.tokens, self.size
        rows, columns = h // high, w // wide
        indices = torch.arange(t * h * w).view(t, h, w)
        inside = indices[:, : rows * high, : columns * wide].reshape(t, rows, high, columns, wide)
        windows = inside.permute(0, 1, 3, 2, 4).flatten()
        loose = torch.ones(t * h * w, dtype=torch.bool)
        loose[windows] = False
        return torch.cat([windows, loose.nonzero().flatten()])

    def destinations(self, step: int | None) -> Tensor:
        """Which tokens of each window, ``[num, num_destinations]``: at random by the step alone; None: the first of each cell."""
        rows, columns = (size // CELL for size in self.size)
        corners = torch.arange(rows).unsqueeze(1) * CELL * self.size[1] + torch.arange(columns) * CELL
        if step is None:
            return corners.flatten().expand(self.num, -1)
        chosen = torch.randint(CELL**2, (self.num, corners.numel()), generator=torch.Generator().manual_seed(step))
        return corners.flatten() + chosen // CELL * self.size[1] + chosen % CELL


@dataclass(frozen=True, eq=False)
class Ordered:
    """A token set: all tokens of one grid in another order. Its indices go to a device when they are first needed there."""

    rows: Tensor
    """``[t h w]`` int64."""
    grid: Grid
    """Tokens along (time, height, width)."""
    unit: int = 1
    """So many after each other, from the first on, stay on one rank."""
    kept: dict[Hashable, Any] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        return len(self.rows)

    @property
    def first_frame(self) -> Tensor:
        return (self.rows < self.grid[1] * self.grid[2]).unsqueeze(-1)

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        parts = cut(x)
        return parts[:, self._there("rows", parts.device)]

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        return laid(tokens[:, self._there("back", tokens.device)], self.grid)

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        rows = table(self.grid)
        return rows[self._there("rows", rows.device)]

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]

    def _there(self, name: str, device: torch.device) -> Tensor:
        rows: Tensor = self.once((name, device), lambda: (self.rows if name == "rows" else self.rows.argsort()).to(device))
        return rows


@dataclass(frozen=True, eq=False)
class Merge:
    """Of windows of ``m`` tokens each, ``k`` of which stay, and ``num_loose`` tokens after them, which all do."""

    keep: Tensor
    """The tokens that stay, in their order, by their places in the window ``[windows, k]``."""
    owner: Tensor
    """Of every token the one of these that stands for it, ``[windows, m]``; of one that stays it is itself."""
    num_loose: int

    @functools.cached_property
    def sizes(self) -> Tensor:
        """How many tokens each of those that stay stands for, ``[windows k + num_loose]`` float32."""
        counts = torch.zeros(self.keep.shape, device=self.owner.device)
        counts.scatter_add_(1, self.owner, torch.ones_like(self.owner, dtype=counts.dtype))
        return F.pad(counts.flatten(), (0, self.num_loose), value=1.0)

    @functools.cached_property
    def rows(self) -> Tensor:
        """The tokens that stay, by their indices."""
        return self._indices(self.keep, self.owner.shape[1], self.owner.numel())

    def merged(self, h: Tensor) -> Tensor:
        """Means ``[1, windows k + num_loose, D]`` of tokens ``[1, windows m + num_loose, D]``; exact where one stands alone."""
        (num, most), stay = self.owner.shape, self.keep.shape[1]
        windows = h[0, : num * most].view(num, most, h.shape[2])
        joins = h.new_zeros(num, stay, most).scatter_(1, self.owner.unsqueeze(1), 1.0)
        sums = torch.bmm(joins, windows).flatten(0, 1)
        means = sums / self.sizes[: num * stay].unsqueeze(1).to(h.dtype)
        return torch.cat([means, h[0, num * most :]]).unsqueeze(0)

    def spread(self, found: Tensor) -> Tensor:
        """The way back: every token has what was found for the one that stands for it."""
        return found[:, self._indices(self.owner, self.keep.shape[1], self.keep.numel())]

    def _indices(self, places: Tensor, per_window: int, num_inside: int) -> Tensor:
        first = torch.arange(len(places), device=places.device).unsqueeze(1) * per_window
        loose = torch.arange(num_inside, num_inside + self.num_loose, device=places.device)
        return torch.cat([(first + places).flatten(), loose])


def match(h: Tensor, destinations: Tensor, num_merged: int, area: int) -> Merge:
    """Who joins whom: ``num_merged`` tokens of every window, by the cosine of hidden states ``h [1, n, D]``.

    ``destinations [windows, d]`` are of the windows of ``area`` tokens that ``h`` begins with. Waits for no device.
    """
    num = len(destinations)
    windows = F.normalize(h[0, : num * area].view(num, area, h.shape[2]), dim=-1)
    to_destinations = windows.gather(1, destinations.unsqueeze(2).expand(-1, -1, windows.shape[2])).transpose(1, 2)
    likeness, which = torch.bmm(windows, to_destinations).max(dim=2)
    likeness = likeness.scatter(1, destinations, -torch.inf)
    joining = likeness.argsort(dim=1, descending=True, stable=True)[:, :num_merged]
    joins = torch.zeros(num, area, dtype=torch.int64, device=h.device).scatter_(1, joining, 1)
    slots = (1 - joins).cumsum(dim=1) - 1
    keep = joins.argsort(dim=1, stable=True)[:, : area - num_merged]
    owner = torch.where(joins > 0, slots.gather(1, destinations.gather(1, which)), slots)
    return Merge(keep, owner, h.shape[1] - num * area)
