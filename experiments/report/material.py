"""What a report is made of: one or several runs as they are on disk, brought under one set of names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from experiments.report.radar import Scores
from experiments.report.remarks import Remarks, read_remarks
from experiments.report.spans import Log, read_logs
from experiments.summary import arm_of
from experiments.vbench.results import load_all
from orchestrator.config import read_yaml
from orchestrator.mistakes import ConfigError, unknown
from orchestrator.paths import RunPaths, file_name
from orchestrator.store import FolderStore, Store
from orchestrator.types import Record

Row = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """One run: its small files in ``paths``, its videos in ``store``."""

    paths: RunPaths
    store: Store
    records: Sequence[Record]
    quality: Sequence[Row]
    failures: Sequence[Row]
    name: str = ""
    """Of several, what tells it apart."""


@dataclass(frozen=True)
class Home:
    """Where a record's video lies."""

    store: Store
    video: str
    num_bytes: int
    """As its record says; the file's own where it is on this machine."""


@dataclass(frozen=True)
class Material:
    """Arms, items and prompts of all runs; ``spec`` has name, reference and the order of prompts as a run's config does."""

    records: Sequence[Record]
    quality: Sequence[Row]
    failures: Sequence[Row]
    spec: Row
    commits: Sequence[str]
    homes: Mapping[str, Home]
    """By item key."""
    scores: Scores
    logs: Sequence[tuple[str, Log]] = field(default=())
    """Of every start of every run, with a title where there are several."""
    remarks: Remarks = field(default_factory=dict)


def gather(sources: Sequence[Source], base: str | None = None) -> Material:
    """Arms of several runs go by ``run/arm``. ``base``: what speedups are against; None: the first run's reference arm.

    Raises ConfigError for a ``base`` that no run has, and for results of VBench that cannot be read.
    """
    found = [_one(source, len(sources) > 1) for source in sources]
    spec = _joined([material.spec for material in found])
    records = [record for material in found for record in material.records]
    failures = [failure for material in found for failure in material.failures]
    arms = sorted({record.arm for record in records} | {arm_of(failure) for failure in failures})
    if base is not None and base not in arms:
        raise ConfigError([unknown("arm (--base)", base, arms)])
    return Material(
        records=records,
        quality=[row for material in found for row in material.quality],
        failures=failures,
        spec={**spec, "reference": base} if base else spec,
        commits=[commit for material in found for commit in material.commits],
        homes={key: home for material in found for key, home in material.homes.items()},
        scores=_merged([material.scores for material in found]),
        remarks=_merged([material.remarks for material in found]),
        logs=[log for material in found for log in material.logs],
    )


def _one(source: Source, is_one_of_many: bool) -> Material:
    spec = read_yaml(source.paths.config) if source.paths.config.exists() else {}
    prefix = f"{source.name}/" if is_one_of_many else ""
    records = [replace(r, arm=prefix + r.arm, item_key=prefix + r.item_key) for r in source.records]
    labels = {file_name(r.arm): prefix + r.arm for r in source.records}
    homes = {prefix + r.item_key: _home(source.store, r) for r in source.records}
    return Material(
        records=records,
        quality=[_renamed(row, prefix, "item_key", "arm", "reference_arm") for row in source.quality],
        failures=[{**_renamed(row, prefix, "item_key"), "arm": prefix + arm_of(row)} for row in source.failures],
        spec={**spec, **_prefixed(spec, prefix)} if prefix else spec,
        commits=_commits(source.paths),
        homes=homes,
        scores=_under(labels, prefix, load_all(source.paths.root)),
        remarks=_under(labels, prefix, read_remarks(source.paths.root)),
        logs=list(_titled(source.name, [_renamed_log(log, prefix) for log in read_logs(_rows(source.paths))])),
    )


def _under(labels: Mapping[str, str], prefix: str, found: Mapping[str, Mapping[str, T]]) -> dict[str, dict[str, T]]:
    """By suite and arm, the arms called as the page calls them."""
    return {suite: {labels.get(arm, prefix + arm): value for arm, value in arms.items()} for suite, arms in found.items()}


def _merged(parts: Sequence[Mapping[str, Mapping[str, T]]]) -> dict[str, dict[str, T]]:
    merged: dict[str, dict[str, T]] = {}
    for part in parts:
        for suite, arms in part.items():
            merged.setdefault(suite, {}).update(arms)
    return merged


def _home(store: Store, record: Record) -> Home:
    """Raises nothing for a video that is gone: it has no bytes."""
    if not isinstance(store, FolderStore):
        return Home(store, record.video, record.num_bytes)
    path = store.root / record.video
    return Home(store, record.video, path.stat().st_size if path.is_file() else 0)


def _renamed(row: Row, prefix: str, *names: str) -> dict[str, Any]:
    return {**row, **{name: prefix + row[name] for name in names if row.get(name) is not None}}


def _prefixed(spec: Row, prefix: str) -> dict[str, Any]:
    arms = [{**arm, "name": f"{prefix}{arm.get('name')}"} for arm in spec.get("arms") or ()]
    reference = spec.get("reference")
    return {"arms": arms, "reference": prefix + reference if reference else None}


def _renamed_log(log: Log, prefix: str) -> Log:
    return replace(log, spans=[replace(span, arm=prefix + span.arm) for span in log.spans]) if prefix else log


def _titled(name: str, logs: Sequence[Log]) -> Iterator[tuple[str, Log]]:
    for index, log in enumerate(logs, start=1):
        start = f"start {index} of {len(logs)}" if len(logs) > 1 else ""
        yield ", ".join(part for part in (name, start) if part), log


def _joined(specs: Sequence[Row]) -> dict[str, Any]:
    return {
        "name": ", ".join(dict.fromkeys(str(spec["name"]) for spec in specs if spec.get("name"))),
        "reference": next((spec["reference"] for spec in specs if spec.get("reference")), None),
        "arms": [arm for spec in specs for arm in spec.get("arms") or ()],
        "prompts": [prompt for spec in specs for prompt in spec.get("prompts") or ()],
    }


def _commits(paths: RunPaths) -> list[str]:
    """The commit of each start of the run, which need not be the one that writes the report."""
    starts = json.loads(paths.manifest.read_text(encoding="utf-8"))["starts"] if paths.manifest.exists() else ()
    return [start["commit"] for start in starts if start.get("commit")]


def _rows(paths: RunPaths) -> Iterator[dict[str, Any]]:
    """Whole lines of the event log; the one being written is left out."""
    if not paths.events.exists():
        return
    with paths.events.open(encoding="utf-8") as lines:
        yield from (json.loads(line) for line in lines if line.endswith("}\n"))
