"""The MLflow mirror of a run: a process of its own that follows the run folder, and ``mirror`` to complete it at any time.

``records.jsonl`` is the truth. Nothing here delays or stops generation: the process (:mod:`experiments.following`) may be
killed, and MLflow may be away; what it missed is completed when it is back, or by ``dvg track DIR``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.metrics.quality import load_quality
from experiments.mlflow_rows import milliseconds
from experiments.watching import Watch
from orchestrator.config import read_yaml
from orchestrator.ledger import Ledger, read_records
from orchestrator.mistakes import RunError, without_password
from orchestrator.paths import RunPaths
from orchestrator.runfolder import store_of
from orchestrator.types import Record

if TYPE_CHECKING:
    from experiments.mlflow_store import Changes, RunStore

MLFLOW_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
"""Unless the environment says otherwise; MLflow reads them when it is imported, which is after this module is."""
for _name, _value in MLFLOW_SETTINGS.items():
    os.environ.setdefault(_name, _value)

MAX_STARTS = 4
"""Of the process, in one sweep."""
CLOSE_S = 60.0
"""How long a sweep's end waits for the last updates."""
FINISH = "finish"
"""Said to the process when quality, summary and report are written."""

_log = logging.getLogger("dvg.tracking")
Row = Mapping[str, Any]


