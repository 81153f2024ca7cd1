"""All pods of a sweep: which slices are free, when those that are held come free, and what is promised to whom.

Every question takes the same time whatever the number of pods, except the search for a block to promise.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.slices import PodSlices, bits, slice_mistakes, tightest
from orchestrator.types import Slice

LOOKED_AT = 64
"""Pods, or promises, that one search looks at."""
UNKNOWN_S = 1e9
"""Added to the start of work whose length nobody predicted: what began first is expected to end first, long after the rest."""


class Ends:
    """When the slices that are held, of pods that take work, are expected to come free, by width."""

    def __init__(self) -> None:
        self._by_width: dict[int, list[float]] = {}
        self.num_ranks = 0
        self._weighted_s = 0.0

    def add(self, width: int, end_s: float) -> None:
        bisect.insort(self._by_width.setdefault(width, []), end_s)
        self.num_ranks += width
        self._weighted_s += width * end_s

    def remove(self, width: int, end_s: float) -> None:
        ends_s = self._by_width[width]
        del ends_s[bisect.bisect_left(ends_s, end_s)]
        self.num_ranks -= width
        self._weighted_s = self._weighted_s - width * end_s if self.num_ranks else 0.0

    def ranks_before(self, time_s: float) -> int:
        return sum(width * bisect.bisect_right(ends_s, time_s) for width, ends_s in self._by_width.items())

    def slices_before(self, time_s: float) -> int:
        return sum(bisect.bisect_right(ends_s, time_s) for ends_s in self._by_width.values())

    def slices_after(self, time_s: float) -> int:
        return sum(len(ends_s) - bisect.bisect_right(ends_s, time_s) for ends_s in self._by_width.values())

    def busy_s(self, now_s: float) -> float:
        """GPU-seconds that what runs is expected to need still."""
        return max(0.0, self._weighted_s - now_s * self.num_ranks)

    def last_s(self) -> float:
        return max((ends_s[-1] for ends_s in self._by_width.values() if ends_s), default=0.0)


@dataclass(frozen=True, slots=True)
class Promise:
    """A block that is kept for a clip which fits nowhere now. Others may use it only if they end before ``ready_s``."""

    piece: Slice
    ready_s: float


class Pool:
    def __init__(self) -> None:
        self.pods: dict[str, PodSlices] = {}
        self.ends = Ends()
        self.promises: dict[str, Promise] = {}
        """By item."""
        self.num_ranks = 0
        """Of pods that take work."""
        self.widest = 0
        """Ranks of the largest pod that takes work; 0 without any."""
        self.num_idle = 0
        """Ranks that nobody holds, of pods that take work; those that are promised too."""
        self.num_open = 0
        """Those that are not promised."""
        self.num_promised = 0
        """Ranks, held or not."""
        self.num_taken_back = 0
        """Promises that are off, kept or not."""
        self._fits: dict[int, dict[int, OrderedDict[str, None]]] = {}
        """Pods by width and by the size of the free block in which their tightest slice of that width lies."""
        self._sizes: Counter[int] = Counter()
        self._names: list[str] = []
        """Of pods that take work."""
        self._next = -1

    def add(self, name: str, num_ranks: int) -> None:
        self.pods[name] = pod = PodSlices(name, num_ranks)
        self._names.append(name)
        self._resize(num_ranks, 1)
        self.num_ranks += num_ranks
        self.num_idle += num_ranks
        self._index(pod, 0)

    def _resize(self, num_ranks: int, change: int) -> None:
        self._sizes[num_ranks] += change
        self.widest = max((size for size, number in self._sizes.items() if number), default=0)

    def drain(self, name: str) -> None:
        """The pod takes nothing new, and goes when nothing runs there."""
        pod = self.pods[name]
        if not pod.draining:
            for item_key in [key for key, promise in self.promises.items() if promise.piece.pod == name]:
                self.forget(item_key)
            for piece in pod.held.values():
                self.ends.remove(piece.width, pod.ends_s[piece.start])
            before = pod.open
            pod.draining = True
            self._names.remove(name)
            self._resize(pod.num_ranks, -1)
            self.num_ranks -= pod.num_ranks
            self.num_idle -= pod.free.bit_count()
            self._index(pod, before)
        if not pod.held:
            del self.pods[name]

    def hold(self, item_key: str, piece: Slice, end_s: float) -> None:
        """Raises RuntimeError for ranks that are not free."""
        self.forget(item_key)
        pod = self.pods[piece.pod]
        mask, before = bits(piece.start, piece.width), pod.open
        if pod.draining or pod.free & mask != mask:
            raise RuntimeError(f"{item_key} cannot hold {piece}: free are {pod.free:b} of {pod}")
        pod.hold(item_key, piece, end_s)
        self.ends.add(piece.width, end_s)
        self.num_idle -= piece.width
        self._index(pod, before)

    def release(self, item_key: str, name: str) -> None:
        pod = self.pods[name]
        before, end_s = pod.open, pod.ends_s[pod.held[item_key].start]
        piece = pod.release(item_key)
        if not pod.draining:
            self.ends.remove(piece.width, end_s)
            self.num_idle += piece.width
            self._index(pod, before)
        elif not pod.held:
            del self.pods[name]

    def find(self, item_key: str, width: int, end_s: float) -> Slice | None:
        """A free slice for work that would end then: the tightest of any pod, of the item's own block if that is free.

        Raises ValueError for a width below 1.
        """
        if width < 1:
            raise ValueError(f"slice width {width} must be at least 1")
        own = self.promises.get(item_key)
        if own is not None and own.piece.width == width and self._is_free(own.piece):
            return own.piece
        if self.num_open >= width:
            for block in sorted(self._fits.get(width, ())):
                if pods := self._fits[width][block]:
                    pod = self.pods[next(iter(pods))]
                    return Slice(pod.pod, _start(pod.num_ranks, pod.open, width), width)
        return next(self._borrowed(item_key, width, end_s), None) if self.num_idle > self.num_open else None

    def _is_free(self, piece: Slice) -> bool:
        mask = bits(piece.start, piece.width)
        return self.pods[piece.pod].free & mask == mask

    def _borrowed(self, item_key: str, width: int, end_s: float) -> Iterator[Slice]:
        """Of blocks promised to others, what is free and back in time."""
        for key, promise in itertools.islice(self.promises.items(), LOOKED_AT):
            piece = promise.piece
            if key != item_key and end_s <= promise.ready_s and piece.width >= width:
                pod = self.pods[piece.pod]
                if found := tightest(pod.num_ranks, pod.free & bits(piece.start, piece.width), width):
                    yield Slice(pod.pod, found[1], width)

    def promise(self, item_key: str, width: int, now_s: float) -> Promise | None:
        """Keep for the item the block that is expected free soonest; None when all are kept for others."""
        self.forget(item_key)
        found = self.soonest(width, now_s)
        if found is not None:
            pod = self.pods[found.piece.pod]
            before = pod.open
            pod.promised |= bits(found.piece.start, width)
            self.num_promised += width
            self.promises[item_key] = found
            self._index(pod, before)
        return found

    def soonest(self, width: int, now_s: float) -> Promise | None:
        """Of the blocks that are not promised, as far as it looks: at other pods each time, where there are very many."""
        best: tuple[float, str, int] | None = None
        for pod in self._some():
            for start in range(0, pod.num_ranks - width + 1, width):
                if not pod.promised & bits(start, width):
                    ready_s = pod.ready_s(start, width, now_s)
                    if best is None or ready_s < best[0]:
                        best = ready_s, pod.pod, start
        return Promise(Slice(best[1], best[2], width), best[0]) if best else None

    def _some(self) -> Iterator[PodSlices]:
        for _ in range(min(LOOKED_AT, len(self._names))):
            self._next = (self._next + 1) % len(self._names)
            yield self.pods[self._names[self._next]]

    def forget(self, item_key: str) -> None:
        """Its promise is off."""
        promise = self.promises.pop(item_key, None)
        if promise is not None:
            pod = self.pods[promise.piece.pod]
            before = pod.open
            self.num_taken_back += 1
            self.num_promised -= promise.piece.width
            pod.promised &= ~bits(promise.piece.start, promise.piece.width)
            self._index(pod, before)

    def _index(self, pod: PodSlices, before: int) -> None:
        """The pod's open ranks are other ones than ``before``."""
        self.num_open += pod.open.bit_count() - before.bit_count()
        for width, (old, new) in _moves(pod.num_ranks, before, pod.open):
            blocks = self._fits.setdefault(width, {})
            if old:
                del blocks[old][pod.pod]
            if new:
                blocks.setdefault(new, OrderedDict())[pod.pod] = None

    def mistakes(self) -> Iterator[str]:
        """Whatever does not add up."""
        working = [pod for pod in self.pods.values() if not pod.draining]
        for pod in self.pods.values():
            yield from slice_mistakes(pod)
        counted = sum(pod.free.bit_count() for pod in working), sum(pod.num_ranks for pod in working)
        if counted != (self.num_idle, self.num_ranks):
            yield f"{self.num_idle} of {self.num_ranks} ranks counted as idle, the pods say {counted}"
        if (num_held := sum(piece.width for pod in working for piece in pod.held.values())) != self.ends.num_ranks:
            yield f"{self.ends.num_ranks} ranks are expected to come free, {num_held} are held"
        if sum(pod.open.bit_count() for pod in working) != self.num_open:
            yield f"{self.num_open} ranks counted as open, the pods say {[pod.open for pod in working]}"
        indexed = {(w, b, name) for w, blocks in self._fits.items() for b, names in blocks.items() for name in names}
        truth = {(w, b, pod.pod) for pod in working for w, b in _blocks(pod.num_ranks, pod.open) if b}
        if indexed != truth:
            yield f"slices are indexed as {sorted(indexed)}, the pods have {sorted(truth)}"
        kept: Counter[str] = Counter()
        for promise in self.promises.values():
            kept[promise.piece.pod] += bits(promise.piece.start, promise.piece.width)
        if kept != {pod.pod: pod.promised for pod in self.pods.values() if pod.promised}:
            yield f"{self.promises} are promised, the pods say otherwise"


