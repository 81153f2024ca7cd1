"""The workers that measure, on Ray or in this process, and what becomes of each."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.vbench.process import Answer, Unavailable, Video, Worker

Make = Callable[[], Worker]
START_TIMEOUT_S = 900.0
"""How long a worker may take to be there: an autoscaled node boots in that time."""


@dataclass(frozen=True)
class Ready:
    worker: int


@dataclass(frozen=True)
class Scored:
    worker: int
    answer: Answer


@dataclass(frozen=True)
class Refused:
    """The dimension cannot be loaded by this worker."""

    worker: int
    why: str


@dataclass(frozen=True)
class Lost:
    """The worker died; another comes in its place, and says when it is ready."""

    worker: int
    why: str


@dataclass(frozen=True)
class Gone:
    """The worker never came, or cannot be used; none comes in its place."""

    worker: int
    why: str


Event = Ready | Scored | Refused | Lost | Gone


class Pool(Protocol):
    num_workers: int

    def start(self, worker: int, dimension: str, videos: Sequence[Video]) -> None: ...

    def wait(self, timeout_s: float) -> Event | None: ...

    def close(self) -> None: ...


def _answer(worker: Worker, dimension: str, videos: Sequence[Video]) -> Answer | str:
    """The answer, or why the dimension cannot be loaded."""
    try:
        return worker.score(dimension, videos)
    except Unavailable as error:
        return str(error)


class LocalPool:
    """Workers of this process, a thread each; one that raises is replaced."""

    def __init__(self, make: Make, num_workers: int = 1) -> None:
        self.num_workers = num_workers
        self._make = make
        self._workers = [make() for _ in range(num_workers)]
        self._new = list(range(num_workers))
        self._threads = concurrent.futures.ThreadPoolExecutor(num_workers)
        self._running: dict[concurrent.futures.Future[Answer | str], int] = {}

    def start(self, worker: int, dimension: str, videos: Sequence[Video]) -> None:
        self._running[self._threads.submit(_answer, self._workers[worker], dimension, videos)] = worker

    def wait(self, timeout_s: float) -> Event | None:
        if self._new:
            return Ready(self._new.pop(0))
        if not self._running:
            time.sleep(timeout_s)
            return None
        done, _ = concurrent.futures.wait(self._running, timeout_s, concurrent.futures.FIRST_COMPLETED)
        if not done:
            return None
        future = next(iter(done))
        worker = self._running.pop(future)
        if (error := future.exception()) is not None:
            return self._replace(worker, error)
        answer = future.result()
        return Refused(worker, answer) if isinstance(answer, str) else Scored(worker, answer)

    def _replace(self, worker: int, error: BaseException) -> Lost:
        self._workers[worker].close()
        self._workers[worker] = self._make()
        self._new.append(worker)
        return Lost(worker, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"[:300])

    def close(self) -> None:
        """Also in the middle of shards, which are then nobody's: workers end their processes, and so their threads."""
        for worker in self._workers:
            worker.close()
        self._threads.shutdown(wait=True, cancel_futures=True)


class Scorer:
    """What runs as a Ray actor."""

    def __init__(self, make: Make) -> None:
        self._worker = make()

    def ready(self, needed: Sequence[str]) -> list[str]:
        """What of the files that it needs cannot be seen from its node."""
        return [path for path in needed if not Path(path).exists()]

    def score(self, dimension: str, videos: Sequence[Video]) -> Answer | str:
        return _answer(self._worker, dimension, videos)


@dataclass
class _Slot:
    actor: Any
    since_s: float = field(default_factory=time.monotonic)
    ready: bool = False
    generation: int = 0


class RayPool:
    """Warm actors, spread over the cluster that this process is connected to; one that dies is replaced where there is room."""

    def __init__(self, make: Make, num_workers: int, resources: dict[str, float], needed: Sequence[str] = ()) -> None:
        self.num_workers = num_workers
        self._make, self._resources, self._needed = make, resources, tuple(needed)
        self._refs: dict[Any, int] = {}
        self._slots = {worker: self._hire(worker) for worker in range(num_workers)}

    def _hire(self, worker: int, generation: int = 0) -> _Slot:
        import ray

        actor = ray.remote(Scorer).options(
            num_cpus=self._resources.get("CPU", 0),
            num_gpus=self._resources.get("GPU", 0),
            scheduling_strategy="SPREAD",
            max_restarts=0,
            max_task_retries=0,
        ).remote(self._make)  # fmt: skip
        self._refs[actor.ready.remote(self._needed)] = worker
        return _Slot(actor, generation=generation)

    def start(self, worker: int, dimension: str, videos: Sequence[Video]) -> None:
        self._refs[self._slots[worker].actor.score.remote(dimension, list(videos))] = worker

    def wait(self, timeout_s: float) -> Event | None:
        import ray

        if late := self._late():
            return late
        if not self._refs:
            time.sleep(timeout_s)
            return None
        done, _ = ray.wait(list(self._refs), num_returns=1, timeout=timeout_s)
        return self._event(done[0]) if done else None

    def _event(self, ref: Any) -> Event:
        import ray

        worker = self._refs.pop(ref)
        slot = self._slots[worker]
        try:
            answer = ray.get(ref)
        except ray.exceptions.RayError as error:
            return self._replace(worker, slot, error)
        if not slot.ready:
            slot.ready = True
            return self._gone(worker, f"its node does not see {answer[0]}") if answer else Ready(worker)
        return Refused(worker, answer) if isinstance(answer, str) else Scored(worker, answer)

    def _replace(self, worker: int, slot: _Slot, error: Exception) -> Event:
        """Another actor in its place; none for one that dies three times before it is ready."""
        import ray

        why = next(iter(str(error).splitlines()), type(error).__name__)[:300]
        ray.kill(slot.actor)
        if not slot.ready and slot.generation >= 2:
            return self._gone(worker, f"it cannot be started: {why}")
        self._slots[worker] = self._hire(worker, 0 if slot.ready else slot.generation + 1)
        return Lost(worker, why)

    def _late(self) -> Gone | None:
        for worker, slot in self._slots.items():
            if not slot.ready and time.monotonic() - slot.since_s > START_TIMEOUT_S:
                self._refs = {ref: owner for ref, owner in self._refs.items() if owner != worker}
                return self._gone(worker, f"no node had room for {self._resources} in {START_TIMEOUT_S:.0f} s")
        return None

    def _gone(self, worker: int, why: str) -> Gone:
        import ray

        slot = self._slots.pop(worker)
        ray.kill(slot.actor)
        return Gone(worker, why)

    def close(self) -> None:
        import ray

        for slot in self._slots.values():
            ray.kill(slot.actor)
        self._slots, self._refs = {}, {}