class Tracker:
    """Starts the process that sends a run folder to MLflow as it grows, and starts it again a few times should it die.

    The folder's config says where and what. ``warn`` gets a line per kind of trouble. MLflow is never imported here.
    """

    def __init__(self, paths: RunPaths, warn: Callable[[str], None] = _log.warning, max_starts: int = MAX_STARTS):
        self._paths, self._warn, self._max_starts = paths, warn, max_starts
        self._told: set[str] = set()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._finished = self._closing = self._complete = False
        self._given_up = False
        """The sweep's end waits no longer: nobody is started again."""
        self._watch = Watch(paths) if wants_system_metrics(paths) else None
        self._thread = threading.Thread(target=self._look_after, name="mlflow-tracker", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """Of the process, while there is one."""
        with self._lock:
            return self._process.pid if self._process and self._process.poll() is None else None

    def finish(self) -> None:
        """The sweep is over: quality, arm figures, artifacts, and whatever an earlier start of the run left out."""
        self._end_watch()
        with self._lock:
            self._finished = True
            self._say_finish()

    def close(self, timeout_s: float = CLOSE_S) -> bool:
        """Wait for the last updates; True if everything was written. Safe to call twice."""
        self._end_watch()
        with self._lock:
            self._closing = True
            if self._process and self._process.stdin:
                with contextlib.suppress(OSError):
                    self._process.stdin.close()
        self._thread.join(timeout_s)
        with self._lock:
            self._given_up = True
            if self._process and self._process.poll() is None:
                self._process.kill()
        self._thread.join(timeout_s)
        if self._finished and not self._complete:
            self._tell(f"MLflow misses updates of this run: `dvg track {self._paths.root}` completes it")
        return self._complete

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.close()
            self._watch = None

    def _look_after(self) -> None:
        """Start the process and pass on what it tells, until it ends well or has ended too often."""
        code = 0
        for _ in range(self._max_starts):
            process = self._start()
            for line in process.stdout or ():
                self._hear(line)
            code = process.wait()
            if code == 0 or self._given_up or (self._closing and not self._finished):
                return
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        self._tell(
            f"the MLflow tracker {how}, the last of {self._max_starts} starts; the run goes on without it, and "
            f"`dvg track {self._paths.root}` completes MLflow"
        )

    def _start(self) -> subprocess.Popen[str]:
        """Its own session: Ctrl-C is the sweep's to hear. It ends when this process does, as its input ends then."""
        source = str(Path(__file__).parents[1])
        path = os.pathsep.join([source, *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._lock:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "experiments.following", str(self._paths.root)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                text=True,
                start_new_session=True,
            )
            if self._finished:
                self._say_finish()
            if self._closing and self._process.stdin:
                self._process.stdin.close()
            if self._given_up:
                self._process.kill()
            return self._process

    def _say_finish(self) -> None:
        if self._process and self._process.stdin and not self._process.stdin.closed:
            with contextlib.suppress(OSError):  # it has died, and is told again when it is started again
                self._process.stdin.write(FINISH + "\n")
                self._process.stdin.flush()

    def _hear(self, line: str) -> None:
        """A line of JSON: a warning, or that all is written. What others print to its output is none."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if isinstance(said, dict) and "warn" in said:
            self._tell(str(said["warn"]))
        if isinstance(said, dict) and "complete" in said:
            self._complete = bool(said["complete"])

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._warn(message)


def wants_system_metrics(paths: RunPaths) -> bool:
    """Unless the run's config says otherwise; a folder without one is no sweep's."""
    if not paths.config.exists():
        return False
    return bool((read_yaml(paths.config).get("tracking") or {}).get("system_metrics", False))


def tracking_uri(paths: RunPaths, spec: Row) -> str:
    """The spec's URI, else MLFLOW_TRACKING_URI, else an sqlite file inside the run folder."""
    return (spec.get("tracking") or {}).get("uri") or os.environ.get("MLFLOW_TRACKING_URI") or paths.mlflow_uri


def open_run(paths: RunPaths, spec: Row, start_ms: int | None = None) -> RunStore:
    """The MLflow side of a run folder, its sweep run made or reopened. Raises what MLflow raises."""
    store = _store(paths, spec)
    store.start(start_ms)
    return store


def _store(paths: RunPaths, spec: Row) -> RunStore:
    from experiments.mlflow_plan import Plan  # MLflow takes a second to import
    from experiments.mlflow_store import open_store

    experiment = str((spec.get("tracking") or {}).get("experiment") or "dvg")
    return open_store(tracking_uri(paths, spec), experiment, paths, spec, Plan(paths, spec), store_of(paths))


@contextlib.contextmanager
def only_writer(paths: RunPaths, wait: bool = True) -> Iterator[None]:
    """One process at a time writes a run to MLflow: one whose sweep was killed may still be at it, for some seconds.

    Some shared file systems know no locks: the lock of the run, or its owner file, then keeps others out alone. Raises
    BlockingIOError where another one writes and nobody shall ``wait``.
    """
    with paths.tracking_lock.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            _log.info("%s cannot be locked: %s", paths.tracking_lock, error)
        yield


def mirror(ledger: Ledger, uri: str | None = None) -> Changes:
    """Bring MLflow up to date with a run folder: finished, half finished, or tracked by nobody so far.

    Raises RunError with MLflow's own story when it cannot be written.
    """
    paths = ledger.paths
    spec = read_yaml(paths.config)
    if uri:
        spec["tracking"] = {**(spec.get("tracking") or {}), "uri": uri}
    records = ledger.records()
    try:
        with only_writer(paths):
            store = open_run(paths, spec, first_ms(records))
            changes = store.complete(records, load_quality(paths), ledger.failures())
    except Exception as error:
        raise RunError(f"MLflow could not be written: {one_line(error)}") from error
    for problem in changes.problems:
        _log.warning(problem)
    return changes


def mirror_scores(paths: RunPaths, tell: Callable[[str], None]) -> None:
    """Bring what ``dvg evaluate`` has just left to the arms of a run that MLflow holds; a run that it does not is left alone.

    Beside a sweep that still goes on it is that one's tracker that brings them, at its end. Raises nothing of MLflow's: ``tell``
    hears what went wrong.
    """
    spec = read_yaml(paths.config)
    uri = tracking_uri(paths, spec)
    if not paths.tracking.exists() or (uri == paths.mlflow_uri and not Path(uri.removeprefix("sqlite:///")).exists()):
        return
    try:
        with only_writer(paths, wait=False):
            store = _store(paths, spec)
            num_arms = store.put_scores(read_records(paths.records))
    except BlockingIOError:
        tell(f"MLflow gets the scores at the end of the sweep, whose tracker is at it, or by `dvg track {paths.root}`")
    except Exception as error:  # noqa: BLE001  (whatever MLflow raises: the scores are on disk)
        tell(f"MLflow misses the scores, and `dvg track {paths.root}` completes it: {one_line(error)}")
    else:
        for line in [
            *store.problems[:1],
            *([f"MLflow has new scores of {num_arms} arm{'s'[: num_arms > 1]}"] if num_arms else []),
        ]:
            tell(line)


def first_ms(records: Sequence[Record]) -> int | None:
    """When the first of a run's items began."""
    started = [milliseconds(record.finished_at) - int(record.latency_s * 1000) for record in records]
    return min(started, default=None)


def one_line(error: Exception) -> str:
    """The error's first line without a password that a URI in it may carry."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    return without_password(first)[:300]
