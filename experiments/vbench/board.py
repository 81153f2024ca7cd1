"""Which worker measures what next: no clock, no Ray, no files.

A worker keeps its dimension, and so its model, while videos of it are left. Free, it goes where the most seconds are left for
each worker there: longest first, and several on what takes long. Shards get smaller towards the end, so that all end together.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from experiments.vbench.dimensions import video_s

Task = TypeVar("Task")
MAX_ATTEMPTS = 3
"""Of a shard whose worker dies."""
LOAD_S = 10.0
"""Loading a model, before one was loaded."""
MAX_REFUSALS = 3
"""Workers that cannot load a dimension before it is given up, if none could."""
MEMORY = 0.5
"""Share of what was seen before in the seconds of a video."""


@dataclass(frozen=True)
class Shard(Generic[Task]):
    """Videos of one dimension for one worker."""

    dimension: str
    tasks: tuple[Task, ...]
    attempt: int = 1


@dataclass
class _Lane(Generic[Task]):
    """What is left of a dimension, and what its videos cost."""

    left: deque[Task] = field(default_factory=deque)
    video_s: float = 1.0
    load_s: float = LOAD_S
    measured: bool = False
    refused: set[int] = field(default_factory=set)
    """Workers that cannot load it."""

    @property
    def left_s(self) -> float:
        return len(self.left) * self.video_s


class Board(Generic[Task]):
    """The work that is left, and who has what of it."""

    def __init__(self, num_workers: int, shard_size: int, loaded: Mapping[int, str] | None = None) -> None:
        """``loaded``: workers that have a dimension's model already."""
        if shard_size < 1 or num_workers < 1:
            raise ValueError(f"at least one worker and one video a shard are needed (got {num_workers} and {shard_size})")
        self.num_workers, self.shard_size = num_workers, shard_size
        self._lanes: dict[str, _Lane[Task]] = {}
        self._again: deque[Shard[Task]] = deque()
        self._busy: dict[int, Shard[Task]] = {}
        self._at: dict[int, str] = dict(loaded or {})
        """The dimension whose model a worker has."""

    @property
    def num_left(self) -> int:
        """Videos that nobody has begun."""
        return sum(len(lane.left) for lane in self._lanes.values()) + sum(len(shard.tasks) for shard in self._again)

    @property
    def done(self) -> bool:
        return not self._busy and not self.num_left

    @property
    def num_busy(self) -> int:
        return len(self._busy)

    @property
    def waiting(self) -> dict[str, int]:
        """Videos that nobody has begun, by dimension; those of shards to be done again apart."""
        return {name: len(lane.left) for name, lane in self._lanes.items() if lane.left}

    def add(self, dimension: str, tasks: Iterable[Task]) -> None:
        lane = self._lanes.setdefault(dimension, _Lane(video_s=video_s(dimension)))
        lane.left.extend(tasks)

    def choose(self, worker: int) -> Shard[Task] | None:
        """The next shard of an idle worker, which has it from now on. None: nothing, or nothing that it would end sooner."""
        shard = self._retried(worker) or self._cut(self._dimension_for(worker))
        if shard is not None:
            self._busy[worker] = shard
            self._at[worker] = shard.dimension
        return shard

    def finished(self, worker: int, seconds: float, load_s: float = 0.0) -> None:
        """A shard is done, in so many seconds without those of loading."""
        shard = self._busy.pop(worker)
        lane = self._lanes.get(shard.dimension)
        if lane is None:
            return
        seen = seconds / max(1, len(shard.tasks))
        lane.video_s = MEMORY * lane.video_s + (1 - MEMORY) * seen if lane.measured else seen
        lane.measured = True
        if load_s > 0:
            lane.load_s = load_s

    def lost(self, worker: int) -> Shard[Task] | None:
        """A worker died. Its shard is done again by another, or returned when that was tried often enough."""
        self._at.pop(worker, None)
        shard = self._busy.pop(worker, None)
        if shard is None:
            return None
        if shard.attempt >= MAX_ATTEMPTS:
            return shard
        self._again.append(Shard(shard.dimension, shard.tasks, shard.attempt + 1))
        return None

    def refused(self, worker: int) -> list[Task]:
        """A worker cannot load its shard's dimension: another may. Returns what is given up, when it seems that none can."""
        shard = self._busy.pop(worker)
        self._at.pop(worker, None)
        lane = self._lanes.get(shard.dimension)
        if lane is None:
            return list(shard.tasks)
        lane.refused.add(worker)
        lane.left.extendleft(reversed(shard.tasks))
        enough = self.num_workers if lane.measured else min(MAX_REFUSALS, self.num_workers)
        return self._drop(shard.dimension) if len(lane.refused) >= enough else []

    def _drop(self, dimension: str) -> list[Task]:
        """Forget what nobody has begun of a dimension."""
        waiting = [shard for shard in self._again if shard.dimension == dimension]
        self._again = deque(shard for shard in self._again if shard.dimension != dimension)
        return [*self._lanes.pop(dimension).left, *(task for shard in waiting for task in shard.tasks)]

    def clear(self) -> dict[str, list[Task]]:
        """Give up everything that nobody has begun."""
        again = {shard.dimension for shard in self._again}
        for dimension in again - self._lanes.keys():
            self._lanes[dimension] = _Lane()
        return {name: tasks for name in list(self._lanes) if (tasks := self._drop(name))}

    def has(self, worker: int) -> Shard[Task] | None:
        """What a worker is at."""
        return self._busy.get(worker)

    def _retried(self, worker: int) -> Shard[Task] | None:
        able = [shard for shard in self._again if self._can(worker, shard.dimension)]
        if not able:
            return None
        found = next((shard for shard in able if shard.dimension == self._at.get(worker)), able[0])
        self._again.remove(found)
        return found

    def _can(self, worker: int, dimension: str) -> bool:
        return dimension not in self._lanes or worker not in self._lanes[dimension].refused

    def _dimension_for(self, worker: int) -> str | None:
        mine = self._at.get(worker)
        if mine is not None and mine in self._lanes and self._lanes[mine].left:
            return mine
        crowd: dict[str, int] = defaultdict(int)
        for shard in self._busy.values():
            crowd[shard.dimension] += 1
        lanes = {name: lane for name, lane in self._lanes.items() if lane.left and worker not in lane.refused}
        worth = [name for name, lane in lanes.items() if _worth(lane, crowd[name])]
        return max(worth, key=lambda name: lanes[name].left_s / (1 + crowd[name]), default=None)

    def _cut(self, dimension: str | None) -> Shard[Task] | None:
        if dimension is None:
            return None
        left = self._lanes[dimension].left
        size = min(self.shard_size, math.ceil(len(left) / self.num_workers))
        return Shard(dimension, tuple(left.popleft() for _ in range(size)))


def _worth(lane: _Lane[Task], num_there: int) -> bool:
    """Whether one more worker would load the model and end a video before those that are there have done them all."""
    return not num_there or lane.load_s + lane.video_s < lane.left_s / num_there
