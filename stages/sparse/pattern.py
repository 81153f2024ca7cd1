"""Which blocks of tokens attend to which: the one form in which every rule says what it keeps."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.types import Grid

NO_TOKEN = -1
WORD = torch.int64
"""What rows of numbers are copied as."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Tokens in blocks of ``size`` slots: which token lies in which slot.

    ``slots`` ``[1 or heads, num * size]`` int64, ``NO_TOKEN`` where there is none; each of ``num_tokens`` tokens has one slot.
    """

    slots: Tensor
    size: int
    num_tokens: int

    @property
    def num(self) -> int:
        return self.slots.shape[1] // self.size

    @property
    def has_gaps(self) -> bool:
        return self.slots.shape[1] > self.num_tokens

    @property
    def counts(self) -> Tensor:
        """Tokens in each block, ``[1 or heads, num]`` int64."""
        return torch.unflatten(self.slots != NO_TOKEN, 1, (-1, self.size)).sum(-1)

    @functools.cached_property
    def places(self) -> Tensor:
        """The slot of each token, ``[1 or heads, tokens]``."""
        found = self.slots.new_zeros(len(self.slots), self.num_tokens + 1)
        places = torch.arange(self.slots.shape[1], device=self.slots.device).expand_as(self.slots)
        found.scatter_(1, torch.where(self.slots == NO_TOKEN, self.num_tokens, self.slots), places)
        return found[:, : self.num_tokens]

    def take(self, x: Tensor) -> Tensor:
        """``[1, heads, tokens, d]`` to ``[1, heads, slots, d]``, zeros where there is no token."""
        found = _picked(x, self.slots.clamp(min=0))
        return found.masked_fill((self.slots == NO_TOKEN)[None, :, :, None], 0) if self.has_gaps else found

    def put(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`take`."""
        return _picked(x, self.places)

    def mean(self, x: Tensor) -> Tensor:
        """Of each block's tokens: ``[1, heads, tokens, d]`` to ``[heads, num, d]`` float32."""
        sums = torch.unflatten(self.take(x)[0], 1, (-1, self.size)).sum(2, dtype=torch.float32)
        return sums / self.counts.clamp(min=1).unsqueeze(-1)

    def filled_up(self, num_more: int) -> Blocks:
        """With so many empty slots more behind each block."""
        if num_more == 0:
            return self
        slots = F.pad(self.slots.unflatten(1, (-1, self.size)), (0, num_more), value=NO_TOKEN)
        return Blocks(slots.flatten(1), self.size + num_more, self.num_tokens)

    def followed_by(self, num_more: int) -> Blocks:
        """With so many tokens more, after those there are, in blocks of their own."""
        more = in_a_row(num_more, self.size, self.slots.device).slots
        more = torch.where(more == NO_TOKEN, more, more + self.num_tokens).expand(len(self.slots), -1)
        return Blocks(torch.cat([self.slots, more], dim=1), self.size, self.num_tokens + num_more)


def _picked(x: Tensor, index: Tensor) -> Tensor:
    """Rows ``index [1 or heads, n]`` of ``[1, heads, tokens, d]``."""
    return _rows(x.view(WORD), index).view(x.dtype) if _is_made_of_words(x) else _rows(x, index)


def _is_made_of_words(x: Tensor) -> bool:
    """Whether rows can be copied by fewer and larger numbers than they are: on a GPU it is numbers that take time, not bytes."""
    counts = (*x.stride()[:-1], x.shape[-1], x.storage_offset())
    return x.stride(-1) == 1 and all(count * x.element_size() % WORD.itemsize == 0 for count in counts)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    if len(index) == 1:
        return x.index_select(2, index[0])
    heads, num_tokens = x.shape[1:3]
    first = torch.arange(0, heads * num_tokens, num_tokens, device=x.device).unsqueeze(1)
    rows = x.reshape(heads * num_tokens, -1).index_select(0, (first + index).flatten())
    return rows.view(1, heads, -1, x.shape[-1])


