"""Every prompt of a run as one table: an artifact of the sweep run, written once at the end, and read back from it.

In the form of MLflow's own ``log_table`` (columns and data), which its pages show and compare; written without pandas.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import mlflow_rows as rows
from experiments.summary import arm_of
from orchestrator.types import Record, as_row, record_from_row

if TYPE_CHECKING:
    from mlflow import MlflowClient

TABLE = "per_prompt.json"
ERROR = "error"


def table(
    records: Sequence[Record], quality: Mapping[str, Mapping[str, Any]], failures: Iterable[Mapping[str, Any]] = ()
) -> dict[str, list[Any]]:
    """``{"columns": [...], "data": [[...], ...]}``: a record's fields, ``quality.<metric>``, and ``error`` of what was given up.

    ``quality`` by item key. Ordered by prompt, seed and arm, so that the same run gives the same bytes.
    """
    made = [_row(record, quality.get(record.item_key, {})) for record in records]
    done = {record.item_key for record in records}
    given_up = [
        {**failure, "arm": arm_of(failure), "story": "\n".join(map(str, failure.get("story") or ()))}
        for failure in failures
        if failure.get("item_key") not in done
    ]
    every = sorted(made + given_up, key=lambda row: (str(row.get("prompt_id")), row.get("seed") or 0, str(row.get("arm"))))
    measured = dict.fromkeys(name for row in every for name in row if name.startswith(rows.QUALITY))
    columns = [*(f.name for f in fields(Record)), *rows.COMPARED, *sorted(measured), ERROR, "story"]
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in every]}


def _row(record: Record, quality: Mapping[str, Any]) -> dict[str, Any]:
    return as_row(record) | {name: quality.get(name) for name in rows.COMPARED} | rows.quality_metrics(quality)


def read_back(client: MlflowClient, sweep_run_id: str) -> tuple[list[Record], list[dict[str, Any]], list[dict[str, Any]]]:
    """Records, quality rows and failures of a finished sweep run. Raises what MLflow raises where it has no such table."""
    with tempfile.TemporaryDirectory() as folder:
        held = json.loads(Path(client.download_artifacts(sweep_run_id, TABLE, folder)).read_text(encoding="utf-8"))
    found = [dict(zip(held["columns"], row, strict=True)) for row in held["data"]]
    made = [row for row in found if row.get(ERROR) is None]
    failures = [_failure(row) for row in found if row.get(ERROR) is not None]
    return [record_from_row(row) for row in made], [_quality_row(row) for row in made if _is_measured(row)], failures


def _failure(row: Mapping[str, Any]) -> dict[str, Any]:
    names = ("item_key", "arm", "prompt_id", "prompt", "seed", "attempts", ERROR)
    return {name: row.get(name) for name in names} | {"story": str(row.get("story") or "").splitlines()}


def _quality_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """As ``quality.jsonl`` has it."""
    metrics = {name.removeprefix(rows.QUALITY): value for name, value in row.items() if name.startswith(rows.QUALITY)}
    identity = {name: row.get(name) for name in ("item_key", "arm", "prompt_id", "seed", "sha256", *rows.COMPARED)}
    return identity | {name: value for name, value in metrics.items() if value is not None}


def _is_measured(row: Mapping[str, Any]) -> bool:
    return any(value is not None for name, value in row.items() if name.startswith(rows.QUALITY))
