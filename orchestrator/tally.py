"""Who is busy with what, read off the events and commands as they pass: for the live view and the metrics.

It decides nothing and asks nobody; an event costs the same however many items and workers there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.events import (
    Command,
    Decoded,
    Event,
    Failed,
    Finish,
    GiveUp,
    PhaseDone,
    Sketched,
    StartDecode,
    StartPhase,
    StartSketch,
    WorkerJoined,
    WorkerLeaving,
    WorkerLost,
)
from orchestrator.split import POOLS, Pool

POOL_OF_KIND: Mapping[str, Pool] = {"sketch": "sketch", "pod": "heavy", "decode": "decode"}
MEMORY_S = 60.0
"""After so long, what a pool did counts half in its recent share."""


@dataclass(frozen=True)
class Job:
    """One start of one phase of one item: on ``worker``, holding ``ranks`` of it (none of a sketch or decode worker)."""

    item_key: str
    attempt: int
    phase: str
    """sketch, refine or decode."""
    worker: str
    started_s: float
    pool: Pool
    """The worker's, whatever the phase."""
    ranks: range | None = None
    begin: int = 0
    stop: int = 0
    """Stages of a refining phase."""

    @property
    def width(self) -> int:
        return 1 if self.ranks is None else len(self.ranks)


@dataclass(frozen=True)
class Ended:
    """A job that is over, for whatever reason; ``done``: with a result."""

    job: Job
    seconds: float
    done: bool

    @property
    def gpu_s(self) -> float:
        return self.seconds * self.job.width


@dataclass
class Worker:
    """One worker and what it does. ``size`` is its ranks, 1 for others; ``going``: it takes nothing new."""

    pool: Pool
    size: int
    joined_s: float
    going: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    busy_s: float = 0.0
    """Ranks x seconds of jobs that are over."""

    @property
    def busy(self) -> int:
        return sum(job.width for job in self.jobs.values())

    def busy_share(self, now_s: float) -> float:
        """Since it joined, in [0, 1]."""
        alive_s = self.size * (now_s - self.joined_s)
        running_s = sum(job.width * (now_s - job.started_s) for job in self.jobs.values())
        return min(1.0, (self.busy_s + running_s) / alive_s) if alive_s > 0 else 0.0


@dataclass
class PoolTime:
    """All workers of a pool: how many ranks there are, how many are busy, and both over time."""

    size: int = 0
    busy: int = 0
    busy_s: float = 0.0
    alive_s: float = 0.0
    _until_s: float = 0.0
    _recent: float = 0.0
    _weight: float = 0.0
    """Of :attr:`_recent`: below 1 until it has seen enough."""

    def advance(self, now_s: float) -> None:
        passed_s = max(0.0, now_s - self._until_s)
        self._until_s = max(self._until_s, now_s)
        self.busy_s += self.busy * passed_s
        self.alive_s += self.size * passed_s
        if self.size:
            kept = 0.5 ** (passed_s / MEMORY_S)
            self._recent = kept * self._recent + (1 - kept) * self.busy / self.size
            self._weight = kept * self._weight + 1 - kept

    @property
    def recent(self) -> float:
        """Busy share of late."""
        return min(1.0, self._recent / self._weight) if self._weight > 0 else 0.0

    @property
    def idle_share(self) -> float:
        """From the first worker on, in [0, 1]."""
        return 1.0 - self.busy_s / self.alive_s if self.alive_s > 0 else 0.0


