"""The tracker's process: follows the records and failures of a run folder and writes them to MLflow.

    python -m experiments.following RUN_FOLDER

It may be killed at any time: started again, it finds what MLflow holds by the items' keys and goes on from there. Its input says
``finish`` when the sweep is over, and ends when the sweep was stopped or has died. It tells in lines of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.metrics.quality import load_quality
from experiments.tracking import FINISH, first_ms, one_line, only_writer, open_run
from orchestrator.config import read_yaml
from orchestrator.ledger import read_records
from orchestrator.paths import RunPaths
from orchestrator.types import Record, record_from_row

if TYPE_CHECKING:
    from experiments.mlflow_store import RunStore

LOOK_S = 1.0
"""How often new records are looked for."""
SAMPLES_EVERY_S = 30.0
"""How often system metrics are sent when there is nothing else."""
AT_ONCE = 100
"""Records sent before the next are read."""
PAUSE_S, LONGEST_PAUSE_S = 1.0, 10.0
"""After a failure, doubled with each one in a row."""
LAST_PAUSES_S = (0.0, 2.0, 5.0)
"""Before each try at the end of the sweep; a server that never answered is tried once."""

Tell = Callable[[dict[str, Any]], None]


class Follower:
    """What of a run folder MLflow does not have yet, and the connection to it, made anew after every failure."""

    def __init__(self, paths: RunPaths, tell: Tell) -> None:
        self.paths, self.tell = paths, tell
        self.spec = read_yaml(paths.config)
        self._offset = 0
        self._records: list[Record] = []
        self._failures: dict[Path, int] = {}
        """Failure files that were sent, and when they were written."""
        self._store: RunStore | None = None
        self._not_before_s, self._pause_s = 0.0, PAUSE_S
        self._sampled_s = time.monotonic()
        self._reached = False
        self._told: set[str] = set()

    def look(self) -> None:
        """Send what is new, unless a failure was just now."""
        self._read()
        due = time.monotonic() - self._sampled_s >= SAMPLES_EVERY_S
        if time.monotonic() >= self._not_before_s and (self._records or due or self._new_failures() or self._store is None):
            self._attempt(self._send)

    def finish(self) -> bool:
        """Everything, with quality and artifacts; whether it was written."""
        for pause_s in LAST_PAUSES_S if self._reached else LAST_PAUSES_S[:1]:
            time.sleep(pause_s)
            if self._attempt(self._complete):
                return True
        return False

    def stop(self) -> None:
        """The sweep ended before its time: send what is there, and say so."""
        self._read()
        if self._attempt(self._send):
            self._attempt(lambda store: store.abandon())

    def _read(self) -> None:
        """New whole lines. A record that an earlier start of the run wrote costs nothing: MLflow has it."""
        if not self.paths.records.exists():
            return
        with self.paths.records.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        self._records += [record_from_row(json.loads(line)) for line in whole.splitlines()]

    def _new_failures(self) -> dict[Path, int]:
        """When each was written; of an item that was made after all meanwhile the file is gone."""
        found: dict[Path, int] = {}
        for path in self.paths.failures.glob("*.failure.json"):
            with contextlib.suppress(FileNotFoundError):
                found[path] = path.stat().st_mtime_ns
        return {path: written for path, written in found.items() if self._failures.get(path) != written}

    def _send(self, store: RunStore) -> None:
        while self._records:
            store.put(self._records[:AT_ONCE])
            del self._records[:AT_ONCE]
        for path, written in self._new_failures().items():
            for failure in _failure_in(path):
                store.put_failure(failure)
            self._failures[path] = written
        store.put_samples()
        self._sampled_s = time.monotonic()

    def _complete(self, store: RunStore) -> None:
        failures = [one for path in sorted(self.paths.failures.glob("*.failure.json")) for one in _failure_in(path)]
        changes = store.complete(read_records(self.paths.records), load_quality(self.paths), failures)
        for problem in changes.problems:
            self.tell({"warn": f"MLflow: {problem}"})

    def _attempt(self, work: Callable[[RunStore], object]) -> bool:
        try:
            if self._store is None:
                self._store = open_run(self.paths, self.spec, first_ms(self._records))
                self._reached = True
            work(self._store)
        except Exception as error:  # noqa: BLE001  (whatever MLflow raises: the run goes on, and it is tried again)
            self._store = None
            self._not_before_s = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._warn(error)
            return False
        self._pause_s = PAUSE_S
        return True

    def _warn(self, error: Exception) -> None:
        """Once per kind of error."""
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            self.tell({"warn": f"MLflow cannot be written, the run goes on and it is tried again: {one_line(error)}"})


def _failure_in(path: Path) -> list[dict[str, Any]]:
    """What the file says; nothing when it has gone."""
    try:
        return [json.loads(path.read_text(encoding="utf-8"))]
    except FileNotFoundError:
        return []


def follow(follower: Follower, read: Callable[[float], str | None], tell: Tell) -> None:
    """Until the input says that the sweep is over ("" when it has ended). ``read`` waits so many seconds for a line."""
    said = None
    while said is None:
        follower.look()
        said = read(LOOK_S)
    if said.strip() == FINISH:
        tell({"complete": follower.finish()})
    else:
        follower.stop()


def main(folder: str) -> None:
    os.nice(5)
    waiting = selectors.DefaultSelector()
    waiting.register(sys.stdin, selectors.EVENT_READ)

    def read(timeout_s: float) -> str | None:
        return sys.stdin.readline() if waiting.select(timeout_s) else None

    def tell(row: Mapping[str, Any]) -> None:
        print(json.dumps(row), flush=True)

    paths = RunPaths(Path(folder))
    with only_writer(paths):
        follow(Follower(paths, tell), read, tell)


if __name__ == "__main__":
    main(sys.argv[1])
