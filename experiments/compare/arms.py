"""The arms of some runs, each with its videos' figures under stable names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from experiments.compare import vbench_scores
from experiments.compare.sources import Row, Run
from experiments.compare.stats import Values
from experiments.metrics.names import METRICS, Metric
from experiments.metrics.quality import values_of
from experiments.summary import ArmStats, arm_stats
from orchestrator.types import Record

Key = tuple[str, int]
"""Prompt id and seed."""


@dataclass(frozen=True)
class Arm:
    """One arm of one run."""

    label: str
    """Unlike any other's: the arm's name, after the run's where several runs are compared."""
    run: Run
    stats: ArmStats
    records: Mapping[Key, Record]
    videos: Mapping[str, Values]
    """Metrics of single videos, by prompt and seed."""
    scores: Mapping[str, float]
    """What is known of the arm as a whole only, or goes before the mean over videos: VBench's scores and totals."""

    @property
    def name(self) -> str:
        return self.stats.arm

    @cached_property
    def reference_arms(self) -> frozenset[str]:
        return frozenset(str(row["reference_arm"]) for row in self._compared())

    @cached_property
    def references(self) -> Mapping[Key, str]:
        """Hashes of the videos that its own were measured against."""
        keys = {record.item_key: key for key, record in self.records.items()}
        rows = (row for row in self._compared() if row["item_key"] in keys and row.get("reference_sha256"))
        return {keys[row["item_key"]]: str(row["reference_sha256"]) for row in rows}

    def _compared(self) -> Iterable[Row]:
        return (row for row in self.run.quality if row["arm"] == self.name and row.get("reference_arm"))

    @cached_property
    def models(self) -> tuple[str, ...]:
        return _distinct(r.model for r in self.records.values())

    @cached_property
    def planners(self) -> tuple[str, ...]:
        return _distinct(r.planner for r in self.records.values())

    @cached_property
    def machines(self) -> tuple[str, ...]:
        """What its seconds were taken on."""
        return self.on(self.run.cores)

    def on(self, cores: int | None) -> tuple[str, ...]:
        """Its devices, processors with so many cores; None: as many as there are, not known."""
        told = f" ({cores} cores)" if cores else ""
        return _distinct(r.device + (told if r.device.startswith("cpu") else "") for r in self.records.values())


def _distinct(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(values)))


def arms_of(runs: Sequence[Run]) -> list[Arm]:
    """Every arm with a video or a failure: run by run, as each spec lists them."""
    readable = [run for run in runs if not run.trouble]
    return [arm for run in readable for arm in _arms(run, len(readable) > 1)]


def _arms(run: Run, prefixed: bool) -> Iterable[Arm]:
    found = {stats.arm: stats for stats in arm_stats(run.records, failures=run.failures)}
    listed = [name for name in run.order if name in found]
    for name in (*listed, *(name for name in found if name not in listed)):
        records = {(r.prompt_id, r.seed): r for r in run.records if r.arm == name}
        yield Arm(
            label=f"{run.name}/{name}" if prefixed else name,
            run=run,
            stats=found[name],
            records=records,
            videos={**_measured(run, records), **run.videos.get(name, {})},
            scores=run.scores.get(name, {}),
        )


def _measured(run: Run, records: Mapping[Key, Record]) -> dict[str, Values]:
    """By metric, in the order of ``METRICS``."""
    keys = {record.item_key: key for key, record in records.items()}
    found: dict[str, dict[Key, float]] = {}
    for row in run.quality:
        if row["item_key"] in keys:
            for name, value in values_of(row).items():
                found.setdefault(name, {})[keys[row["item_key"]]] = value
    return {name: found[name] for name in METRICS if name in found}


def metric_of(name: str) -> Metric:
    """What a metric is; those that are not the project's own are VBench's."""
    return METRICS.get(name) or vbench_scores.metric(name)
