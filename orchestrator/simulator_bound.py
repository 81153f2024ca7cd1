"""What no schedule of a simulated sweep can beat, failures aside: a bound that knows every second that was drawn.

Four things are true of every schedule on ``S`` sketch workers, ``R`` heavy ranks in pods of ``w`` and ``D`` decode workers (or
the same ``S``) that ends at ``T``; the bound is the smallest ``T`` that contradicts none (docs/scheduling.md has the reasons):

- an item's own way through sketch, refining at its fastest and decode fits into ``T``;
- of the items with at least a certain time to go after their sketch, all sketches are made before that; the same of decodes;
  where the same workers do both, they do all of both;
- heavy ranks work for at least the GPU-seconds that the canonical allotment gives every clip within what ``T`` leaves it;
- no more clips are being refined at ``t`` than sketches can be out by then, nor than can still be decoded from then on, so that
  ranks have no more to do than that, and no clip is refined faster than on its best slice.
"""

from __future__ import annotations

import bisect
import itertools
import math
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from orchestrator.allotment import Frontier
from orchestrator.simulator_parts import Fleet
from orchestrator.simulator_world import ClipCost, World

TOLERANCE = 1e-5
"""Of the bound, which is on the safe side by as much."""


@dataclass(frozen=True)
class Kind:
    """Clips of one cost, in the order of what was drawn for them."""

    ways: Frontier
    useful_s: float
    """GPU-seconds of every stage on the slice that takes the fewest, as predicted."""
    speedup: float
    """Of the stage that gains most from its fastest slice."""
    drawn: array[float]
    """Real over predicted seconds, ascending."""
    sums: array[float]
    """Of the first n drawn."""
    rest_s: float
    """The least that anything but their stages takes one of them."""

    def gpu_s(self, within_s: float) -> float:
        """The fewest that refine them all, each within so long; infinite when one cannot be."""
        left_s, before, total = within_s - self.rest_s, 0, 0.0
        for way in self.ways.options:
            stop = bisect.bisect_right(self.drawn, left_s / way.seconds)
            if stop > before:
                total += way.gpu_s * (self.sums[stop] - self.sums[before])
                before = stop
        return total if before == len(self.drawn) else math.inf


def lower_bound_s(world: World, fleet: Fleet) -> float:
    """Seconds that every schedule of the world on these workers takes at least; 0 without items."""
    if not world.items:
        return 0.0
    numbers, on_pod = range(len(world.items)), fleet.decode_on == "pod"
    sketch = [world.sketch_s(n) for n in numbers]
    decode = [world.fastest_decode_s(n) if on_pod else world.decode_s(n) for n in numbers]
    refine = [world.fastest_refine_s(n) for n in numbers]
    kinds = _kinds(world, sketch, decode)
    over_s = len(world.items) * world.realism.hand_over_s
    pod_s = over_s + (sum(world.cheapest_decode_s(n) for n in numbers) if on_pod else 0.0)
    useful_s = sum(kind.useful_s * kind.sums[-1] for kind in kinds)
    narrow = _Room(world, fleet, max(kind.speedup for kind in kinds), sketch, [] if on_pod else decode)
    wide = _Room(world, fleet, fleet.ranks_per_pod, sketch, [] if on_pod else decode)

    def possible(guess_s: float) -> bool:
        return useful_s <= narrow.gpu_s(guess_s) and pod_s + sum(k.gpu_s(guess_s) for k in kinds) <= wide.gpu_s(guess_s)

    return _smallest(possible, _own_ways_s(fleet, sketch, refine, decode))


