"""Which runs may be compared: tags for workload, recipe, hardware and software, and the prompts as a dataset. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.manifest import software
from orchestrator.paths import RunPaths
from orchestrator.types import Record

NOT_THE_RECIPE = ("name", "cost", "weights", "device_name")
"""Of an arm: what it is called, what was predicted, and where weights lie (``revision`` says which they are)."""


def cohort(spec: Mapping[str, Any], settings: Mapping[str, Any], made_with: Mapping[str, Any]) -> dict[str, str]:
    """An arm's tags but for the hardware, which its records know."""
    return {
        "workload": workload(settings, spec.get("prompts") or ()),
        "recipe": recipe(settings),
        "software": software_line(made_with),
    }


def workload(settings: Mapping[str, Any], prompts: Iterable[Mapping[str, Any]]) -> str:
    """What is asked for: ``wan-mini 41x144x144, 24 prompts 1f0c9a2b``."""
    prompts = list(prompts)
    shape = "x".join(str(settings.get(name, "?")) for name in ("num_frames", "height", "width"))
    return f"{settings.get('model', '?')} {shape}, {len(prompts)} prompts {prompts_digest(prompts)}"


def recipe(settings: Mapping[str, Any]) -> str:
    """Twelve hex digits of how an arm makes its videos: the same in any sweep, on any machine."""
    kept = {name: value for name, value in settings.items() if name not in NOT_THE_RECIPE}
    return _digest(kept, 12)


def prompts_digest(prompts: Iterable[Mapping[str, Any]]) -> str:
    return _digest([[row.get("id"), row.get("prompt"), row.get("seed"), row.get("images")] for row in prompts], 8)


def _digest(value: Any, num_chars: int) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:num_chars]


def hardware(records: Iterable[Record]) -> dict[str, str]:
    """The devices that made these videos; nothing without one."""
    devices = sorted({record.device for record in records})
    return {"hardware": ", ".join(devices)} if devices else {}


def made_with(paths: RunPaths) -> dict[str, Any]:
    """Versions and commit of the run's last start, as its manifest has them; those of this process without one."""
    try:
        return dict(json.loads(paths.manifest.read_text(encoding="utf-8"))["starts"][-1])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return software()


def software_line(made: Mapping[str, Any]) -> str:
    """For example ``dvg 0.1.0 1a2b3c4d, torch 2.13.0, diffusers 0.42.1``."""
    packages = {name: version for name, version in (made.get("packages") or {}).items() if version and name != "mlflow"}
    told = [f"dvg {made.get('dvg')} {(made.get('commit') or '')[:8]}".strip()]
    return ", ".join([*told, *(f"{name} {version}" for name, version in packages.items())])


def software_tags(made: Mapping[str, Any]) -> dict[str, str]:
    """MLflow's own tags of the source, and the version of each package that shapes a result."""
    tags = {"mlflow.source.name": "dvg", "mlflow.source.type": "LOCAL"}
    tags |= {f"version.{name}": str(version) for name, version in (made.get("packages") or {}).items() if version}
    tags["version.dvg-orchestrator"] = str(made.get("dvg"))
    tags |= {"ray_job": str(made["ray_job"])} if made.get("ray_job") else {}
    return tags | ({"mlflow.source.git.commit": str(made["commit"])} if made.get("commit") else {})


def dataset(spec: Mapping[str, Any]) -> dict[str, str]:
    """The prompts as MLflow describes a dataset: the same name and digest wherever the same prompts and seeds are used."""
    rows = list(spec.get("prompts") or ())
    suite = spec.get("suite") or {}
    columns = [{"name": name, "type": kind, "required": True} for name, kind in COLUMNS.items()]
    return {
        "name": str(suite.get("name") or "prompts"),
        "digest": prompts_digest(rows),
        "source_type": "dvg",
        "source": json.dumps({"suite": suite, "file": "config.resolved.yaml"} if suite else {"file": "config.resolved.yaml"}),
        "schema": json.dumps({"mlflow_colspec": columns}),
        "profile": json.dumps({"num_rows": len(rows), "num_prompts": len({row.get("id") for row in rows})}),
    }


COLUMNS = {"id": "string", "prompt": "string", "seed": "long"}
