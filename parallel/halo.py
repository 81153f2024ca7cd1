"""Pictures cut into strips, one per rank: what a convolution reads across a cut comes from the neighbour's rank.

Any size over any number of ranks. Where there are fewer rows than ranks the last ranks have none: they work on a row of
stand-in values that nobody reads, so that all ranks make the same collectives.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.decoding import to_first
from parallel.groups import Group, told
from parallel.shares import piece, shares

HEIGHT, WIDTH = -2, -1


@dataclass(frozen=True, eq=False)
class Strips:
    """Pictures ``[..., H, W]`` over the ranks of a group. Layers may scale them: a strip grows with the picture."""

    group: Group
    dim: int
    """Which dimension is cut: ``HEIGHT`` or ``WIDTH``."""
    counts: tuple[int, ...]
    """Rows (or columns) of each rank, before any scaling."""
    across: int
    """Cells of a row, before any scaling."""

    @property
    def num_cells(self) -> int:
        """Cells of the largest strip, before any scaling."""
        return max(self.counts) * self.across

    @property
    def has_rows(self) -> bool:
        return self.counts[self.group.rank] > 0

    def cut(self, x: Tensor) -> Tensor:
        """This rank's strip of a whole ``x [..., H, W]``; a stand-in of one row where it has none."""
        rows = piece(self.counts, self.group.rank)
        return x.narrow(self.dim, rows.start, len(range(rows.start, rows.stop))) if self.has_rows else x.narrow(self.dim, 0, 1)

    def borders(self, x: Tensor) -> Borders:
        """Asks the neighbours for their rows next to ``x [N, C, ..., h, w]``. To be called by all ranks, as all that follows."""
        return Borders(self, x)

    def neighbours(self) -> tuple[int, ...]:
        """The ranks whose strips touch this one's: one, two or none."""
        rank = self.group.rank
        near = (rank - 1, rank + 1) if self.has_rows else ()
        return tuple(other for other in near if 0 <= other < self.group.size and self.counts[other])

    def gather_cells(self, x: Tensor) -> Tensor:
        """``x [T, cells of this strip, C]`` to those of all strips ``[T, all cells, C]``, on every rank and strip by strip."""
        per_row = x.shape[1] // max(1, self.counts[self.group.rank])
        counts = tuple(count * per_row for count in self.counts)
        cells = x.transpose(0, 1)[: counts[self.group.rank]]
        return self.group.gather_rows(cells, counts).transpose(0, 1)

    def joined(self, x: Tensor) -> Tensor | None:
        """The whole of strips ``x [..., h, w]`` on rank 0, None on the others."""
        scale = x.shape[self.dim] // max(1, self.counts[self.group.rank])
        rows = x.movedim(self.dim, 0)[: self.counts[self.group.rank] * scale]
        found = to_first(self.group, rows, tuple(count * scale for count in self.counts))
        return None if found is None else found.movedim(0, self.dim)


class Borders:
    """Rows of the neighbouring strips, on their way."""

    def __init__(self, strips: Strips, x: Tensor) -> None:
        self._strips = strips
        self._near = strips.neighbours()
        rank, size = strips.group.rank, x.shape[strips.dim]
        # Channels last, as the layers have it: rows of cells are then copied as they lie.
        cells = x.movedim(1, -1)
        rows = [cells.narrow(strips.dim - 1, 0 if other < rank else size - 1, 1) for other in self._near]
        self._sent = torch.stack(rows).contiguous() if rows else cells.new_empty(0)
        self._found = torch.empty_like(self._sent)
        splits = [int(other in self._near) for other in range(strips.group.size)]
        with told("exchanging the borders of strips"):
            self._work = dist.all_to_all_single(self._found, self._sent, splits, splits, group=strips.group.handle, async_op=True)

    @property
    def dim(self) -> int:
        return self._strips.dim

    def slots(self, seen: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """For each neighbour, where its row lies in ``seen``, a strip with one row more at both ends, and the row itself."""
        with told("exchanging the borders of strips"):
            if self._work is not None:
                self._work.wait()
        for other, row in zip(self._near, self._found, strict=True):
            place = 0 if other < self._strips.group.rank else seen.shape[self.dim] - 1
            yield seen.narrow(self.dim, place, 1), row.movedim(-1, 1)


class Halo:
    """Where the layers of a decoder find the strips of the picture in hand. One per decoder, shared by its layers."""

    def __init__(self) -> None:
        self.strips: Strips | None = None

    @contextmanager
    def over(self, strips: Strips | None) -> Iterator[None]:
        """Within, pictures are strips; None: whole."""
        before, self.strips = self.strips, strips
        try:
            yield
        finally:
            self.strips = before


def strips_of(group: Group | None, height: int, width: int) -> Strips | None:
    """Pictures of ``height x width`` over a group, cut where that leaves the smallest strips; None without a group.

    Of two equal ways the longer dimension is cut, as the borders are then shorter.
    """
    if group is None:
        return None
    rows, columns = (shares(size, group.size) for size in (height, width))
    if (max(rows) * width, width) <= (max(columns) * height, height):
        return Strips(group, HEIGHT, rows, width)
    return Strips(group, WIDTH, columns, height)
