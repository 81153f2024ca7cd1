"""The way to MLflow: a client, and the experiment, made if there is none."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from urllib.parse import urlsplit

from mlflow import MlflowClient
from mlflow.entities import Experiment
from mlflow.exceptions import MlflowException

from experiments.mlflow_links import NOTE, experiment_note

KIND = {"mlflow.experimentKind": "custom_model_development"}
"""MLflow's pages for runs, not those for chat traces."""


def connect(uri: str, experiment: str, artifact_root: Path | None) -> tuple[MlflowClient, str]:
    """A client and the experiment's id. ``artifact_root`` None: where the server keeps its own.

    Raises ValueError for a deleted experiment or a database that this client cannot write, and whatever MLflow raises.
    """
    refuse_database_without_driver(uri)
    client = MlflowClient(tracking_uri=uri)
    found = _experiment(client, experiment, artifact_root.resolve().as_uri() if artifact_root else None)
    if found.lifecycle_stage != "active":
        raise ValueError(f"MLflow experiment {experiment!r} is deleted: restore it, or set tracking.experiment to another")
    return client, found.experiment_id


def refuse_database_without_driver(uri: str) -> None:
    """``mlflow-skinny`` alone talks to servers, not to databases."""
    scheme = urlsplit(uri).scheme
    if scheme not in ("http", "https") and importlib.util.find_spec("sqlalchemy") is None:
        raise ValueError(f"{scheme}: is for the full package (pip install mlflow); mlflow-skinny writes to http(s) servers alone")


def _experiment(client: MlflowClient, name: str, location: str | None) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found
    try:
        made = client.create_experiment(name, artifact_location=location, tags=KIND)
        client.set_experiment_tag(made, NOTE, experiment_note(made))
        return client.get_experiment(made)
    except MlflowException:
        found = client.get_experiment_by_name(name)  # made by somebody else in between
        if found is None:
            raise
        return found
