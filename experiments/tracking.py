"""The MLflow mirror of a run: a single writer thread behind a queue, and ``mirror`` to complete it at any time.

``records.jsonl`` is the truth. Nothing here delays or stops generation: every call of :class:`Tracker` but ``close``
returns at once, and a tracking failure is told once and completed later by ``dvg track DIR``.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.metrics.quality import load_quality
from experiments.mlflow_rows import milliseconds
from orchestrator.config import read_yaml
from orchestrator.ledger import Ledger, RunLock, write_atomic
from orchestrator.mistakes import RunError, without_password
from orchestrator.paths import RunPaths
from orchestrator.types import Record

if TYPE_CHECKING:
    from experiments.mlflow_store import Changes, RunStore

GIVE_UP_AFTER = 3
"""Consecutive failures after which the tracker stops trying."""

_log = logging.getLogger("dvg.tracking")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class _Task:
    kind: str
    run: Callable[[RunStore], object]


class Tracker:
    """Sends a run to MLflow as it happens. ``spec`` is the resolved sweep; its ``tracking`` section says where and what.

    ``warn`` gets one line per kind of failure. MLflow itself is only imported and reached on the writer's thread.
    """

    def __init__(self, paths: RunPaths, spec: Mapping[str, Any], warn: Callable[[str], None] = _log.warning):
        self._paths, self._spec, self._warn = paths, spec, warn
        self._tasks: queue.SimpleQueue[_Task | None] = queue.SimpleQueue()
        self._told: set[tuple[str, str]] = set()
        self._num_put = 0  # written by the caller's thread only
        self._num_written = 0  # written by the writer's thread only
        self._finished = False
        self._thread = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self._thread.start()

    def on_record(self, record: Record) -> None:
        """A video is done."""
        self._put("prompt run", lambda store: store.put(record))

    def on_failure(self, failure: Row) -> None:
        """An item was given up; ``failure`` is what its failure file holds."""
        self._put("failed prompt run", lambda store: store.put_failure(failure))

    def on_finish(self, records: Sequence[Record], quality: Sequence[Row], failures: Iterable[Row] = ()) -> None:
        """The sweep is over: quality, arm figures, artifacts, and whatever an earlier start of the run left out."""
        self._finished = True
        failures = list(failures)
        self._put("end of the sweep", lambda store: store.complete(records, quality, failures, artifacts(self._paths)))

    def close(self, timeout_s: float = 60.0) -> bool:
        """Wait for the writer; True if everything was written. Safe to call twice."""
        if not self._finished:
            self._put("end of the sweep", lambda store: store.abandon())
            self._finished = True
        self._tasks.put(None)
        self._thread.join(timeout_s)
        behind = self._num_put - self._num_written
        if behind:
            self._tell("close", "", f"MLflow misses {behind} updates of this run: `dvg track {self._paths.root}` completes it")
        return not behind

    def _put(self, kind: str, run: Callable[[RunStore], object]) -> None:
        self._num_put += 1
        self._tasks.put(_Task(kind, run))

    def _write(self) -> None:
        store: RunStore | None = None
        num_failures = 0
        while (task := self._tasks.get()) is not None:
            if num_failures >= GIVE_UP_AFTER:
                continue
            try:
                store = store or open_run(self._paths, self._spec)
                task.run(store)
            except Exception as error:  # noqa: BLE001  (tracking never stops a run; it is told, and completed by mirror)
                num_failures += 1
                what = f"MLflow: {task.kind} not written, the run goes on: {one_line(error)}"
                self._tell(task.kind, type(error).__name__, what)
            else:
                num_failures = 0
                self._num_written += 1

    def _tell(self, kind: str, error: str, message: str) -> None:
        if (kind, error) not in self._told:
            self._told.add((kind, error))
            self._warn(message)


def tracking_uri(paths: RunPaths, spec: Row) -> str:
    """The spec's URI, else MLFLOW_TRACKING_URI, else an sqlite file inside the run folder."""
    return (spec.get("tracking") or {}).get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or paths.mlflow_uri


def open_run(paths: RunPaths, spec: Row, start_ms: int | None = None) -> RunStore:
    """The MLflow side of a run folder, its sweep run made or reopened. Raises what MLflow raises."""
    from experiments.mlflow_store import open_store  # MLflow takes a second to import: not on the caller's thread

    uri = tracking_uri(paths, spec)
    experiment = str((spec.get("tracking") or {}).get("experiment") or "dvg")
    local_artifacts = paths.mlflow_artifacts if uri == paths.mlflow_uri else None
    store = open_store(uri, experiment, local_artifacts, sweep_key(paths), spec, paths.root)
    store.start(start_ms)
    return store


def sweep_key(paths: RunPaths) -> str:
    """A random name of this run folder, kept inside it: how its MLflow runs are found again on any server."""
    if not paths.tracking.exists():
        write_atomic(paths.tracking, json.dumps({"sweep_key": uuid.uuid4().hex}) + "\n")
    return str(json.loads(paths.tracking.read_text(encoding="utf-8"))["sweep_key"])


def artifacts(paths: RunPaths) -> tuple[Path, ...]:
    """What the sweep run carries beside its config."""
    return paths.summary, paths.report


def mirror(run_dir: Path, uri: str | None = None) -> Changes:
    """Bring MLflow up to date with a run folder: finished, half finished, or tracked by nobody so far.

    Raises ValueError when ``run_dir`` holds no run, or one that is still running, and RunError with MLflow's own
    story when it cannot be written.
    """
    paths = RunPaths(run_dir)
    if not paths.config.exists():
        raise ValueError(f"{str(run_dir)!r} holds no {paths.config.name}: give the folder that `dvg sweep` wrote")
    spec = read_yaml(paths.config)
    if uri:
        spec["tracking"] = {**(spec.get("tracking") or {}), "uri": uri}
    with RunLock(paths):
        ledger = Ledger(paths)
        return _mirror(paths, spec, ledger.records(), ledger.failures())


def _mirror(paths: RunPaths, spec: Row, records: Sequence[Record], failures: Sequence[Row]) -> Changes:
    started = [milliseconds(record.finished_at) - int(record.latency_s * 1000) for record in records]
    try:
        store = open_run(paths, spec, min(started, default=None))
        return store.complete(records, load_quality(paths), failures, artifacts(paths))
    except Exception as error:
        raise RunError(f"MLflow could not be written: {one_line(error)}") from error


def one_line(error: Exception) -> str:
    """The error's first line without a password that a URI in it may carry."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return without_password(first)[:300]
