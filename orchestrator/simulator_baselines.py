"""Schedules to compare with: the scheduler's own plain rules, and cost-blind round robin, which needs no scheduler."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterable

from orchestrator.degrees import powers
from orchestrator.simulator_parts import Fleet
from orchestrator.simulator_world import World
from orchestrator.sizing import SizingConfig

SHUFFLE = 0
"""Seed of the order in which round robin deals."""
FIRST_COME = {
    "fixed_1": SizingConfig(rule="fixed", width=1),
    "fixed_2": SizingConfig(rule="fixed", width=2),
    "fixed_4": SizingConfig(rule="fixed", width=4),
    "fixed_8": SizingConfig(rule="fixed", width=8),
    "efficient": SizingConfig(rule="efficient"),
}
"""First come, first served."""


def legal_widths(world: World, fleet: Fleet) -> tuple[int, ...]:
    """Widths that every stage of every clip can run on."""
    every = [stage.keys() for cost in world.costs for stage in cost.stages]
    return tuple(width for width in powers(fleet.ranks_per_pod) if all(width in widths for widths in every))


def round_robin_s(world: World, fleet: Fleet, width: int, decode_on_pod: bool = False) -> float:
    """Seconds of a sweep whose item ``i`` waits for slice ``i`` modulo their number, whatever it costs. Nothing fails.

    Items come shuffled, as arms in turn would deal one slice nothing but clips of one arm. Sketches and decodes are done in turn
    by whichever worker is free, and no queue is ever too long.
    """
    num_slices = fleet.pods * (fleet.ranks_per_pod // width)
    numbers = list(range(len(world.items)))
    random.Random(SHUFFLE).shuffle(numbers)
    sketched = ends(((0.0, world.sketch_s(n)) for n in numbers), fleet.sketch_workers)
    free = [0.0] * num_slices
    refined = []
    for turn, (n, there_s) in enumerate(zip(numbers, sketched, strict=True)):
        action, piece = world.cost(n).action, turn % num_slices
        own_s = world.refine_s(n, action.num_sketched, len(action.stages), width)
        own_s += world.decode_s(n, width) if decode_on_pod else 0.0
        free[piece] = max(free[piece], there_s) + own_s
        refined.append((free[piece], n))
    if decode_on_pod:
        return max(free)
    return max(ends(((there_s, world.decode_s(n)) for there_s, n in sorted(refined)), fleet.decode_workers), default=0.0)


def ends(tasks: Iterable[tuple[float, float]], workers: int) -> list[float]:
    """When tasks of (there from, seconds), taken in turn by whichever worker is free first, are done."""
    free, found = [0.0] * workers, []
    for there_s, own_s in tasks:
        end_s = max(heapq.heappop(free), there_s) + own_s
        heapq.heappush(free, end_s)
        found.append(end_s)
    return found


def best_round_robin(world: World, fleet: Fleet, decode_on_pod: bool = False) -> tuple[int, float]:
    """(Width, seconds) of the width at which it takes least. Raises ValueError when clips have no width in common."""
    widths = legal_widths(world, fleet)
    if not widths:
        raise ValueError("the clips have no width in common, so no fixed one runs them all")
    return min(((width, round_robin_s(world, fleet, width, decode_on_pod)) for width in widths), key=lambda pair: pair[1])
