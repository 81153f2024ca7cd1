"""Sweeps as MLflow holds them, read back into what a run folder would have said. Read only, through MLflow's client."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, get_args, get_type_hints

from mlflow import MlflowClient
from mlflow.entities import Run as Tracked
from pydantic import TypeAdapter, ValidationError

from experiments.compare.sources import MLFLOW, Row, Run
from experiments.mlflow_rows import COMPARED, METRICS, QUALITY, VBENCH
from experiments.mlflow_runs import FAILED, FINISHED
from experiments.mlflow_table import read_back
from orchestrator.mistakes import ConfigError, RunError, without_password
from orchestrator.types import Record

PAGE = 5000
_RECORD = TypeAdapter(Record)
_TYPES = get_type_hints(Record)
_NOTHING: dict[Any, Any] = {str: "", int: 0, bool: False, float: math.nan}
"""For what MLflow was never told."""


def read_sweeps(name: str, uri: str) -> list[Run]:
    """Every sweep of the experiment ``name`` at a tracking URI, the oldest first; one that cannot be read says why.

    Raises ConfigError where there is none, RunError when MLflow cannot be asked.
    """
    told_uri = without_password(uri)
    try:
        client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(name)
        runs = list(_search(client, experiment.experiment_id)) if experiment else []
    except Exception as error:
        first = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise RunError(f"MLflow at {told_uri} cannot be read: {without_password(first)[:300]}") from error
    if experiment is None:
        raise ConfigError([f"{name!r} is neither a run folder nor an MLflow experiment at {told_uri}"])
    sweeps = sorted((run for run in runs if _is(run, "sweep")), key=lambda run: run.info.start_time)
    if not sweeps:
        raise ConfigError([f"MLflow experiment {name!r} at {told_uri} holds no sweep"])
    names = Counter(run.info.run_name for run in sweeps)
    return [_sweep(client, run, runs, f"{MLFLOW}{name}/{_name(run, names)}") for run in sweeps]


def _is(run: Tracked, level: str) -> bool:
    """Whether it is one of ours: others may use the word ``level``, too."""
    return run.data.tags["level"] == level and "sweep_key" in run.data.tags


def _search(client: MlflowClient, experiment_id: str) -> Iterator[Tracked]:
    """Sweep, arm and prompt runs that are not deleted."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], "tags.level != ''", max_results=PAGE, page_token=token)
        yield from page
        if not (token := page.token):
            return


def _name(run: Tracked, names: Mapping[str, int]) -> str:
    name = str(run.info.run_name)
    return name if names[name] == 1 else f"{name}-{run.info.run_id[:6]}"


def _sweep(client: MlflowClient, sweep: Tracked, runs: Sequence[Tracked], where: str) -> Run:
    try:
        return _read(client, sweep, runs, where)
    except (ConfigError, RunError) as error:
        return Run(where, (), trouble=f"{where} is left out: {error}")


def _read(client: MlflowClient, sweep: Tracked, runs: Sequence[Tracked], where: str) -> Run:
    """Raises RunError for a sweep without prompts, ConfigError for prompts that are not as they are written here."""
    mine = [run for run in runs if run.data.tags.get("sweep_key") == sweep.data.tags["sweep_key"]]
    arms, prompts = ([run for run in mine if _is(run, level)] for level in ("arm", "prompt"))
    reference = sweep.data.tags.get("reference") or None
    records, quality, failures = _of_runs(prompts, reference) if prompts else _of_table(client, sweep)
    compared = (row["reference_arm"] for row in quality if row.get("reference_arm"))
    return Run(
        where=where,
        records=tuple(records),
        quality=tuple(quality),
        failures=tuple(failures),
        reference=reference or next(compared, None),
        order=tuple(str(run.info.run_name) for run in sorted(arms, key=lambda run: run.info.start_time)),
        packages={name: sweep.data.tags[f"version.{name}"] for name in _packages(sweep)},
        scores={str(run.info.run_name): _scores(run) for run in arms},
    )


Found = tuple[list[Record], list[Row], list[Row]]
"""Records, quality rows and failures."""


def _of_runs(prompts: Sequence[Tracked], reference: str | None) -> Found:
    """Of prompts that are runs: also while the sweep goes on."""
    finished = [(run, _record(run)) for run in prompts if run.info.status == FINISHED]
    told = any(COMPARED[0] in run.data.tags for run in prompts)
    rows = [row for run, record in finished if (row := _quality(run, record, None if told else reference))]
    failures: list[Row] = [{"arm": run.data.params.get("arm")} for run in prompts if run.info.status == FAILED]
    return [record for _, record in finished], rows, failures


def _of_table(client: MlflowClient, sweep: Tracked) -> Found:
    """Of prompts that are steps: the table that a sweep ends with."""
    try:
        records, quality, failures = read_back(client, sweep.info.run_id)
    except Exception as error:
        told = without_password((str(error).splitlines() or [""])[0])[:300]
        raise RunError(f"it has neither prompt runs nor a table of prompts that can be read ({told})") from error
    return records, list(quality), list(failures)


def _record(run: Tracked) -> Record:
    """The record that a prompt run was made of; what MLflow was not told is empty, and NaN where it is a measurement."""
    metrics = {field: run.data.metrics[name] for name, field in METRICS.items() if name in run.data.metrics}
    said = {**run.data.tags, **run.data.params, **metrics}
    values = {field.name: _value(field.name, said) for field in dataclasses.fields(Record)}
    ended = datetime.fromtimestamp((run.info.end_time or 0) / 1000, UTC)
    values |= {"item_key": run.data.tags["item_key"], "finished_at": ended.isoformat(timespec="seconds")}
    try:
        return _RECORD.validate_python(values)
    except ValidationError as error:
        raise ConfigError(
            [f"MLflow run {run.info.run_id} is no prompt run that can be read: {error.errors()[0]['msg']}"]
        ) from error


def _value(name: str, said: Mapping[str, Any]) -> Any:
    if type(None) in get_args(_TYPES[name]):
        return None if said.get(name, "") == "" else said[name]
    return said.get(name, _NOTHING[_TYPES[name]])


def _quality(run: Tracked, record: Record, guess: str | None) -> Row:
    """A row as ``quality.jsonl`` has it; empty where nothing was measured. ``guess``: what videos were compared with in a sweep
    that was tracked before prompt runs said so."""
    values = {name.removeprefix(QUALITY): value for name, value in run.data.metrics.items() if name.startswith(QUALITY)}
    if not values:
        return {}
    told = {name: run.data.tags.get(name) for name in COMPARED}
    if guess is not None and record.arm != guess:
        told["reference_arm"] = guess
    return {"item_key": record.item_key, "arm": record.arm, **told, **values}


def _scores(run: Tracked) -> dict[str, float]:
    return {name: value for name, value in run.data.metrics.items() if name.partition(".")[0].startswith(VBENCH)}


def _packages(sweep: Tracked) -> list[str]:
    return [name.removeprefix("version.") for name in sweep.data.tags if name.startswith("version.")]
