"""The MLflow runs of one sweep, each found again by its ``item_key`` tag, so that nothing is made twice."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, Run, RunTag

from experiments.mlflow_bulk import one_transaction, sqlite_store

FINISHED, FAILED, RUNNING, KILLED = "FINISHED", "FAILED", "RUNNING", "KILLED"
SWEEP = "sweep"
"""``item_key`` of the sweep run; an arm's is ``arm:<name>``, a prompt's its item's."""
MAX_METRICS = 1000
"""MLflow's limit for one ``log_batch``."""
PAGE = 1000
NOTHING: Mapping[str, Any] = MappingProxyType({})

for _noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)


@dataclass
class Known:
    """What MLflow already holds of one run."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    datasets: set[tuple[str, str]] = field(default_factory=set)
    """Name and digest."""


class Runs:
    """Every method may raise whatever MLflow raises; then what ``known`` says may be wrong, and a new one is to be made."""

    def __init__(self, client: MlflowClient, experiment_id: str, sweep_key: str) -> None:
        self.client, self.experiment_id, self.sweep_key = client, experiment_id, sweep_key
        self.sqlite = sqlite_store(client)
        self.known = {run.data.tags["item_key"]: _known(run) for run in self._search()}

    def _search(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            mine = f"tags.sweep_key = '{self.sweep_key}'"
            page = self.client.search_runs([self.experiment_id], mine, max_results=PAGE, page_token=token)
            yield from page
            token = page.token
            if not token:
                return

    def at_once(self) -> contextlib.AbstractContextManager[None]:
        """What is written inside is there as a whole or not at all, where the store is sqlite."""
        return one_transaction(self.sqlite)

    def ensure(
        self, key: str, level: str, name: str, parent: str | None, start_ms: int | None, tags: Mapping[str, str] = NOTHING
    ) -> Known:
        """The run with this key, made if there is none. One that is there gets the tags it lacks."""
        tags = {"level": level, **tags}
        if key in self.known:
            self.log(self.known[key], 0, tags=tags)
            return self.known[key]
        tags |= {"item_key": key, "sweep_key": self.sweep_key}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=name)
        self.known[key] = _known(run)
        return self.known[key]

    def log(
        self,
        known: Known,
        time_ms: int,
        metrics: Mapping[str, float] = NOTHING,
        params: Mapping[str, str] = NOTHING,
        tags: Mapping[str, str] = NOTHING,
    ) -> None:
        """One ``log_batch`` of what is not there yet. A param that is there stays as it is: MLflow changes none.

        A metric that has changed since is one more point, of now: of two at one time, MLflow takes the higher for the last.
        """
        new = {name: value for name, value in metrics.items() if known.metrics.get(name) != value}
        params = {name: value for name, value in params.items() if name not in known.params}
        tags = {name: value for name, value in tags.items() if known.tags.get(name) != value}
        if not (new or params or tags):
            return
        now_ms = max(time_ms, int(time.time() * 1000))
        self.client.log_batch(
            known.run_id,
            [Metric(name, value, now_ms if name in known.metrics else time_ms, 0) for name, value in new.items()],
            [Param(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        known.metrics.update(new)
        known.params.update(params)
        known.tags.update(tags)

    def log_points(self, known: Known, points: Iterable[Sequence[Metric]]) -> None:
        """Metrics by step, in as few calls as there can be; what belongs together goes in one."""
        batch: list[Metric] = []
        for group in points:
            if len(batch) + len(group) > MAX_METRICS:
                self.client.log_batch(known.run_id, batch)
                batch = []
            batch += group
        if batch:
            self.client.log_batch(known.run_id, batch)

    def status(self, known: Known, status: str, end_ms: int | None = None) -> None:
        if status == RUNNING:
            self.client.update_run(known.run_id, status=RUNNING)
        elif known.status != status:
            self.client.set_terminated(known.run_id, status=status, end_time=end_ms)
        known.status = status

    def forget(self, key: str) -> None:
        self.client.delete_run(self.known.pop(key).run_id)

    def log_dataset(self, known: Known, about: Mapping[str, str]) -> None:
        """The prompts as an input of the run. Entities alone: neither pandas nor the full package is needed."""
        identity = (about["name"], about["digest"])
        if identity not in known.datasets:
            tags = [InputTag("mlflow.data.context", "eval")]
            self.client.log_inputs(known.run_id, [DatasetInput(Dataset(**about), tags)])
            known.datasets.add(identity)

    def log_text(self, known: Known, name: str, data: bytes) -> None:
        """An artifact, unless the run has it already, to the byte: a tag says which it has."""
        digest, tag = hashlib.sha256(data).hexdigest()[:16], f"sha256.{name}"
        if known.tags.get(tag) == digest:
            return
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / name
            path.write_bytes(data)
            self.client.log_artifact(known.run_id, str(path))
        self.log(known, 0, tags={tag: digest})


def _known(run: Run) -> Known:
    inputs = run.inputs.dataset_inputs if run.inputs else []
    held = {(each.dataset.name, each.dataset.digest) for each in inputs}
    return Known(run.info.run_id, run.info.status, dict(run.data.tags), dict(run.data.params), dict(run.data.metrics), held)
