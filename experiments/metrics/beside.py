"""Metrics as Ray tasks: beside a running sweep, on the nodes that make its videos, and over a cluster that is free.

Tasks beside a sweep hold no CPUs, so that no worker ever waits for one and no autoscaler hears of them, and run with the time
that nobody else wants. What they do not get done is done afterwards.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter, deque
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
        self._records = {record.item_key: record for record in records}
        self._waiting = deque(job for job in measurements.todo(self._records.values()) if _ready(job))
        self._running: dict[Any, tuple[Job, str]] = {}
        """By Ray's reference: the job and the node it is on."""
        self._looked_s = 0.0
        self.num_measured = 0
        self.lost: list[Lost] = []

    def on_record(self, record: Record) -> None:
        """A video is finished: it can be measured, and those that wait for it as their reference."""
        self._records[record.item_key] = record
        same = [r for r in self._records.values() if (r.prompt_id, r.seed) == (record.prompt_id, record.seed)]
        theirs = partners(same, self.measurements.wish.against)
        for other in same:
            if other is record or theirs.get(other.item_key) is record:
                self._queue(other, theirs.get(other.item_key))

    def _queue(self, record: Record, reference: Record | None) -> None:
        """A video is looked at once: one that is compared waits for its reference."""
        job = self.measurements.job(record, reference)
        if job is not None and _ready(job):
            self._waiting.append(job)

    def look(self, *_: Any) -> None:
        """Take what is measured, and have more measured. Never waits."""
        if not (self._waiting or self._running) or time.monotonic() < self._looked_s + LOOK_S:
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
        while self._waiting or self._running:
            while self._waiting and len(self._running) < most:
                job = self._waiting.popleft()
                self._running[task.remote(job)] = (job, "")
            self._collect(timeout_s=1.0, on_row=on_row)

    def _start_beside(self) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        busy = Counter(node for _, node in self._running.values())
        nodes = {node["NodeID"]: node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
        hosts = {record.host for record in self._records.values()}
        free = {node: host for node, host in nodes.items() if host in hosts and busy[node] < self.tasks_per_node}
        for node, host in free.items():
            for job in _nearest(self._waiting, host, self.tasks_per_node - busy[node]):
                self._waiting.remove(job)
                where = NodeAffinitySchedulingStrategy(node, soft=True)
                task = ray.remote(num_cpus=0, max_retries=MAX_RETRIES, scheduling_strategy=where)(measure_idly)
                self._running[task.remote(job)] = (job, node)

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


def _ready(job: Job) -> bool:
    return job.reference is not None or not job.compares


def _nearest(waiting: Iterable[Job], host: str, most: int) -> list[Job]:
    """Of the jobs that wait, those to do on a host: first of the videos that were made there."""
    return sorted(waiting, key=lambda job: job.record.host != host)[:most]


def _told(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