def _start(num_ranks: int, free: int, width: int) -> int:
    found = tightest(num_ranks, free, width)
    if found is None:
        raise RuntimeError(f"the index says that {width} of {num_ranks} ranks are free in {free:b}")
    return found[1]


_TABLE: dict[tuple[int, int], tuple[tuple[int, int], ...]] = {}
_MOVES: dict[tuple[int, int, int], tuple[tuple[int, tuple[int, int]], ...]] = {}


def _blocks(num_ranks: int, free: int) -> tuple[tuple[int, int], ...]:
    """(Width, size of the block in which its tightest slice lies; 0 for none) of every width."""
    found = _TABLE.get((num_ranks, free))
    if found is None:
        widths = [1 << power for power in range(int(math.log2(num_ranks)) + 1)]
        fits = [(width, tightest(num_ranks, free, width)) for width in widths]
        found = _TABLE[num_ranks, free] = tuple((width, fit[0] if fit else 0) for width, fit in fits)
    return found


def _moves(num_ranks: int, before: int, after: int) -> tuple[tuple[int, tuple[int, int]], ...]:
    """(Width, (its block before, after)) of the widths for which the two differ."""
    found = _MOVES.get((num_ranks, before, after))
    if found is None:
        pairs = zip(_blocks(num_ranks, before), _blocks(num_ranks, after), strict=True)
        found = tuple((width, (old, new)) for (width, old), (_, new) in pairs if old != new)
        _MOVES[num_ranks, before, after] = found
    return found