def _spread(x: Tensor, index: Tensor) -> Tensor:
    """Columns ``index [1 or heads, n]`` of ``[heads, rows, blocks]``."""
    return x.index_select(2, index[0]) if len(index) == 1 else torch.take_along_dim(x, index.unsqueeze(1), dim=2)


def in_a_row(num_tokens: int, size: int, device: torch.device) -> Blocks:
    """Tokens as they come; the last block may have fewer."""
    return in_order(torch.arange(num_tokens, device=device).unsqueeze(0), size)


def in_order(order: Tensor, size: int) -> Blocks:
    """Tokens in ``order`` ``[1 or heads, tokens]``: which token comes where."""
    return Blocks(F.pad(order, (0, -order.shape[1] % size), value=NO_TOKEN), size, order.shape[1])


def in_tiles(grid: Grid, tile: Grid, device: torch.device) -> Blocks:
    """Boxes of ``tile`` tokens along (time, height, width); those at the far borders may have fewer, and empty slots."""
    missing = [-size % step for size, step in zip(grid, tile, strict=True)]
    index = torch.arange(math.prod(grid), device=device).view(grid)
    index = F.pad(index, [amount for far in reversed(missing) for amount in (0, far)], value=NO_TOKEN)
    shape = [part for size, step in zip(index.shape, tile, strict=True) for part in (size // step, step)]
    boxes = index.view(shape).permute(0, 2, 4, 1, 3, 5).reshape(-1, math.prod(tile))
    gaps_last = torch.argsort((boxes == NO_TOKEN).to(torch.uint8), dim=1, stable=True)
    return Blocks(boxes.gather(1, gaps_last).reshape(1, -1), math.prod(tile), math.prod(grid))


@dataclass(frozen=True, eq=False)
class Pattern:
    """``keep [heads, blocks of queries, blocks of keys]`` bool, and which tokens are in the blocks."""

    queries: Blocks
    keys: Blocks
    keep: Tensor

    def with_text(self, num_text: int) -> Pattern:
        """The same between image tokens; text, which comes after them, is attended to by all and attends to all."""
        if num_text == 0:
            return self
        queries, keys = self.queries.followed_by(num_text), self.keys.followed_by(num_text)
        missing = (0, keys.num - self.keys.num, 0, queries.num - self.queries.num)
        return Pattern(queries, keys, F.pad(self.keep, missing, value=True))

    @property
    def density(self) -> Tensor:
        """Of all pairs of tokens those that are kept, a mean over heads; a number on the device."""
        return self._shares[0]

    @property
    def executed(self) -> Tensor:
        """As :attr:`density`, what a kernel computes that takes blocks whole, empty slots and all: it may come to more than 1."""
        return self._shares[1]

    @functools.cached_property
    def _shares(self) -> tuple[Tensor, Tensor]:
        counts, size = self.keys.counts, self.keys.size
        columns = torch.stack([counts, (counts > 0) * size], dim=-1)
        kept, executed = (self.keep.float() @ columns.float()).double().unbind(-1)  # whole numbers, that float32 has exactly
        sums = (kept * self.queries.counts).sum(1), (executed * self.queries.size).sum(1)
        density, share = (some.mean() / (self.queries.num_tokens * self.keys.num_tokens) for some in sums)
        return density, share

    def seen_by(self, rows: Tensor) -> Tensor:
        """Which keys some queries, tokens ``rows [n]``, attend to: ``[heads, n, tokens]``."""
        mine, columns = self.queries.places[:, rows] // self.queries.size, self.keys.places // self.keys.size
        if len(rows) < self.queries.num:
            return _spread(_picked(self.keep.unsqueeze(0), mine)[0], columns)
        return _picked(_spread(self.keep, columns).unsqueeze(0), mine)[0]

    def pairs(self) -> Tensor:
        """Which token attends to which, ``[heads, tokens, tokens]``: for small sequences."""
        return self.seen_by(torch.arange(self.queries.num_tokens, device=self.keep.device))
