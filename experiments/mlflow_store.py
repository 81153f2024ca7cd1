"""Sweep run -> arm runs -> prompt runs in MLflow, each found again by its ``item_key`` tag, so that nothing is made twice."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from experiments import mlflow_rows as rows
from experiments.summary import ArmStats, arm_of, arm_stats
from orchestrator.store import Store
from orchestrator.types import Record

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")

from mlflow import MlflowClient
from mlflow.entities import Experiment, Metric, Param, Run, RunTag
from mlflow.exceptions import MlflowException

FINISHED, FAILED, RUNNING, KILLED = "FINISHED", "FAILED", "RUNNING", "KILLED"
SWEEP = "sweep"
"""``item_key`` of the sweep run; an arm's is ``arm:<name>``, a prompt's its item's."""

for _noisy in ("alembic", "mlflow.store.db.utils", "mlflow.tracking"):
    logging.getLogger(_noisy).setLevel(logging.WARNING)


@dataclass
class _Known:
    """What MLflow already holds of one run."""

    run_id: str
    status: str
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Changes:
    """What one completion did: prompt runs made, and prompt runs that were there but lacked something."""

    num_records: int
    num_added: int
    num_updated: int


class RunStore:
    """One sweep in one MLflow experiment. Every method may raise whatever MLflow raises; none is thread-safe."""

    def __init__(self, client: MlflowClient, experiment_id: str, sweep_key: str, spec: Mapping[str, Any], videos: Store):
        self.client, self.experiment_id = client, experiment_id
        self.sweep_key, self.spec, self.videos = sweep_key, spec, videos
        self.settings = rows.arm_settings(spec)
        self.known = {run.data.tags["item_key"]: _known(run) for run in self._search()}
        policy = (spec.get("tracking") or {}).get("videos", "auto")
        pairs = [(prompt["id"], prompt["seed"]) for prompt in spec.get("prompts") or ()]
        self.upload = rows.videos_to_upload(policy, pairs, len(self.settings))

    def _search(self) -> Iterator[Run]:
        token: str | None = None
        while True:
            page = self.client.search_runs(
                [self.experiment_id], f"tags.sweep_key = '{self.sweep_key}'", max_results=5000, page_token=token
            )
            yield from page
            token = page.token
            if not token:
                return

    def start(self, start_ms: int | None = None) -> None:
        """Make or reopen the sweep run."""
        known = self._ensure(SWEEP, "sweep", str(self.spec.get("name", "sweep")), None, start_ms)
        if known.status != RUNNING:
            self._status(known, RUNNING)

    def put(self, record: Record, quality: Mapping[str, Any] | None = None) -> str:
        """Make a prompt run, or complete one: "added", "updated", or "kept" when it held everything."""
        known = self.known.get(record.item_key)
        if known and known.tags.get("sha256", record.sha256) != record.sha256:
            self._forget(record.item_key)  # the video was made again
            known = None
        metrics = rows.prompt_metrics(record, quality)
        if known and known.status == FINISHED and metrics.items() <= known.metrics.items():
            return "kept"
        end_ms = rows.milliseconds(record.finished_at)
        start_ms = end_ms - int(record.latency_s * 1000)
        parent = self._arm(record.arm, start_ms).run_id
        run = self._ensure(record.item_key, "prompt", f"{record.prompt_id}-{record.seed}", parent, start_ms)
        if run.status == FINISHED:
            self._log(run, end_ms, metrics)
        else:
            self._log(run, end_ms, metrics, rows.prompt_params(record), rows.prompt_tags(record))
            self._upload_video(run, record)
            self._status(run, FINISHED, end_ms)
        return "updated" if known else "added"

    def put_failure(self, failure: Mapping[str, Any]) -> None:
        """A prompt run with status FAILED and its error; a later success completes the same run."""
        key = str(failure["item_key"])
        if (found := self.known.get(key)) and found.status in (FINISHED, FAILED):
            return
        name = f"{failure.get('prompt_id', key)}-{failure.get('seed', '')}"
        known = self._ensure(key, "prompt", name, self._arm(arm_of(failure)).run_id)
        story = "\n".join(map(str, failure.get("story") or ()))
        tags = {"error": rows.as_text(failure.get("error"), rows.MAX_TAG_CHARS)}
        params = rows.failure_params(failure) if not known.params else {}
        self._log(known, 0, {}, params, tags | {"story": rows.as_text(story, rows.MAX_TAG_CHARS)})
        self._status(known, FAILED)

    def complete(
        self,
        records: Sequence[Record],
        quality: Sequence[Mapping[str, Any]],
        failures: Iterable[Mapping[str, Any]] = (),
        artifacts: Iterable[Path] = (),
    ) -> Changes:
        """Bring MLflow up to date with the whole run and close it. Doing so twice adds nothing."""
        failures = list(failures)
        joined = {row["item_key"]: row for row in quality}
        outcomes = [self.put(record, joined.get(record.item_key)) for record in records]
        for failure in failures:
            self.put_failure(failure)
        for stats in arm_stats(records, quality, self.spec.get("reference"), failures):
            self._finish_arm(stats, [r for r in records if r.arm == stats.arm], quality)
        self._fail_other_arms()
        self._finish_sweep(records, len(failures), artifacts)
        return Changes(len(records), outcomes.count("added"), outcomes.count("updated"))

    def abandon(self) -> None:
        """Mark the sweep and arm runs as stopped before their end; the next run of the same sweep reopens them."""
        for known in self.known.values():
            if known.status == RUNNING:
                self._status(known, KILLED)

    def _finish_arm(self, stats: ArmStats, records: Sequence[Record], quality: Sequence[Mapping[str, Any]]) -> None:
        """FAILED without a single video."""
        end_ms = max((rows.milliseconds(record.finished_at) for record in records), default=0)
        known = self._arm(stats.arm)
        self._log(known, end_ms, rows.arm_metrics(records, quality, stats))
        self._status(known, FINISHED if records else FAILED, end_ms or None)

    def _fail_other_arms(self) -> None:
        """End arm runs that an earlier start of the run left open and that have neither a video nor a failure now."""
        for key, known in self.known.items():
            if key.startswith("arm:") and known.status == RUNNING:
                self._log(known, 0, {"num_videos": 0.0, "num_failed": 0.0})
                self._status(known, FAILED)

    def _finish_sweep(self, records: Sequence[Record], num_failed: int, artifacts: Iterable[Path]) -> None:
        known = self.known[SWEEP]
        end_ms = max((rows.milliseconds(record.finished_at) for record in records), default=0)
        self._log(known, end_ms, {"num_videos": float(len(records)), "num_failed": float(num_failed)})
        self.client.log_dict(known.run_id, _without_secrets(self.spec), "config.resolved.yaml")
        for path in artifacts:
            if path.exists():
                self.client.log_artifact(known.run_id, str(path))
        self._status(known, FINISHED, end_ms or None)

    def _arm(self, name: str, start_ms: int | None = None) -> _Known:
        known = self._ensure(f"arm:{name}", "config", name, self.known[SWEEP].run_id, start_ms)
        if not known.params:
            self._log(known, 0, {}, rows.arm_params(self.settings.get(name, {"name": name})))
        return known

    def _ensure(self, key: str, level: str, name: str, parent: str | None, start_ms: int | None = None) -> _Known:
        if key in self.known:
            return self.known[key]
        tags = {"level": level, "item_key": key, "sweep_key": self.sweep_key, **rows.software_tags()}
        if parent:
            tags["mlflow.parentRunId"] = parent
        run = self.client.create_run(self.experiment_id, start_time=start_ms, tags=tags, run_name=name)
        self.known[key] = _known(run)
        return self.known[key]

    def _log(
        self,
        known: _Known,
        time_ms: int,
        metrics: Mapping[str, float],
        params: Mapping[str, str] = MappingProxyType({}),
        tags: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """One ``log_batch`` of what is not there yet."""
        new = {name: value for name, value in metrics.items() if known.metrics.get(name) != value}
        if not (new or params or tags):
            return
        self.client.log_batch(
            known.run_id,
            [Metric(name, value, time_ms, 0) for name, value in new.items()],
            [Param(name, value) for name, value in params.items()],
            [RunTag(name, value) for name, value in tags.items()],
        )
        known.metrics.update(new)
        known.params.update(params)
        known.tags.update(tags)

    def _upload_video(self, known: _Known, record: Record) -> None:
        if (record.prompt_id, record.seed) not in self.upload:
            return
        with contextlib.suppress(FileNotFoundError), self.videos.fetched(record.video) as path:
            self.client.log_artifact(known.run_id, str(path), "video")

    def _status(self, known: _Known, status: str, end_ms: int | None = None) -> None:
        if status == RUNNING:
            self.client.update_run(known.run_id, status=RUNNING)
        elif known.status != status:
            self.client.set_terminated(known.run_id, status=status, end_time=end_ms)
        known.status = status

    def _forget(self, key: str) -> None:
        self.client.delete_run(self.known.pop(key).run_id)


def open_store(
    uri: str, experiment: str, artifact_root: Path | None, sweep_key: str, spec: Mapping[str, Any], videos: Store
) -> RunStore:
    """Connect, and find what the experiment already holds of this sweep. ``artifact_root`` None: the server's own place."""
    client = MlflowClient(tracking_uri=uri)
    location = artifact_root.resolve().as_uri() if artifact_root else None
    found = _experiment(client, experiment, location)
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow experiment {experiment!r} is deleted: restore it, or set tracking.experiment to another")
    return RunStore(client, found.experiment_id, sweep_key, spec, videos)


def _experiment(client: MlflowClient, name: str, location: str | None) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        kind = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's pages for runs, not those for chat traces
        return client.get_experiment(client.create_experiment(name, artifact_location=location, tags=kind))
    except MlflowException:
        found = client.get_experiment_by_name(name)  # made by somebody else in between
        if found is None:
            raise
        return found


def _known(run: Run) -> _Known:
    return _Known(run.info.run_id, run.info.status, dict(run.data.tags), dict(run.data.params), dict(run.data.metrics))


def _without_secrets(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A tracking URI or a cluster address may carry a password."""
    sections = {name: spec[name] for name in ("tracking", "cluster") if isinstance(spec.get(name), Mapping)}
    hidden = {name: {k: v for k, v in part.items() if k not in ("uri", "address")} for name, part in sections.items()}
    return dict(spec) | hidden