class Tally:
    def __init__(self) -> None:
        self.now_s = 0.0
        """Of the last event."""
        self.pools: dict[Pool, PoolTime] = {pool: PoolTime() for pool in POOLS}
        self.workers: dict[str, Worker] = {}
        self.jobs: dict[str, Job] = {}
        """What runs, by item."""
        self.num_finished = self.num_given_up = self.num_failed = self.num_lost = 0
        """``num_failed``: attempts; ``num_lost``: workers."""

    @property
    def gpu_s(self) -> float:
        """Worked so far, by all pools."""
        return sum(time.busy_s for time in self.pools.values())

    @property
    def pods(self) -> Iterator[tuple[str, Worker]]:
        return ((name, worker) for name, worker in self.workers.items() if worker.pool == "heavy")

    def num_workers(self, pool: Pool) -> int:
        return sum(worker.pool == pool for worker in self.workers.values())

    def take(self, event: Event, commands: Sequence[Command]) -> list[Ended]:
        """Take note; the jobs that this event ended."""
        self.advance(event.time_s)
        ended = [*self._ends(event)]
        for command in commands:
            self._start(command)
        return ended

    def advance(self, now_s: float) -> None:
        """Let time pass without an event."""
        self.now_s = max(self.now_s, now_s)
        for time in self.pools.values():
            time.advance(now_s)

    def _ends(self, event: Event) -> Iterator[Ended]:
        if isinstance(event, WorkerJoined):
            self._join(event)
        elif isinstance(event, WorkerLost | WorkerLeaving):
            yield from self._leave(event)
        elif isinstance(event, Sketched | PhaseDone | Decoded | Failed):
            job = self.jobs.get(event.item_key)
            if job is not None and job.attempt == event.attempt:
                self.num_failed += isinstance(event, Failed)
                yield self._end(job, done=not isinstance(event, Failed))

    def _join(self, event: WorkerJoined) -> None:
        pool = POOL_OF_KIND[event.kind]
        self.workers[event.worker] = Worker(pool, event.num_ranks, event.time_s)
        self.pools[pool].size += event.num_ranks

    def _leave(self, event: WorkerLost | WorkerLeaving) -> Iterator[Ended]:
        worker = self.workers.get(event.worker)
        if worker is None:
            return
        if isinstance(event, WorkerLost):
            self.num_lost += 1
            for job in list(worker.jobs.values()):
                if not event.ranks or job.ranks is None or set(event.ranks) & set(job.ranks):
                    yield self._end(job, done=False)
        self._retire(event.worker, worker)

    def _retire(self, name: str, worker: Worker) -> None:
        """Only what still runs on it counts, and it is gone once nothing does."""
        self.pools[worker.pool].size -= worker.size - worker.busy
        worker.size, worker.going = worker.busy, True
        if not worker.jobs:
            self.workers.pop(name, None)

    def _end(self, job: Job, done: bool) -> Ended:
        del self.jobs[job.item_key]
        ended = Ended(job, self.now_s - job.started_s, done)
        worker = self.workers.get(job.worker)
        if worker is not None:
            del worker.jobs[job.item_key]
            worker.busy_s += ended.gpu_s
            self.pools[job.pool].busy -= job.width
            if worker.going:
                self._retire(job.worker, worker)
        return ended

    def _start(self, command: Command) -> None:
        if isinstance(command, Finish):
            self.num_finished += 1
        elif isinstance(command, GiveUp):
            self.num_given_up += 1
        elif (job := self._job(command)) is not None:
            self.jobs[job.item_key] = job
            if (worker := self.workers.get(job.worker)) is not None:
                worker.jobs[job.item_key] = job
                self.pools[worker.pool].busy += job.width

    def _job(self, command: Command) -> Job | None:
        about = command.item_key, command.attempt
        if isinstance(command, StartSketch):
            return Job(*about, "sketch", command.worker, self.now_s, "sketch")
        if isinstance(command, StartPhase):
            piece = command.slice
            return Job(*about, "refine", piece.pod, self.now_s, "heavy", piece.ranks, command.begin, command.stop)
        if isinstance(command, StartDecode):
            worker, ranks = self.workers.get(command.worker), command.slice.ranks if command.slice else None
            return Job(*about, "decode", command.worker, self.now_s, worker.pool if worker else "decode", ranks)
        return None
