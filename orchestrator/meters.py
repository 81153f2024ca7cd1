"""A sweep's metrics for Ray's own endpoint, from where Prometheus takes them: see experiments/grafana/dvg.json.

Fed from the driver with what the scheduler and the runbook say. Every tag has few values: sweep, arm, model, phase, pool, pod
slot; never a prompt or an item. Without Ray, or with its metrics off, nothing happens.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator.events import Command, Event, Failed, WorkerLost
from orchestrator.scheduler import Scheduler
from orchestrator.split import POOLS
from orchestrator.tally import Ended, Tally
from orchestrator.types import Record

SWITCH = "RAY_enable_metrics_collection"
"""Ray's own; "0" or "false" is off."""
GAUGES_S = 1.0
"""Gauges are set at most so often."""
WINDOW_S = 300.0
"""Videos per minute are counted over the last five."""
BOUNDARIES = ("arrived", "sketched", "refined")
"""Where items wait for a sketch, a slice and a decode."""
SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
OF_CLIP = ("sweep", "arm", "model")


@dataclass(frozen=True)
class Metric:
    """``name`` gets Ray's prefix ``ray_`` where it is read, a counter also the suffix ``_total``."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    description: str
    tags: tuple[str, ...]

    @property
    def exported(self) -> tuple[str, ...]:
        """Names that the endpoint gives it."""
        endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}[self.kind]
        return tuple(f"ray_{self.name}{ending}" for ending in endings)


METRICS = (
    Metric("counter", "dvg_videos", "Videos made.", OF_CLIP),
    Metric("counter", "dvg_given_up", "Items given up.", OF_CLIP),
    Metric("counter", "dvg_attempts", "Attempts of items that ended, well or not.", OF_CLIP),
    Metric("counter", "dvg_failures", "Attempts that failed, by the phase they failed in.", ("sweep", "phase")),
    Metric("counter", "dvg_workers_lost", "Workers lost, by pool.", ("sweep", "pool")),
    Metric("counter", "dvg_gpu_seconds", "Ranks x seconds of phases that ended, by pool.", ("sweep", "pool")),
    Metric("gauge", "dvg_videos_per_minute", "Videos of the last five minutes, per minute.", ("sweep",)),
    Metric("gauge", "dvg_queue_depth", "Items that wait, by the boundary they wait at.", ("sweep", "boundary")),
    Metric("gauge", "dvg_workers", "Ranks and workers that are up, by pool.", ("sweep", "pool")),
    Metric("gauge", "dvg_busy_share", "Busy share of a pool in the last minutes.", ("sweep", "pool")),
    Metric("gauge", "dvg_pod_busy_share", "Busy share of a pod since it joined.", ("sweep", "pod")),
    Metric("histogram", "dvg_phase_seconds", "Seconds that a phase held its worker or slice.", ("sweep", "phase")),
    Metric("histogram", "dvg_stage_seconds", "Seconds of each stage's steps, by its number.", (*OF_CLIP, "stage")),
    Metric("histogram", "dvg_decode_seconds", "Seconds of decoding a video.", OF_CLIP),
    Metric("histogram", "dvg_latency_seconds", "From the start of the sketch to the video on disk.", OF_CLIP),
    Metric("histogram", "dvg_gpu_seconds_per_video", "Ranks x seconds that a video held.", OF_CLIP),
)


def ray_metrics_on(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is connected to Ray and Ray collects metrics. Loads nothing."""
    ray = sys.modules.get("ray")
    on = environment.get(SWITCH, "1").lower() not in ("0", "false")
    return on and ray is not None and bool(ray.is_initialized())


def ray_instruments() -> dict[str, Any]:
    """One of ``ray.util.metrics`` for each of ``METRICS``, by name."""
    from ray.util import metrics

    made: dict[str, Any] = {}
    for m in METRICS:
        if m.kind == "histogram":
            made[m.name] = metrics.Histogram(m.name, m.description, boundaries=list(SECONDS), tag_keys=m.tags)
        else:
            made[m.name] = (metrics.Counter if m.kind == "counter" else metrics.Gauge)(m.name, m.description, m.tags)
    return made


