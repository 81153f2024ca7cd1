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
        if isinstance(data.get("available_node_types"), dict):
            return _of_ray(data, path.name)
        if data.get("kind") in KUBERAY_KINDS:
            return _of_kuberay(data, path.name)
    raise ConfigError(
        [f"--cluster {str(path)!r} describes no cluster: it has neither available_node_types, as ray up reads, nor a RayJob"]
    )


def _of_ray(data: Mapping[str, Any], source: str) -> Machines:
    most = int(data.get("max_workers", RAYS_OWN_MAX_WORKERS))
    head = data.get("head_node_type")
    nodes, mistakes = [], []
    for name, row in data["available_node_types"].items():
        resources = row.get("resources")
        if not isinstance(resources, dict):
            mistakes.append(f"--cluster {source}: node type {name!r} needs resources, like {{CPU: 192, GPU: 8}}, to plan for it")
            continue
        number = 1 if name == head else min(int(row.get("max_workers", most)), most)
        nodes.append(_node_type(name, number, resources.get("CPU"), resources.get("GPU"), row.get("labels")))
    if mistakes:
        raise ConfigError(mistakes)
    return Machines(tuple(node for node in nodes if node.cpus or node.gpus), source, most)


def _of_kuberay(data: Mapping[str, Any], source: str) -> Machines:
    spec = data.get("spec") or {}
    spec = spec.get("rayClusterSpec", spec)
    nodes = []
    for group in spec.get("workerGroupSpecs") or ():
        params, limits = group.get("rayStartParams") or {}, _limits(group)
        labels = group.get("labels") or dict(
            part.split("=", 1) for part in str(params.get("labels", "")).split(",") if "=" in part
        )
        cpus, gpus = params.get("num-cpus", limits.get("cpu")), params.get("num-gpus", limits.get("nvidia.com/gpu"))
        number = int(group.get("maxReplicas", group.get("replicas", 1)))
        nodes.append(_node_type(group.get("groupName", "workers"), number, cpus, gpus, labels))
    if not nodes:
        raise ConfigError([f"--cluster {source}: a {data['kind']} without workerGroupSpecs has no node to plan for"])
    return Machines(tuple(nodes), source)


def _limits(group: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the Ray container, which is a pod's first."""
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    resources = containers[0].get("resources") or {}
    return resources.get("limits") or resources.get("requests") or {}


def _node_type(name: str, number: int, cpus: Any, gpus: Any, labels: Mapping[str, Any] | None) -> NodeType:
    return NodeType(name, number, _amount(cpus), _amount(gpus), (labels or {}).get("role"))


def _amount(value: Any) -> float:
    """``"8"``, ``8`` or Kubernetes' ``"7500m"``."""
    found = re.fullmatch(r"([0-9.]+)(m?)", str(value or 0).strip('"'))
    return float(found[1]) / (1000 if found[2] else 1) if found else 0.0
