"""Schedules to compare with: the scheduler's own plain rules, and cost-blind round robin, which needs no scheduler."""

from __future__ import annotations

import heapq
import random
from collections import deque

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


def round_robin_s(world: World, fleet: Fleet, width: int) -> float:
    """Seconds of a sweep whose item ``i`` waits for slice ``i`` modulo their number, whatever it costs. Nothing fails.

    Items come shuffled, as arms in turn would deal one slice nothing but clips of one arm. No queue is ever too long.
    """
    return _RoundRobin(world, fleet, width).run()


class _RoundRobin:
    def __init__(self, world: World, fleet: Fleet, width: int) -> None:
        self.world, self.fleet, self.width = world, fleet, width
        self.order = list(range(len(world.items)))
        random.Random(SHUFFLE).shuffle(self.order)
        num_slices = fleet.pods * (fleet.ranks_per_pod // width)
        self.slice_of = {n: turn % num_slices for turn, n in enumerate(self.order)}
        self.sketches, self.latents = deque(self.order), deque[int]()
        self.lines: list[deque[int]] = [deque() for _ in range(num_slices)]
        """Clips that wait for each slice."""
        self.running = [False] * num_slices
        self.idle = {"sketch": fleet.sketch_workers, "decode": fleet.decode_workers}
        self.ends: list[tuple[float, int, str, int]] = []
        """What is at work: until when, a number, what, whose."""

    def run(self) -> float:
        now_s = 0.0
        self._start(now_s)
        while self.ends:
            now_s, _, what, n = heapq.heappop(self.ends)
            self._finish(what, n)
            self._start(now_s)
            self._start_clip(now_s, self.slice_of[n])
        return now_s

    def _finish(self, what: str, n: int) -> None:
        if what == "refine":
            self.running[self.slice_of[n]] = False
            if self.fleet.decode_on != "pod":
                self.latents.append(n)
            return
        self.idle["decode" if what == "decode" and self.fleet.decode_on == "workers" else "sketch"] += 1
        if what == "sketch":
            self.lines[self.slice_of[n]].append(n)

    def _start(self, now_s: float) -> None:
        decoders = "decode" if self.fleet.decode_on == "workers" else "sketch"
        while self.latents and self.idle[decoders]:
            self.idle[decoders] -= 1
            n = self.latents.popleft()
            self._push(now_s + self.world.decode_s(n), "decode", n)
        while self.sketches and self.idle["sketch"]:
            self.idle["sketch"] -= 1
            n = self.sketches.popleft()
            self._push(now_s + self.world.sketch_s(n), "sketch", n)

    def _start_clip(self, now_s: float, piece: int) -> None:
        if self.lines[piece] and not self.running[piece]:
            self.running[piece] = True
            n = self.lines[piece].popleft()
            self._push(now_s + self._refine_s(n), "refine", n)

    def _refine_s(self, n: int) -> float:
        action = self.world.cost(n).action
        seconds = self.world.refine_s(n, action.num_sketched, len(action.stages), self.width)
        return seconds + (self.world.decode_s(n, self.width) if self.fleet.decode_on == "pod" else 0.0)

    def _push(self, end_s: float, what: str, n: int) -> None:
        heapq.heappush(self.ends, (end_s, len(self.ends), what, n))


def best_round_robin(world: World, fleet: Fleet) -> tuple[int, float]:
    """(Width, seconds) of the width at which it takes least. Raises ValueError when clips have no width in common."""
    widths = legal_widths(world, fleet)
    if not widths:
        raise ValueError("the clips have no width in common, so no fixed one runs them all")
    return min(((width, round_robin_s(world, fleet, width)) for width in widths), key=lambda pair: pair[1])
