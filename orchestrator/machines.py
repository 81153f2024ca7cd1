"""The nodes of a cluster: of a running one, or of the file that describes one to ``ray up`` or to KubeRay."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from orchestrator.cluster import start_or_join
from orchestrator.degrees import gpu_gb
from orchestrator.mistakes import ConfigError
from orchestrator.placement import Machines, NodeType

RAYS_OWN_MAX_WORKERS = 2
"""What ``ray up`` takes where a file says nothing."""
KUBERAY_KINDS = ("RayJob", "RayCluster")
ACCELERATOR = "accelerator_type:"
"""Prefix of the resource by which Ray names a node's GPUs."""


def live_machines(address: str | None) -> Machines:
    """The nodes that a running cluster has now. Joins it and leaves it again. Raises RunError when there is none."""
    import ray

    cluster = start_or_join(address)
    try:
        nodes = [node for node in ray.nodes() if node["Alive"]]
    finally:
        cluster.leave()
    return Machines(_alike(map(_node, nodes)), f"the cluster at {cluster.address}, as it is now,")


def _node(node: Mapping[str, Any]) -> NodeType:
    resources, role = node["Resources"], node.get("Labels", {}).get("role")
    gpus = float(resources.get("GPU", 0))
    name = next((key.removeprefix(ACCELERATOR) for key in resources if key.startswith(ACCELERATOR)), "")
    return NodeType(f"{role or 'plain'} node", 1, float(resources.get("CPU", 0)), gpus, role, gpu_gb(name) if gpus else None)


def _alike(nodes: Iterable[NodeType]) -> tuple[NodeType, ...]:
    counts = Counter(nodes)
    return tuple(NodeType(n.name, number, n.cpus, n.gpus, n.role, n.gpu_gb) for n, number in counts.items())


def machines_of_file(path: Path) -> Machines:
    """All that a cluster may grow to. Raises ConfigError, with every mistake, for a file that describes none."""
    try:
        documents = [data for data in yaml.safe_load_all(path.read_text(encoding="utf-8")) if isinstance(data, dict)]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"--cluster {str(path)!r} cannot be read: {getattr(error, 'strerror', None) or error}"]) from error
    except yaml.YAMLError as error:
        raise ConfigError([f"--cluster {str(path)!r} is not valid YAML: {' '.join(str(error).split())}"]) from error
    for data in documents:
        try:
            if isinstance(data.get("available_node_types"), dict):
                return _of_ray(data, path.name)
            if data.get("kind") in KUBERAY_KINDS:
                return _of_kuberay(data, path.name)
        except _Malformed as error:
            raise ConfigError([f"--cluster {path.name}: {error}"]) from error
    raise ConfigError(
        [f"--cluster {str(path)!r} describes no cluster: it has neither available_node_types, as ray up reads, nor a RayJob"]
    )


class _Malformed(ValueError):
    """A value of another form than ``ray up`` or KubeRay take."""


def _mapping(value: Any, name: str) -> Mapping[str, Any]:
    """Nothing counts as empty."""
    if value is not None and not isinstance(value, dict):
        raise _Malformed(f"{name} must hold keys and values, not {value!r}")
    return value or {}


def _listed(value: Any, name: str) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise _Malformed(f"{name} must be a list, not {value!r}")
    return value or []


def _whole(value: Any, name: str) -> int:
    if re.fullmatch(r"\d+", str(value)) is None:
        raise _Malformed(f"{name} must be a whole number, not {value!r}")
    return int(value)


def _of_ray(data: Mapping[str, Any], source: str) -> Machines:
    most = _whole(data.get("max_workers", RAYS_OWN_MAX_WORKERS), "max_workers")
    head = data.get("head_node_type")
    nodes, mistakes = [], []
    for name, value in data["available_node_types"].items():
        row = _mapping(value, f"node type {name!r}")
        resources = row.get("resources")
        if not isinstance(resources, dict):
            mistakes.append(f"--cluster {source}: node type {name!r} needs resources, like {{CPU: 192, GPU: 8}}, to plan for it")
            continue
        number = 1 if name == head else min(_whole(row.get("max_workers", most), f"max_workers of {name!r}"), most)
        labels = _mapping(row.get("labels"), f"labels of {name!r}")
        nodes.append(_node_type(str(name), number, resources.get("CPU"), resources.get("GPU"), labels))
    if mistakes:
        raise ConfigError(mistakes)
    return Machines(tuple(node for node in nodes if node.cpus or node.gpus), source, most)


def _of_kuberay(data: Mapping[str, Any], source: str) -> Machines:
    spec = _mapping(data.get("spec"), "spec")
    spec = _mapping(spec.get("rayClusterSpec", spec), "rayClusterSpec")
    nodes = []
    for value in _listed(spec.get("workerGroupSpecs"), "workerGroupSpecs"):
        group = _mapping(value, "each of workerGroupSpecs")
        params, limits = _mapping(group.get("rayStartParams"), "rayStartParams"), _limits(group)
        labels = _mapping(group.get("labels"), "labels") or dict(
            part.split("=", 1) for part in str(params.get("labels", "")).split(",") if "=" in part
        )
        cpus, gpus = params.get("num-cpus", limits.get("cpu")), params.get("num-gpus", limits.get("nvidia.com/gpu"))
        number = _whole(group.get("maxReplicas", group.get("replicas", 1)), "maxReplicas")
        nodes.append(_node_type(str(group.get("groupName", "workers")), number, cpus, gpus, labels))
    if not nodes:
        raise ConfigError([f"--cluster {source}: a {data['kind']} without workerGroupSpecs has no node to plan for"])
    return Machines(tuple(nodes), source)


def _limits(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the Ray container, which is a pod's first."""
    template = _mapping(group.get("template"), "template")
    containers = _listed(_mapping(template.get("spec"), "spec of template").get("containers"), "containers")
    container = _mapping(containers[0] if containers else None, "each of containers")
    resources = _mapping(container.get("resources"), "resources")
    return _mapping(resources.get("limits"), "limits") or _mapping(resources.get("requests"), "requests")


def _node_type(name: str, number: int, cpus: Any, gpus: Any, labels: Mapping[str, Any]) -> NodeType:
    return NodeType(name, number, _amount(cpus, name), _amount(gpus, name), labels.get("role"))


def _amount(value: Any, name: str) -> float:
    """``"8"``, ``8`` or Kubernetes' ``"7500m"``."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(m?)", str(value or 0).strip('"'))
    if found is None:
        raise _Malformed(f"CPUs and GPUs of {name!r} must be a number, or one of thousandths like 7500m, not {value!r}")
    return float(found[1]) / (1000 if found[2] else 1)
