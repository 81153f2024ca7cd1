"""Metrics as Ray tasks: beside a running sweep, on the nodes that make its videos, and over a cluster that is free.

Tasks beside a sweep hold no CPUs, so that no worker ever waits for one and no autoscaler hears of them, and run with the time
that nobody else wants. What they do not get done is done afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any

from experiments.metrics.completing import Lost, Measurements
from experiments.metrics.measure import Job, measure
from experiments.metrics.quality import Row, partners
from orchestrator.types import Record

LOOK_S = 0.5
"""How often a running sweep asks for what is measured: asking costs the driver some milliseconds."""
MAX_RETRIES = 2
"""Of a task whose node goes."""
CPUS = 1
"""Of a task when nothing else runs."""


def measure_idly(job: Job) -> Row:
    """:func:`measure` at the lowest priority there is, on one thread."""
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return measure(job)


def measure_alone(job: Job) -> Row:
    """:func:`measure` on one thread."""
    import torch

    torch.set_num_threads(CPUS)
    return measure(job)


class Beside:
    """Measures each video once it and its reference's are there. Everything happens in calls of the sweep's own thread."""

    def __init__(self, measurements: Measurements, tasks_per_node: int, records: Iterable[Record] = ()) -> None:
        """``records``: the videos that are there already."""
        self.measurements, self.tasks_per_node = measurements, tasks_per_node
        records = list(records)
        self._of_scene: defaultdict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
        """By prompt and seed, then by item: the videos that may be compared."""
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)
        """By the host that made the video. A host that is here made some of the run's."""
        for record in records:
            self._note(record)
        for job in measurements.todo(records):
            self._queue(job)
        self._running: dict[Any, tuple[Job, str]] = {}
        """By Ray's reference: the job and the node it is on."""
        self._looked_s = 0.0
        self.num_measured = 0
        self.lost: list[Lost] = []

    def on_record(self, record: Record) -> None:
        """A video is finished: it can be measured, and those that wait for it as their reference."""
        self._note(record)
        same = self._of_scene[record.prompt_id, record.seed]
        theirs = partners(same.values(), self.measurements.wish.against)
        for other in same.values():
            if other is record or theirs.get(other.item_key) is record:
                self._queue(self.measurements.job(other, theirs.get(other.item_key)))

    @property
    def num_left(self) -> int:
        """Videos that are being measured, or wait for it."""
        return len(self._running) + sum(map(len, self._waiting.values()))

    def _note(self, record: Record) -> None:
        self._of_scene[record.prompt_id, record.seed][record.item_key] = record
        self._waiting[record.host]

    def _queue(self, job: Job | None) -> None:
        """A video is looked at once: one that is compared waits for its reference."""
        if job is not None and (job.reference is not None or not job.compares):
            self._waiting[job.record.host].append(job)

    def _next(self, host: str) -> Job | None:
        """A job that waits: of a video made on this host, else of the host with the most."""
        queue = self._waiting.get(host) or max(self._waiting.values(), key=len, default=None)
        return queue.popleft() if queue else None

    def look(self, *_: Any) -> None:
        """Take what is measured, and have more measured. Never waits."""
        if not self.num_left or time.monotonic() < self._looked_s + LOOK_S:
            return
        self._looked_s = time.monotonic()
        import ray

        if ray.is_initialized():
            self._collect(timeout_s=0)
            self._start_beside()

    def drain(self, on_row: Callable[[Row], None] = lambda row: None) -> None:
        """Measure all that waits, over the whole cluster, and wait for it. The sweep's workers are gone."""
        import ray

        task = ray.remote(num_cpus=CPUS, max_retries=MAX_RETRIES, scheduling_strategy="SPREAD")(measure_alone)
        most = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
        while self.num_left:
            while len(self._running) < most and (job := self._next("")):
                self._running[task.remote(job)] = (job, "")
            self._collect(timeout_s=1.0, on_row=on_row)

    def _start_beside(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        busy = Counter(node for _, node in self._running.values())
        for node in ray.nodes() if any(self._waiting.values()) else ():
            name, host = node["NodeID"], node["NodeManagerHostname"]
            where = NodeAffinitySchedulingStrategy(name, soft=True)
            task = ray.remote(num_cpus=0, max_retries=MAX_RETRIES, scheduling_strategy=where)(measure_idly)
            while node["Alive"] and host in self._waiting and busy[name] < self.tasks_per_node and (job := self._next(host)):
                self._running[task.remote(job)] = (job, name)
                busy[name] += 1

    def _collect(self, timeout_s: float, on_row: Callable[[Row], None] = lambda row: None) -> None:
        import ray

        if not self._running:
            return
        there, _ = ray.wait(list(self._running), num_returns=len(self._running) if not timeout_s else 1, timeout=timeout_s)
        for ref in there:
            job, _ = self._running.pop(ref)
            try:
                row = ray.get(ref)
            except ray.exceptions.RayError as error:
                self.lost.append(Lost(job.record, _told(error)))
                continue
            self.num_measured += 1
            self.measurements.add(row)
            on_row(row)


def _told(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
