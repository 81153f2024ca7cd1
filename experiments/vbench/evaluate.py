"""Measures videos on the workers of a pool: hands out shards, keeps what comes back, and loses nothing on the way."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments.vbench.board import MAX_ATTEMPTS, Board, Shard
from experiments.vbench.pool import Event, Gone, Lost, Pool, Ready, Refused, Scored
from experiments.vbench.process import Row
from experiments.vbench.shards import ShardStore, Task
from orchestrator.mistakes import RunError

POLL_S = 1.0
TELL_S = 10.0

Tell = Callable[[str], None]
StoreOf = Callable[[str], ShardStore]
"""Where the shards of an arm are."""


class Evaluation:
    """What was asked for, and what came of it: ``rows`` by key, what an earlier start measured included."""

    def __init__(self, store_of: StoreOf, tell: Tell) -> None:
        self.store_of, self.tell = store_of, tell
        self.weights: Mapping[str, Sequence[Any]] = {}
        """Fingerprints by dimension, written beside every shard."""
        self.rows: dict[str, Row] = {}
        self.unavailable: dict[str, str] = {}
        """Why a dimension could not be measured, or not to its end."""
        self.num_scored: Counter[str] = Counter()
        """Videos by dimension, measured by this start."""
        self._asked: set[str] = set()
        self._known: dict[tuple[str, str], dict[str, Row]] = {}
        self._new: dict[str, list[Task]] = defaultdict(list)

    def ask(self, dimension: str, tasks: Sequence[Task]) -> None:
        """Have these measured, unless they were, or will be. What failed at an earlier start is tried again."""
        for task in tasks:
            if task.key in self._asked:
                continue
            self._asked.add(task.key)
            row = self._stored(dimension, task.arm).get(task.key)
            if row is not None and row.failed is None:
                self.rows[task.key] = row
            elif dimension not in self.unavailable:
                self._new[dimension].append(task)

    def reject(self, dimension: str, flaws: Mapping[Task, str], about: dict[str, str]) -> None:
        """These are not to be measured, and why: told as failed."""
        new = {task: why for task, why in flaws.items() if task.key not in self._asked}
        self._asked |= {task.key for task in new}
        if new and dimension not in self.unavailable:
            self.keep(Shard(dimension, tuple(new)), [Row(failed=why) for why in new.values()], about)

    def found(self, dimension: str, arm: str, tasks: Sequence[Task], requested: bool) -> tuple[Mapping[str, Row], str]:
        """Rows by key, and what measured them where that was not what is here now.

        What cannot be measured now, or was not asked for, has the rows of an earlier start if they are of these very videos.
        """
        rows = self.rows if requested else self._stored(dimension, arm)
        if all(task.key in rows for task in tasks) or (requested and dimension not in self.unavailable):
            return rows, ""
        return self.store_of(arm).earlier(dimension, tasks) or (rows, "")

    def _stored(self, dimension: str, arm: str) -> dict[str, Row]:
        if (dimension, arm) not in self._known:
            self._known[dimension, arm] = self.store_of(arm).rows(dimension)
        return self._known[dimension, arm]

    @property
    def num_waiting(self) -> int:
        return sum(map(len, self._new.values()))

    def take_new(self) -> dict[str, list[Task]]:
        new, self._new = dict(self._new), defaultdict(list)
        return new

    def keep(self, shard: Shard[Task], rows: Sequence[Row], about: dict[str, str]) -> None:
        """On disk, by arm, before anybody counts on it. Raises DiskFull."""
        by_arm: dict[str, list[tuple[Task, Row]]] = defaultdict(list)
        for task, row in zip(shard.tasks, rows, strict=True):
            by_arm[task.arm].append((task, row))
        for arm, pairs in by_arm.items():
            told = {**about, "weights": list(self.weights.get(shard.dimension, ()))}
            self.store_of(arm).write(shard.dimension, [task for task, _ in pairs], [row for _, row in pairs], **told)
        self.rows |= {task.key: row for task, row in zip(shard.tasks, rows, strict=True)}
        self.num_scored[shard.dimension] += len(rows)


class Session:
    """One crew of workers and what it measures. ``about`` is written beside every shard: how it was measured.

    ``loaded``: workers that have a dimension's model from an earlier session, and need not be thought worth loading it.
    """

    def __init__(
        self,
        evaluation: Evaluation,
        pool: Pool,
        shard_size: int,
        about: dict[str, str],
        loaded: Mapping[int, str] | None = None,
    ) -> None:
        self.evaluation, self.pool, self.about = evaluation, pool, about
        self.board: Board[Task] = Board(pool.num_workers, shard_size, loaded)
        self._idle: set[int] = set()
        self._coming = set(range(pool.num_workers))
        """Workers that may still become ready."""
        self._told_s = time.monotonic()

    def run(self, more: Callable[[], bool] = lambda: False) -> None:
        """Until all is measured or given up. ``more`` may ask for further videos, and says whether others may still come.

        Raises RunError when no worker is left.
        """
        coming = True
        while True:
            coming = coming and more()
            for dimension, tasks in self.evaluation.take_new().items():
                self.board.add(dimension, tasks)
            self._hand_out()
            if self.board.done and not coming:
                return
            event = self.pool.wait(POLL_S)
            if event is not None:
                self._take(event)
            self._report()

    def _hand_out(self) -> None:
        for worker in sorted(self._idle):
            shard = self.board.choose(worker)
            if shard is not None:
                self._idle.discard(worker)
                self.pool.start(worker, shard.dimension, [task.video for task in shard.tasks])
        if self.board.num_left and not self._coming and not self.board.num_busy:
            self._give_up_rest()

    def _give_up_rest(self) -> None:
        """Nobody is at work, nobody comes, and those that idle can load none of what is left."""
        if not self._idle:
            raise RunError(f"no worker is left, with {self.board.num_left} videos to measure; what was measured is kept")
        for dimension, tasks in self.board.clear().items():
            self._refuse(dimension, tasks, "no worker that is left can load it")

    def _take(self, event: Event) -> None:
        self._coming.discard(event.worker)
        match event:
            case Ready(worker):
                self._idle.add(worker)
            case Scored(worker, answer):
                self.evaluation.keep(self._held(worker), answer.rows, self.about)
                self.board.finished(worker, answer.work_s, answer.load_s)
                self._idle.add(worker)
            case Refused(worker, why):
                dimension = self._held(worker).dimension
                self._refuse(dimension, self.board.refused(worker), why)
                self._idle.add(worker)
            case Lost(worker, why):
                self._lose(worker, f"it was lost and is replaced: {why}")
                self._coming.add(worker)
            case Gone(worker, why):
                self._lose(worker, why)

    def _held(self, worker: int) -> Shard[Task]:
        shard = self.board.has(worker)
        if shard is None:
            raise RuntimeError(f"worker {worker} answered without having been asked")
        return shard

    def _refuse(self, dimension: str, tasks: Sequence[Task], why: str) -> None:
        """``tasks`` is what is given up; without any, another worker is still to try."""
        if tasks:
            self.evaluation.unavailable.setdefault(dimension, why)
            self.evaluation.tell(f"{dimension} is given up: {why}")

    def _lose(self, worker: int, why: str) -> None:
        self.evaluation.tell(f"worker {worker}: {why}")
        given_up = self.board.lost(worker)
        if given_up is not None:
            failed = Row(failed=f"its worker died {MAX_ATTEMPTS} times; the last time: {why}")
            self.evaluation.keep(given_up, [failed] * len(given_up.tasks), self.about)

    def _report(self) -> None:
        if time.monotonic() - self._told_s < TELL_S:
            return
        self._told_s = time.monotonic()
        left = ", ".join(f"{name} {number}" for name, number in self.board.waiting.items())
        self.evaluation.tell(f"{sum(self.evaluation.num_scored.values())} videos measured; waiting: {left or 'none'}")
