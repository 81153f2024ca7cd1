"""A crew of workers for ``experiments.bench.evaluation``: all there, or warm, before the clock starts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.vbench.evaluate import Evaluation, Session
from experiments.vbench.pool import Event, Pool, Ready, Scored
from experiments.vbench.process import Video
from experiments.vbench.shards import ShardStore, Task

SHARD_SIZE = 25


class Gathered:
    """A pool whose whole crew is there before the first shard goes out; for several evaluations, one after the other."""

    def __init__(self, pool: Pool) -> None:
        self.pool, self.num_workers = pool, pool.num_workers
        self._await(Ready)
        self._ready: list[Event] = []
        self.loaded: dict[int, str] = {}
        """The dimension that each worker has, once warm."""
        self.stand_ready()

    def _await(self, kind: type[Event]) -> None:
        """One such event of each worker."""
        seen: set[int] = set()
        while len(seen) < self.num_workers:
            event = self.pool.wait(1.0)
            if event is not None and not isinstance(event, kind):
                raise RuntimeError(f"a worker did not get ready: {event}")
            seen |= {event.worker} if event is not None else set()

    def stand_ready(self) -> None:
        self._ready = [Ready(worker) for worker in range(self.num_workers)]

    def warm(self, dimension: str, videos: Sequence[Video]) -> None:
        """Every worker loads the dimension and measures the videos."""
        for worker in range(self.num_workers):
            self.pool.start(worker, dimension, videos)
        self._await(Scored)
        self.loaded = dict.fromkeys(range(self.num_workers), dimension)

    def start(self, worker: int, dimension: str, videos: Sequence[Video]) -> None:
        self.pool.start(worker, dimension, videos)

    def wait(self, timeout_s: float) -> Event | None:
        return self._ready.pop() if self._ready else self.pool.wait(timeout_s)

    def close(self) -> None:
        self.pool.close()


def evaluated(crew: Gathered, work: Mapping[str, Sequence[Video]]) -> Evaluation:
    """From a ready crew to the last shard on disk."""
    with tempfile.TemporaryDirectory() as folder:
        evaluation = Evaluation(lambda arm: ShardStore(Path(folder)), lambda line: None)
        for dimension, videos in work.items():
            evaluation.ask(dimension, [Task("arm", video, f"{dimension}/{Path(video.path).name}") for video in videos])
        crew.stand_ready()
        Session(evaluation, crew, SHARD_SIZE, {}, crew.loaded).run()
        return evaluation
