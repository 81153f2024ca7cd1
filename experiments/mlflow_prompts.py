"""A record in MLflow: as a run under its arm's run, or as a step of the arm run's metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from mlflow.entities import Metric

from experiments import mlflow_rows as rows
from experiments.mlflow_plan import Plan
from experiments.mlflow_runs import FAILED, FINISHED, Known, Runs
from orchestrator.types import Record

ADDED, UPDATED, KEPT = "added", "updated", "kept"
AT_ONCE = 100
"""Records of one transaction: one to two seconds in which others wait."""
CALLS_AT_ONCE = 4
"""Of a server, which answers each in 50 to 100 ms and works on several."""
MARK = rows.STEP + "density"
"""Every record has it: where it is, the record is."""

ArmRun = Callable[[Record], Known]
Quality = Mapping[str, Mapping[str, Any]]
"""Quality rows by item key."""


class Prompts(Protocol):
    def put(self, records: Sequence[Record], quality: Quality) -> list[str]:
        """Bring MLflow up to date; ``ADDED``, ``UPDATED`` or ``KEPT`` for each, the last when all of it was there."""

    def fail(self, failure: Mapping[str, Any], arm: Callable[[], Known]) -> None:
        """An item that was given up."""


class PromptRuns:
    """One run per item. A later success completes the run of a failure."""

    def __init__(self, runs: Runs, arm_run: ArmRun, tags: Callable[[Record], dict[str, str]]) -> None:
        self.runs, self._arm_run, self._tags = runs, arm_run, tags

    def put(self, records: Sequence[Record], quality: Quality) -> list[str]:
        outcomes: list[str] = []
        for start in range(0, len(records), AT_ONCE):
            batch = records[start : start + AT_ONCE]
            with self.runs.at_once():
                outcomes += self._batch(batch, quality)
        return outcomes

    def _batch(self, records: Sequence[Record], quality: Quality) -> list[str]:
        """One after another into a database, several at once to a server."""
        parents = {record.arm: self._arm_run(record) for record in records if not self._is_whole(record, quality)}
        if self.runs.sqlite is not None or len(records) == 1:
            return [self._one(record, quality, parents) for record in records]
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            return list(pool.map(lambda record: self._one(record, quality, parents), records))

    def _is_whole(self, record: Record, quality: Quality) -> bool:
        known = self.runs.known.get(record.item_key)
        if known is None or known.status != FINISHED or known.tags.get("sha256", record.sha256) != record.sha256:
            return False
        row = quality.get(record.item_key)
        lacks_a_tag = any(row.get(name) not in (None, known.tags.get(name)) for name in rows.COMPARED) if row else False
        return not lacks_a_tag and rows.prompt_metrics(record, row).items() <= known.metrics.items()

    def _one(self, record: Record, quality: Quality, parents: Mapping[str, Known]) -> str:
        if self._is_whole(record, quality):
            return KEPT
        known = self.runs.known.get(record.item_key)
        if known and known.tags.get("sha256", record.sha256) != record.sha256:
            self.runs.forget(record.item_key)  # the video was made again
            known = None
        self._write(record, quality.get(record.item_key), parents[record.arm])
        return UPDATED if known else ADDED

    def _write(self, record: Record, quality: Mapping[str, Any] | None, parent: Known) -> None:
        end_ms = rows.milliseconds(record.finished_at)
        start_ms = end_ms - int(record.latency_s * 1000)
        tags = rows.prompt_tags(record, quality) | self._tags(record)
        name = f"{record.prompt_id}-{record.seed}"
        run = self.runs.ensure(record.item_key, "prompt", name, parent.run_id, start_ms, tags)
        if (
            self.runs.sqlite is not None
        ):  # in one transaction the order is free, and MLflow reads back all that a run it ends holds
            self.runs.status(run, FINISHED, end_ms)
        self._write_steps(run, record, end_ms)
        self.runs.log(run, end_ms, rows.prompt_metrics(record, quality), rows.prompt_params(record))
        self.runs.status(run, FINISHED, end_ms)

    def _write_steps(self, run: Known, record: Record, time_ms: int) -> None:
        """What attention kept in every solver step, unless the run has it. In one call: all of it or nothing."""
        points = rows.attention_steps(record)
        if points and points[0][0] not in run.metrics:
            self.runs.log_points(run, [[Metric(name, value, time_ms, step) for name, value, step in points]])
            run.metrics.update({name: value for name, value, _ in points})

    def fail(self, failure: Mapping[str, Any], arm: Callable[[], Known]) -> None:
        """A run with status FAILED, the error and the story."""
        key = str(failure["item_key"])
        if (found := self.runs.known.get(key)) and found.status in (FINISHED, FAILED):
            return
        story = "\n".join(map(str, failure.get("story") or ()))
        told = {"error": failure.get("error"), "story": story}
        tags = {name: rows.as_text(text, rows.MAX_TAG_CHARS) for name, text in told.items()}
        name = f"{failure.get('prompt_id', key)}-{failure.get('seed', '')}"
        known = self.runs.ensure(key, "prompt", name, arm().run_id, None, tags)
        self.runs.log(known, 0, params=rows.failure_params(failure))
        self.runs.status(known, FAILED)


class PromptSteps:
    """One step of the arm run's metrics per prompt and seed: the same step in every arm, and in every start of the run.

    What an arm holds is read back once. A video made again is one more point at its step, later in time.
    """

    def __init__(self, runs: Runs, arm_run: ArmRun, plan: Plan) -> None:
        self.runs, self._arm_run, self._plan = runs, arm_run, plan
        self._held: dict[tuple[str, str], set[tuple[float, ...]]] = {}

    def put(self, records: Sequence[Record], quality: Quality) -> list[str]:
        outcomes: dict[str, str] = {}
        for arm in dict.fromkeys(record.arm for record in records):
            mine = [record for record in records if record.arm == arm]
            known = self._arm_run(min(mine, key=lambda record: record.finished_at))
            for start in range(0, len(mine), AT_ONCE):
                outcomes |= self._batch(known, mine[start : start + AT_ONCE], quality)
        return [outcomes[record.item_key] for record in records]

    def _batch(self, known: Known, records: Sequence[Record], quality: Quality) -> dict[str, str]:
        found = {record.item_key: self._points(known, record, quality.get(record.item_key)) for record in records}
        with self.runs.at_once():
            self.runs.log_points(known, [points for points, _ in found.values() if points])
        self._remember(known, [point for points, _ in found.values() for point in points])
        return {key: outcome for key, (_, outcome) in found.items()}

    def _points(self, known: Known, record: Record, quality: Mapping[str, Any] | None) -> tuple[list[Metric], str]:
        """What MLflow lacks of a record, and what to call that."""
        step, time_ms = self._plan.step((record.prompt_id, record.seed)), rows.milliseconds(record.finished_at)
        there = (step, time_ms) in self._held_of(known, MARK)
        values = rows.quality_metrics(quality or {}) if there else rows.prompt_metrics(record, quality)
        points = [Metric(rows.STEP + name, value, time_ms, step) for name, value in values.items()]
        if there:
            points = [point for point in points if (step, time_ms, point.value) not in self._held_of(known, point.key)]
            return points, UPDATED if points else KEPT
        return points, ADDED

    def _held_of(self, known: Known, name: str) -> set[tuple[float, ...]]:
        """Step and time of every point of a metric that the arm had when it was first asked, and has got since; of one that may
        change, also the value."""
        key = (known.run_id, name)
        if key not in self._held:
            found = self.runs.client.get_metric_history(known.run_id, name) if name in known.metrics else []
            self._held[key] = {_mark(point) for point in found}
        return self._held[key]

    def _remember(self, known: Known, points: Sequence[Metric]) -> None:
        for point in points:
            if point.key == MARK or point.key.startswith(rows.STEP + rows.QUALITY):
                self._held_of(known, point.key).add(_mark(point))

    def fail(self, failure: Mapping[str, Any], arm: Callable[[], Known]) -> None:
        """No point: the arm counts it, and the table of prompts holds its error."""
        arm()


def _mark(point: Metric) -> tuple[float, ...]:
    return (point.step, point.timestamp) if point.key == MARK else (point.step, point.timestamp, point.value)