def _own_ways_s(fleet: Fleet, sketch: Sequence[float], refine: Sequence[float], decode: Sequence[float]) -> float:
    """The longest way of one item, and what the queues for sketches and decodes make of it."""
    before, after = map(sum, zip(sketch, refine, strict=True)), map(sum, zip(refine, decode, strict=True))
    found = [*map(sum, zip(sketch, refine, decode, strict=True)), _delivery_s(sketch, list(after), fleet.sketch_workers)]
    if fleet.decode_on != "pod":
        found.append(_delivery_s(decode, list(before), fleet.num_decoders))
    if fleet.decode_on == "sketchers":
        found.append((sum(sketch) + sum(decode)) / fleet.sketch_workers)
    return max(found)


def _delivery_s(head: Sequence[float], tail: Sequence[float], workers: int) -> float:
    """Of any items, the workers do all heads, and the last of them still has its tail to go."""
    done_s, best_s = 0.0, 0.0
    for own_s, after_s in sorted(zip(head, tail, strict=True), key=lambda pair: -pair[1]):
        done_s += own_s
        best_s = max(best_s, done_s / workers + after_s)
    return best_s


def _kinds(world: World, sketch: Sequence[float], decode: Sequence[float]) -> list[Kind]:
    members: dict[int, list[int]] = {}
    for number, kind in enumerate(world.which):
        members.setdefault(kind, []).append(number)
    return [_kind(world, world.costs[kind], numbers, sketch, decode) for kind, numbers in members.items()]


def _kind(world: World, cost: ClipCost, numbers: Sequence[int], sketch: Sequence[float], decode: Sequence[float]) -> Kind:
    drawn = array("d", sorted(world.refine[n] for n in numbers))
    sums = array("d", itertools.accumulate(drawn, initial=0.0))
    useful = [min(width * seconds for width, seconds in stage.items()) for stage in cost.stages]
    gains = [gpu_s / min(stage.values()) for gpu_s, stage in zip(useful, cost.stages, strict=True)]
    rest_s = world.realism.hand_over_s + min(sketch[n] + decode[n] for n in numbers)
    return Kind(cost.ways, sum(useful), max(gains), drawn, sums, rest_s)


class _Room:
    """What the heavy ranks can do when a clip keeps at most ``each`` of them busy: ``decode`` is empty where a pod decodes."""

    def __init__(self, world: World, fleet: Fleet, each: float, sketch: Sequence[float], decode: Sequence[float]) -> None:
        self.ranks, self.each = fleet.num_ranks, each
        most = math.ceil(self.ranks / each)
        self.out = _earliest(sorted(sketch)[:most], fleet.sketch_workers)
        self.left = _earliest(sorted(decode)[:most], fleet.num_decoders)
        self.drains = bool(decode)

    def gpu_s(self, until_s: float) -> float:
        """Up to a moment at which everything is decoded: the integral of how many ranks may be busy."""
        changes = [(moment, 1, 0) for moment in self.out if moment < until_s]
        changes += [(until_s - moment, 0, -1) for moment in self.left if moment < until_s]
        changes.sort()
        there, decodable = 0, sum(moment < until_s for moment in self.left)
        total, before = 0.0, 0.0
        for moment, come, gone in [*changes, (until_s, 0, 0)]:
            clips = min(there, decodable) if self.drains else there
            total += min(self.ranks, self.each * clips) * (moment - before)
            before, there, decodable = moment, there + come, decodable + gone
        return total


def _earliest(ascending: Sequence[float], workers: int) -> list[float]:
    """The earliest moments at which 1, 2, .. of some tasks can be done, given the shortest of them.

    So many are at least the work of the shortest, and one worker has its share of them.
    """
    sums = list(itertools.accumulate(ascending))
    return [max(total / workers, sums[number // workers]) for number, total in enumerate(sums)]


def _smallest(possible: Callable[[float], bool], least_s: float) -> float:
    """The largest guess known to be impossible, or the least there is."""
    if possible(least_s):
        return least_s
    low, high = least_s, 2 * least_s + 1.0
    while not possible(high):
        low, high = high, 2 * high
    while high - low > TOLERANCE * high:
        guess = (low + high) / 2
        low, high = (low, guess) if possible(guess) else (guess, high)
    return low