class Meters:
    """``on_event`` is for the shell, ``on_record`` and ``on_failure`` for the runbook. ``models``: of each arm.

    Instruments are made at the first event, when the shell has joined its cluster.
    """

    def __init__(
        self,
        sweep: str,
        models: Mapping[str, str],
        scheduler: Scheduler,
        clock: Callable[[], float] = time.monotonic,
        is_on: Callable[[], bool] = ray_metrics_on,
        make: Callable[[], Mapping[str, Any]] = ray_instruments,
    ) -> None:
        self._sweep, self._models, self._scheduler, self._clock = {"sweep": sweep}, models, scheduler, clock
        self._is_on, self._make = is_on, make
        self._instruments: Mapping[str, Any] | None = None
        self._asked = False
        self._tally = Tally()
        self._finished_s: deque[float] = deque()
        self._started_s = clock()
        self._set_s = -GAUGES_S
        self._pods: set[str] = set()

    @property
    def on(self) -> bool:
        if not self._asked:
            self._asked = True
            self._instruments = self._make() if self._is_on() else None
        return self._instruments is not None

    def on_event(self, event: Event, commands: Sequence[Command]) -> None:
        if not self.on:
            return
        lost = self._tally.workers.get(event.worker) if isinstance(event, WorkerLost) else None
        for ended in self._tally.take(event, commands):
            self._see(ended)
        if lost is not None:
            self._count("dvg_workers_lost", {"pool": lost.pool})
        if isinstance(event, Failed):
            self._count("dvg_failures", {"phase": event.phase})
        if self._clock() - self._set_s >= GAUGES_S or self._scheduler.finished:
            self._set_s = self._clock()
            self._set_gauges()

    def on_record(self, record: Record) -> None:
        if not self.on:
            return
        self._finished_s.append(self._clock())
        clip = {"arm": record.arm, "model": record.model}
        self._count("dvg_videos", clip)
        self._count("dvg_attempts", clip, record.attempts)
        self._observe("dvg_latency_seconds", clip, record.latency_s)
        self._observe("dvg_gpu_seconds_per_video", clip, record.device_s)
        self._observe("dvg_decode_seconds", clip, record.decode_s)
        for number, seconds in enumerate(filter(None, record.stage_s.split("|")), 1):
            self._observe("dvg_stage_seconds", {**clip, "stage": str(number)}, float(seconds))

    def on_failure(self, failure: Mapping[str, Any]) -> None:
        if self.on:
            clip = {"arm": failure["arm"], "model": self._models.get(failure["arm"], "")}
            self._count("dvg_given_up", clip)
            self._count("dvg_attempts", clip, failure["attempts"])

    def _see(self, ended: Ended) -> None:
        self._observe("dvg_phase_seconds", {"phase": ended.job.phase}, ended.seconds)
        self._count("dvg_gpu_seconds", {"pool": ended.job.pool}, ended.gpu_s)

    def _set_gauges(self) -> None:
        counts = self._scheduler.counts()
        for boundary in BOUNDARIES:
            self._set("dvg_queue_depth", {"boundary": boundary}, counts.get(boundary, 0))
        for pool in POOLS:
            self._set("dvg_workers", {"pool": pool}, self._tally.pools[pool].size)
            self._set("dvg_busy_share", {"pool": pool}, self._tally.pools[pool].recent)
        self._set("dvg_videos_per_minute", {}, self._per_minute())
        shares = {slot(name): pod.busy_share(self._tally.now_s) for name, pod in self._tally.pods}
        for name in self._pods | shares.keys():
            self._set("dvg_pod_busy_share", {"pod": name}, shares.get(name, 0.0))
        self._pods |= shares.keys()

    def _per_minute(self) -> float:
        now_s = self._clock()
        while self._finished_s and self._finished_s[0] < now_s - WINDOW_S:
            self._finished_s.popleft()
        gone_s = min(WINDOW_S, now_s - self._started_s)
        return 60.0 * len(self._finished_s) / gone_s if gone_s > 0 else 0.0

    def _count(self, name: str, tags: Mapping[str, str], number: float = 1.0) -> None:
        if number > 0:
            self._instrument(name).inc(number, tags={**self._sweep, **tags})

    def _set(self, name: str, tags: Mapping[str, str], value: float) -> None:
        self._instrument(name).set(value, tags={**self._sweep, **tags})

    def _observe(self, name: str, tags: Mapping[str, str], value: float) -> None:
        self._instrument(name).observe(value, tags={**self._sweep, **tags})

    def _instrument(self, name: str) -> Any:
        return (self._instruments or {})[name]


def slot(worker: str) -> str:
    """``pod-3`` of ``pod-3.7``: a replacement goes on with the name of the one before, so that names stay few."""
    return worker.partition(".")[0]
