"""Which ranks of a pod an item gets: aligned slices, given out so that wide ones stay possible."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from orchestrator.types import Slice


@dataclass
class PodSlices:
    """One pod's ranks and who holds them. A slice starts at a multiple of its width, so slices nest and never straddle."""

    pod: str
    num_ranks: int
    draining: bool = False
    """A rank died: what still runs finishes, nothing starts."""
    held: dict[str, Slice] = field(default_factory=dict)
    """Slice of each item that holds one."""

    def free_ranks(self) -> set[int]:
        return set(range(self.num_ranks)) - {rank for taken in self.held.values() for rank in taken.ranks}

    def best_fit(self, width: int) -> tuple[int, Slice] | None:
        """The free slice of ``width`` that lies in the smallest free aligned block, and that block's size."""
        free = self.free_ranks()
        fits = [
            (_block_around(start, width, free, self.num_ranks), start)
            for start in range(0, self.num_ranks - width + 1, width)
            if free.issuperset(range(start, start + width))
        ]
        if not fits:
            return None
        block, start = min(fits)
        return block, Slice(self.pod, start, width)


def _block_around(start: int, width: int, free: set[int], num_ranks: int) -> int:
    """Size of the largest wholly free block that contains ``start``, doubling from ``width``."""
    size = width
    while size * 2 <= num_ranks:
        left = start - start % (size * 2)
        if not free.issuperset(range(left, left + size * 2)):
            break
        size *= 2
    return size


def widest(pods: Iterable[PodSlices]) -> int:
    """Ranks of the largest pod that still takes work; 0 without any."""
    return max((pod.num_ranks for pod in pods if not pod.draining), default=0)


def take(pods: Iterable[PodSlices], width: int, item_key: str) -> Slice | None:
    """Hold the tightest fitting slice over all pods for ``item_key``; None when nothing fits now.

    Raises ValueError for a width below 1.
    """
    if width < 1:
        raise ValueError(f"slice width {width} must be at least 1")
    fits = [(fit[0], index, pod, fit[1]) for index, pod in enumerate(pods) if (fit := _fit(pod, width)) is not None]
    if not fits:
        return None
    _, _, pod, found = min(fits, key=lambda entry: entry[:2])
    pod.held[item_key] = found
    return found


def _fit(pod: PodSlices, width: int) -> tuple[int, Slice] | None:
    return None if pod.draining else pod.best_fit(width)


def slice_mistakes(pod: PodSlices) -> list[str]:
    """Every broken rule of one pod: slices inside the pod, aligned, disjoint."""
    mistakes = []
    seen: dict[int, str] = {}
    for item_key, held in pod.held.items():
        if held.pod != pod.pod or held.start % held.width or held.start + held.width > pod.num_ranks:
            mistakes.append(f"{item_key} holds {held}, which is no aligned slice of {pod.pod} ({pod.num_ranks} ranks)")
        for rank in held.ranks:
            if rank in seen:
                mistakes.append(f"{item_key} and {seen[rank]} both hold rank {rank} of {pod.pod}")
            seen[rank] = item_key
    return mistakes
