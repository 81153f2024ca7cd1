"""Metrics as Ray tasks: beside a running sweep, on the nodes that make its videos, and over a cluster that is free.

Tasks beside a sweep hold no CPUs, so that no worker ever waits for one and no autoscaler hears of them, and run with the time
that nobody else wants. What they do not get done is done afterwards. Nothing that befalls them ends a sweep.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from experiments.metrics.completing import Lost, Measurements
from experiments.metrics.measure import Job
from experiments.metrics.quality import Row, partners
from experiments.metrics.tasks import CPUS, attempt
from orchestrator.interrupts import Interrupts, kept_interrupts
from orchestrator.mistakes import RunError
from orchestrator.outside import Head, HeadLost
from orchestrator.types import Record

LOOK_S = 0.5
"""How often a running sweep asks for what is measured: asking costs the driver some milliseconds."""
TURN_S = 1.0
"""The same when nothing else runs."""
MAX_RETRIES = 2
"""Of a task whose node goes."""
NO_CPU_S = 300.0
"""How long no task begins before none is waited for any longer: an autoscaler may boot a node meanwhile."""
SILENT_S = 3600.0
"""How long those that have begun may all be silent: a long video takes its time on one CPU."""

OnRow = Callable[[Row], None]


@dataclass
class _Task:
    job: Job
    node: str
    """Where it was sent; empty: anywhere."""
    begun: bool = False


class Beside:
    """Measures each video once it and its reference's are there. Everything happens in calls of the sweep's own thread."""

    def __init__(
        self,
        measurements: Measurements,
        tasks_per_node: int,
        records: Iterable[Record] = (),
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        """``records``: the videos that are there already. ``tell`` hears once when no more is measured beside the sweep."""
        self.measurements, self.tasks_per_node, self.tell = measurements, tasks_per_node, tell
        records = list(records)
        self._of_scene: defaultdict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
        """By prompt and seed, then by item: the videos that may be compared."""
        self._waiting: defaultdict[str, deque[Job]] = defaultdict(deque)
        """By the host that made the video. A host that is here made some of the run's."""
        self._later: list[Job] = []
        """What failed beside the sweep, and is tried again after it."""
        for record in records:
            self._note(record)
        for job in measurements.todo(records):
            self._queue(job)
        self._running: dict[Any, _Task] = {}
        """By Ray's generator of what the task tells."""
        self._blind: set[str] = set()
        """Nodes that do not see the run's folder."""
        self._goes_on = True
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
        return len(self._running) + len(self._later) + sum(map(len, self._waiting.values()))

    @property
    def given_up(self) -> frozenset[str]:
        """Items that the sweep's end leaves alone: the cluster could not measure them, or they ended their processes."""
        left = [*self._later, *(job for jobs in self._waiting.values() for job in jobs)]
        return frozenset(job.record.item_key for job in left) | {one.record.item_key for one in self.fatal}

    @property
    def fatal(self) -> list[Lost]:
        return [one for one in self.lost if one.fatal]

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

    # Beside the sweep

    def look(self, *_: Any) -> None:
        """Take what is measured, and have more measured. Never waits; of Ray's errors the first ends it, and is told."""
        if not self._goes_on or not self.num_left or time.monotonic() < self._looked_s + LOOK_S:
            return
        self._looked_s = time.monotonic()
        import ray

        try:
            if ray.is_initialized():
                self._collect()
                self._start_beside()
        except RunError:
            raise
        except _ray_errors() as error:
            self._goes_on = False
            self._recall()
            self.tell(f"videos are not measured beside the sweep any more, but after it: {_told(error)}")

    def _start_beside(self) -> None:
        import ray

        busy = Counter(task.node for task in self._running.values())
        for node in ray.nodes() if any(self._waiting.values()) else ():
            name, host = node["NodeID"], node["NodeManagerHostname"]
            fit = node["Alive"] and host in self._waiting and name not in self._blind
            while fit and busy[name] < self.tasks_per_node and (job := self._next(host)):
                self._begin(job, name, idle=True)
                busy[name] += 1

    # After the sweep

    def drain(self, on_row: OnRow = lambda row: None) -> str | None:
        """Measure all that waits, over the whole cluster, and wait for it, its workers being gone. Why some is left, if it is.

        Raises KeyboardInterrupt at a safe place, for SIGTERM too, and DiskFull.
        """
        import ray

        self._goes_on = False
        for job in self._later:
            self._waiting[job.record.host].append(job)
        self._later.clear()
        try:
            with kept_interrupts() as kept, Head(ray.get_runtime_context().gcs_address) as head:
                return self._drain(kept, head, on_row)
        except HeadLost:
            return "the head of the Ray cluster does not answer any more"
        except RunError:
            raise
        except _ray_errors() as error:
            return _told(error)
        finally:
            self._recall()

    def _drain(self, kept: Interrupts, head: Head, on_row: OnRow) -> str | None:
        import ray

        most, heard_s = max(2, 2 * int(ray.cluster_resources().get("CPU", 1))), time.monotonic()
        while self.num_left:
            kept.raise_any()
            head.refuse_to_wait()
            if not head.is_there:
                time.sleep(TURN_S)
                continue
            if not self._start_alone(most):
                return "no node of the cluster sees the run's folder"
            if self._collect(TURN_S, on_row):
                heard_s = time.monotonic()
            elif why := self._too_silent(time.monotonic() - heard_s):
                return why
        return None

    def _too_silent(self, silent_s: float) -> str | None:
        if any(task.begun for task in self._running.values()):
            return f"nothing was measured for {SILENT_S / 60:.0f} minutes" if silent_s > SILENT_S else None
        return f"no CPU of the cluster was free for {NO_CPU_S:.0f} s" if silent_s > NO_CPU_S else None

    def _start_alone(self, most: int) -> bool:
        """Keep the cluster busy; False if none of its nodes could do anything."""
        places = self._seeing() if self._blind and any(self._waiting.values()) else [""]
        busy = Counter(task.node for task in self._running.values())
        while places and len(self._running) < most and (job := self._next("")):
            place = min(places, key=busy.__getitem__)
            self._begin(job, place, idle=False)
            busy[place] += 1
        return bool(places or self._running)

    def _seeing(self) -> list[str]:
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= CPUS]
        return [node["NodeID"] for node in nodes if node["NodeID"] not in self._blind]

    # Tasks

    @cached_property
    def _task(self) -> Any:
        """Made once: each new remote function is one more that the head keeps and workers fetch."""
        import ray

        return ray.remote(max_retries=MAX_RETRIES)(attempt)

    def _begin(self, job: Job, node: str, idle: bool) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        where = NodeAffinitySchedulingStrategy(node, soft=True) if node else "SPREAD"
        try:
            task = self._task.options(num_cpus=0 if idle else CPUS, scheduling_strategy=where).remote(job, idle)
        except _ray_errors():
            self._later.append(job)
            raise
        self._running[task] = _Task(job, node)

    def _collect(self, timeout_s: float = 0.0, on_row: OnRow = lambda row: None) -> bool:
        """Hear what tasks tell, waiting for the first of it; whether there was anything."""
        import ray

        heard = False
        while self._running:
            num_returns = len(self._running) if heard or not timeout_s else 1
            there, _ = ray.wait(list(self._running), num_returns=num_returns, timeout=0.0 if heard else timeout_s)
            if not there:
                break
            heard = True
            for task in there:
                self._hear(task, on_row)
        return heard

    def _hear(self, task: Any, on_row: OnRow) -> None:
        import ray

        job = self._running[task].job
        try:
            told = ray.get(next(task))
        except ray.exceptions.RayError as error:
            del self._running[task]
            return self._fail(job, error)
        if told is True:
            self._running[task].begun = True
            return None
        del self._running[task]
        if isinstance(told, str):
            self._blind.add(told)
            return self._waiting[job.record.host].append(job)
        self.num_measured += 1
        self.measurements.add(told)
        return on_row(told)

    def _fail(self, job: Job, error: Exception) -> None:
        """Beside a sweep it may be the moment's, as of a file system that is late: there is a second try after it."""
        from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError

        fatal = isinstance(error, NodeDiedError | OutOfMemoryError | WorkerCrashedError)
        if self._goes_on and not fatal:
            self._later.append(job)
        else:
            self.lost.append(Lost(job.record, _told(error), fatal))

    def _recall(self) -> None:
        self._later += [task.job for task in self._running.values()]
        self._running.clear()


def _ray_errors() -> tuple[type[Exception], ...]:
    """What Ray raises where a cluster is not as it should be."""
    import ray

    return (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError)


def _told(error: Exception) -> str:
    cause = getattr(error, "cause", None) or error
    return " ".join(f"{type(cause).__name__}: {cause}".split())[:300]
