"""What an MLflow store holds, for tests to compare."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Run

from orchestrator.paths import RunPaths

LEVELS = ("sweep", "arm", "prompt")


def runs(paths: RunPaths, uri: str | None = None, experiment: str = "dvg") -> list[Run]:
    client = MlflowClient(tracking_uri=uri or paths.mlflow_uri)
    found = client.get_experiment_by_name(experiment)
    return list(client.search_runs([found.experiment_id])) if found else []


def by_level(paths: RunPaths, uri: str | None = None, experiment: str = "dvg") -> dict[str, list[Run]]:
    found = runs(paths, uri, experiment)
    return {level: [run for run in found if run.data.tags["level"] == level] for level in LEVELS}


def arms(paths: RunPaths, uri: str | None = None, experiment: str = "dvg") -> dict[str, Run]:
    return {run.info.run_name: run for run in by_level(paths, uri, experiment)["arm"]}


def state(paths: RunPaths, uri: str | None = None, experiment: str = "dvg") -> dict[str, Any]:
    """Everything of every run that a repeated mirror could wrongly change or add."""
    client = MlflowClient(tracking_uri=uri or paths.mlflow_uri)
    return {
        run.info.run_id: (
            run.info.status,
            run.info.start_time,
            run.info.end_time,
            sorted(run.data.params.items()),
            sorted(run.data.tags.items()),
            {name: len(client.get_metric_history(run.info.run_id, name)) for name in run.data.metrics},
            sorted(run.data.metrics.items()),
            sorted(each.dataset.digest for each in run.inputs.dataset_inputs),
            sorted(file.path for file in client.list_artifacts(run.info.run_id)),
            sorted(file.path for file in client.list_artifacts(run.info.run_id, "images")),
        )
        for run in runs(paths, uri, experiment)
    }


def outline(paths: RunPaths, uri: str, experiment: str) -> dict[str, Any]:
    """:func:`state` in a few requests: without histories and without what prompt runs carry as files."""
    client, found = MlflowClient(tracking_uri=uri), runs(paths, uri, experiment)
    listed = {run.info.run_id: run.data.tags["level"] for run in found if run.data.tags["level"] != "prompt"}
    files = {run_id: sorted(file.path for file in client.list_artifacts(run_id, "images")) for run_id in listed}
    return {
        run.info.run_id: (
            *(run.info.status, run.info.start_time, run.info.end_time, dict(run.data.params), dict(run.data.tags)),
            *(dict(run.data.metrics), sorted(each.dataset.digest for each in run.inputs.dataset_inputs)),
            files.get(run.info.run_id),
        )
        for run in found
    }
