"""The ranks of one pod and who holds them: aligned slices, which nest and never straddle."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from orchestrator.types import Slice


@cache
def bits(start: int, width: int) -> int:
    """Ranks as a mask: bit ``r`` is rank ``r``."""
    return ((1 << width) - 1) << start


@cache
def tightest(num_ranks: int, free: int, width: int) -> tuple[int, int] | None:
    """Of the free slices of ``width`` the one in the smallest free aligned block, as (that block's size, start)."""
    fits = [
        (_block_around(start, width, free, num_ranks), start)
        for start in range(0, num_ranks - width + 1, width)
        if free & bits(start, width) == bits(start, width)
    ]
    return min(fits, default=None)


def _block_around(start: int, width: int, free: int, num_ranks: int) -> int:
    """Size of the largest wholly free block that contains ``start``, doubling from ``width``."""
    size = width
    while size * 2 <= num_ranks:
        block = bits(start - start % (size * 2), size * 2)
        if free & block != block:
            break
        size *= 2
    return size


@dataclass
class PodSlices:
    """One pod's ranks, who holds them, and until when as far as is known."""

    pod: str
    num_ranks: int
    draining: bool = False
    """What still runs finishes, nothing starts."""
    held: dict[str, Slice] = field(default_factory=dict)
    """Slice of each item that holds one."""
    free: int = field(init=False)
    """Mask of the ranks that nobody holds."""
    promised: int = 0
    """Mask of the ranks that are kept for a clip that waits."""
    ends_s: list[float] = field(init=False)
    """When each held rank is expected to come free; 0 for the others."""

    def __post_init__(self) -> None:
        self.free = bits(0, self.num_ranks)
        self.ends_s = [0.0] * self.num_ranks
        for piece in self.held.values():
            self.free &= ~bits(piece.start, piece.width)

    @property
    def open(self) -> int:
        """Mask of the ranks that anybody may take."""
        return 0 if self.draining else self.free & ~self.promised

    def hold(self, item_key: str, piece: Slice, end_s: float) -> None:
        self.held[item_key] = piece
        self.free &= ~bits(piece.start, piece.width)
        self.ends_s[piece.start : piece.start + piece.width] = [end_s] * piece.width

    def release(self, item_key: str) -> Slice:
        piece = self.held.pop(item_key)
        self.ends_s[piece.start : piece.start + piece.width] = [0.0] * piece.width
        self.free |= bits(piece.start, piece.width)
        return piece

    def ready_s(self, start: int, width: int, now_s: float) -> float:
        """When all of a block is expected to be free."""
        return max(now_s, *self.ends_s[start : start + width])


def slice_mistakes(pod: PodSlices) -> list[str]:
    """Every broken rule of one pod: slices inside the pod, aligned, disjoint, and what they leave is free."""
    mistakes = []
    seen: dict[int, str] = {}
    for item_key, held in pod.held.items():
        if held.pod != pod.pod or held.start % held.width or held.start + held.width > pod.num_ranks:
            mistakes.append(f"{item_key} holds {held}, which is no aligned slice of {pod.pod} ({pod.num_ranks} ranks)")
        for rank in held.ranks:
            if rank in seen:
                mistakes.append(f"{item_key} and {seen[rank]} both hold rank {rank} of {pod.pod}")
            seen[rank] = item_key
    free = {rank for rank in range(pod.num_ranks) if pod.free >> rank & 1}
    if not mistakes and free != set(range(pod.num_ranks)) - seen.keys():
        mistakes.append(f"{pod.pod} counts {sorted(free)} as free and {sorted(seen)} as held")
    return mistakes
