"""ray_cluster.yaml is what Ray accepts, and its roles are the ones workers ask for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from orchestrator.crew import ROLES

FILE = Path(__file__).parents[2] / "ray_cluster.yaml"


def config() -> dict[str, Any]:
    return dict(yaml.safe_load(FILE.read_text()))


def test_rays_own_validation_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(config()))


def test_rays_own_validation_rejects_a_misspelt_key() -> None:
    with pytest.raises(jsonschema.ValidationError, match="max_wrokers"):
        validate_config(prepare_config(config() | {"max_wrokers": 3}))


def test_every_role_that_workers_ask_for_is_on_some_node_and_the_head_takes_no_work() -> None:
    types = config()["available_node_types"]
    offered = {entry["labels"]["role"] for entry in types.values()}
    for selector in ROLES.values():
        choices = selector.removeprefix("in(").removesuffix(")").split(",")
        assert offered & set(choices), selector
    assert types["head"]["resources"] == {"CPU": 0, "GPU": 0}


def test_every_node_starts_ray_in_token_mode() -> None:
    commands = [*config()["head_start_ray_commands"], *config()["worker_start_ray_commands"]]
    starts = [command for command in commands if "ray start" in command]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
