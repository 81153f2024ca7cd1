"""A sweep in MLflow: sweep run -> arm runs -> prompts, brought up to date with a run folder at any time."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml
from mlflow import MlflowClient

from experiments import mlflow_cohort as cohort
from experiments import mlflow_rows as rows
from experiments.mlflow_links import NOTE, sweep_note
from experiments.mlflow_media import Media
from experiments.mlflow_plan import Plan
from experiments.mlflow_prompts import ADDED, UPDATED, PromptRuns, Prompts, PromptSteps, Quality
from experiments.mlflow_runs import FAILED, FINISHED, KILLED, NOTHING, RUNNING, SWEEP, Known, Runs
from experiments.mlflow_system import Samples
from experiments.mlflow_table import TABLE, table
from experiments.mlflow_traces import put_traces
from experiments.summary import ArmStats, arm_of, arm_stats
from orchestrator.paths import RunPaths
from orchestrator.store import Store
from orchestrator.types import Record


@dataclass(frozen=True)
class Changes:
    """What one completion did: prompts new to MLflow, and prompts that were there but lacked something."""

    num_records: int
    num_added: int
    num_updated: int
    problems: tuple[str, ...] = ()
    """Of videos, scores and traces that could not be sent; everything else was."""


class RunStore:
    """One run folder in one MLflow experiment. Every method may raise whatever MLflow raises; none is thread-safe."""

    def __init__(
        self, client: MlflowClient, experiment_id: str, paths: RunPaths, spec: Mapping[str, Any], plan: Plan, videos: Store
    ) -> None:
        self.client, self.paths, self.spec, self.plan = client, paths, spec, plan
        self.tracking: Mapping[str, Any] = spec.get("tracking") or {}
        self.settings = rows.arm_settings(spec)
        self.made_with = cohort.made_with(paths)
        self.runs = Runs(client, experiment_id, plan.sweep_key)
        self._arms_seen: set[str] = set()
        if plan.layout == "steps":
            self.prompts: Prompts = PromptSteps(self.runs, self._arm_of, plan)
        else:
            self.prompts = PromptRuns(self.runs, self._arm_of, self._cohort_of)
        self.media = Media(self.runs, videos, plan, self.tracking, len(self.settings))
        self.samples = Samples(self.runs, paths.system)
        self.problems: list[str] = []

    def start(self, start_ms: int | None = None) -> None:
        """Make or reopen the sweep run."""
        name = str(self.spec.get("name", "sweep"))
        software = cohort.software_tags(self.made_with) | {"software": cohort.software_line(self.made_with)}
        workloads = sorted({self._cohort(arm)["workload"] for arm in self.settings})
        tags = {"workload": rows.as_text("; ".join(workloads), rows.MAX_TAG_CHARS)}
        known = self.runs.ensure(SWEEP, "sweep", name, None, start_ms, software | tags | self._told())
        if known.status != RUNNING:
            self.runs.status(known, RUNNING)
        self.runs.log_dataset(known, cohort.dataset(self.spec))

    def _told(self) -> dict[str, str]:
        reference = self.spec.get("reference")
        return {"per_prompt": self.plan.layout} | ({"reference": str(reference)} if reference else {})

    def put(self, records: Sequence[Record], quality: Quality = NOTHING) -> list[str]:
        """Send records, with their strips and videos: "added", "updated" or "kept" for each."""
        outcomes = self.prompts.put(records, quality)
        for record in records:
            self.media.put(record, self._arm(record.arm))
        return outcomes

    def put_failure(self, failure: Mapping[str, Any]) -> None:
        self.prompts.fail(failure, lambda: self._arm(arm_of(failure)))

    def put_samples(self) -> None:
        """System metrics that were sampled since."""
        self.samples.put(self.runs.known[SWEEP])

    def complete(
        self, records: Sequence[Record], quality: Sequence[Mapping[str, Any]], failures: Iterable[Mapping[str, Any]] = ()
    ) -> Changes:
        """Bring MLflow up to date with the whole run and close it. Doing so twice adds nothing."""
        failures = list(failures)
        joined = {row["item_key"]: row for row in quality}
        outcomes = self.put(records, joined)
        for failure in failures:
            self.put_failure(failure)
        for stats in arm_stats(records, quality, self.spec.get("reference"), failures):
            self._finish_arm(stats, [r for r in records if r.arm == stats.arm], joined)
        self._fail_other_arms()
        self.put_samples()
        if self.tracking.get("traces"):
            self.problems += put_traces(self.runs, records, self.paths.events)
        self._finish_sweep(records, joined, failures)
        return Changes(len(records), outcomes.count(ADDED), outcomes.count(UPDATED), (*self.problems, *self.media.problems))

    def put_scores(self, records: Sequence[Record]) -> int:
        """VBench's scores of the arms that MLflow knows, whatever state they are in; how many arms got new ones."""
        num_changed = 0
        for name in dict.fromkeys(record.arm for record in records):
            if (known := self.runs.known.get(f"arm:{name}")) is not None:
                before, end_ms = dict(known.metrics), max(rows.milliseconds(r.finished_at) for r in records if r.arm == name)
                self.runs.log(known, end_ms, self._vbench(name))
                num_changed += known.metrics != before
        return num_changed

    def abandon(self) -> None:
        """Mark the sweep and arm runs as stopped before their end; the next run of the same sweep reopens them."""
        for known in self.runs.known.values():
            if known.status == RUNNING:
                self.runs.status(known, KILLED)

    def _finish_arm(self, stats: ArmStats, records: Sequence[Record], quality: Quality) -> None:
        """FAILED without a single video."""
        end_ms = max((rows.milliseconds(record.finished_at) for record in records), default=0)
        known = self._arm(stats.arm)
        metrics = rows.arm_metrics(records, quality, stats) | self._vbench(stats.arm)
        self.runs.log(known, end_ms, metrics, tags=cohort.hardware(records))
        self.runs.status(known, FINISHED if records else FAILED, end_ms or None)

    def _vbench(self, arm: str) -> dict[str, float]:
        """What ``dvg evaluate`` left in the run folder; a file that cannot be read is told and stops nothing."""
        from experiments.vbench.results import load_all
        from experiments.vbench.score import totals

        try:
            return rows.vbench_metrics(load_all(self.paths.root), totals, arm)
        except ValueError as error:
            self.problems.append(f"VBench results were not sent: {error}")
            return {}

    def _fail_other_arms(self) -> None:
        """End arm runs that an earlier start of the run left open and that have neither a video nor a failure now."""
        for key, known in self.runs.known.items():
            if key.startswith("arm:") and known.status == RUNNING:
                self.runs.log(known, 0, {"num_videos": 0.0, "num_failed": 0.0})
                self.runs.status(known, FAILED)

    def _finish_sweep(self, records: Sequence[Record], quality: Quality, failures: Sequence[Mapping[str, Any]]) -> None:
        known = self.runs.known[SWEEP]
        end_ms = max((rows.milliseconds(record.finished_at) for record in records), default=0)
        counts = {"num_videos": float(len(records)), "num_failed": float(len(failures))}
        arm_ids = [arm.run_id for key, arm in self.runs.known.items() if key.startswith("arm:")]
        note = sweep_note(self.runs.experiment_id, self.plan.sweep_key, sorted(arm_ids))
        shown = {"mlflow.loggedArtifacts": json.dumps([{"path": TABLE, "type": "table"}]), NOTE: note}
        self.runs.log(known, end_ms, counts, tags=cohort.hardware(records) | shown)
        self.runs.log_text(known, "config.resolved.yaml", yaml.safe_dump(_without_secrets(self.spec), sort_keys=False).encode())
        self.runs.log_text(known, TABLE, json.dumps(table(records, quality, failures)).encode())
        for path in (self.paths.summary, self.paths.report):
            if path.exists():
                self.runs.log_text(known, path.name, path.read_bytes())
        self.runs.status(known, FINISHED, end_ms or None)

    def _arm_of(self, record: Record) -> Known:
        start_ms = rows.milliseconds(record.finished_at) - int(record.latency_s * 1000)
        return self._arm(record.arm, start_ms, cohort.hardware([record]))

    def _arm(self, name: str, start_ms: int | None = None, hardware: Mapping[str, str] = NOTHING) -> Known:
        """The arm's run, with settings, cohort and prompts."""
        key = f"arm:{name}"
        if key in self._arms_seen:
            return self.runs.known[key]
        tags = {**self._cohort(name), **(hardware if key not in self.runs.known else {})}
        known = self.runs.ensure(key, "arm", name, self.runs.known[SWEEP].run_id, start_ms, tags)
        self.runs.log(known, 0, params=rows.arm_params(self.settings.get(name, {"name": name})) if not known.params else {})
        self.runs.log_dataset(known, cohort.dataset(self.spec))
        self._arms_seen.add(key)
        return known

    def _cohort(self, arm: str) -> dict[str, str]:
        return cohort.cohort(self.spec, self.settings.get(arm, {"name": arm}), self.made_with)

    def _cohort_of(self, record: Record) -> dict[str, str]:
        """A prompt run's own; the software is its arm's."""
        tags = self._cohort(record.arm) | cohort.hardware([record])
        return {name: tags[name] for name in ("workload", "recipe", "hardware")}


def open_store(uri: str, experiment: str, paths: RunPaths, spec: Mapping[str, Any], plan: Plan, videos: Store) -> RunStore:
    """Connect, and find what the experiment already holds of this sweep. Artifacts go where the server keeps its own."""
    from experiments.mlflow_connect import connect

    client, experiment_id = connect(uri, experiment, paths.mlflow_artifacts if uri == paths.mlflow_uri else None)
    return RunStore(client, experiment_id, paths, spec, plan, videos)


def _without_secrets(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A tracking URI or a cluster address may carry a password."""
    sections = {name: spec[name] for name in ("tracking", "cluster") if isinstance(spec.get(name), Mapping)}
    hidden = {name: {k: v for k, v in part.items() if k not in ("uri", "address")} for name, part in sections.items()}
    return dict(spec) | hidden
