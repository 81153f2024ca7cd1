"""Which actors and placement groups of a cluster are ours, and which of them their sweep left behind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.naming import Holding, holding

Row = Mapping[str, Any]
"""One row of Ray's state API."""
GONE = frozenset({"DEAD", "REMOVED"})


@dataclass(frozen=True)
class Held:
    """One actor or placement group of a sweep. ``alive``: the driver that made it still runs."""

    what: str
    """``actor`` or ``placement group``."""
    id: str
    name: str
    sweep: str
    kind: str
    state: str
    job: str
    alive: bool
    gpus: float
    namespace: str = ""


def held(actors: Iterable[Row], groups: Iterable[Row], jobs: Iterable[Row]) -> list[Held]:
    """What sweeps hold now, by sweep and name."""
    running = {str(job["job_id"]) for job in jobs if job.get("job_id") and not job.get("end_time")}
    found = [_actor(row, named, running) for row, named in _ours(actors)]
    found += [_group(row, named, running) for row, named in _ours(groups)]
    return sorted(found, key=lambda one: (one.sweep, one.what, one.name))


def _ours(rows: Iterable[Row]) -> list[tuple[Row, Holding]]:
    return [(row, named) for row in rows if row["state"] not in GONE and (named := holding(row["name"]))]


def _actor(row: Row, named: Holding, running: set[str]) -> Held:
    job, gpus = str(row["job_id"]), _gpus(row.get("required_resources"))
    where = str(row.get("ray_namespace") or "")
    return Held("actor", row["actor_id"], row["name"], named.sweep, named.kind, row["state"], job, job in running, gpus, where)


def _group(row: Row, named: Holding, running: set[str]) -> Held:
    gpus = sum(_gpus(bundle.get("unit_resources")) for bundle in row.get("bundles") or ())
    job = str(row["creator_job_id"])
    what = "placement group"
    return Held(what, row["placement_group_id"], row["name"], named.sweep, named.kind, row["state"], job, job in running, gpus)


def _gpus(resources: Mapping[str, float] | None) -> float:
    return float((resources or {}).get("GPU", 0))


def left_behind(found: Iterable[Held], sweep: str | None = None) -> list[Held]:
    """What no running driver made, of one sweep or of all."""
    return [one for one in found if not one.alive and sweep in (None, one.sweep)]


@dataclass(frozen=True)
class Nodes:
    """The nodes of one role that are up, and the GPUs that somebody reserved of theirs."""

    role: str
    count: int
    gpus: float
    gpus_busy: float


def nodes_by_role(nodes: Iterable[Row], actors: Sequence[Row], groups: Sequence[Row]) -> list[Nodes]:
    """A node without a ``role`` label counts as ``-``. GPUs count once: by placement group, or by an actor outside of one."""
    busy: dict[str, float] = {}
    for group in groups:
        for bundle in group.get("bundles") or () if group["state"] not in GONE else ():
            node = str(bundle.get("node_id"))
            busy[node] = busy.get(node, 0.0) + _gpus(bundle.get("unit_resources"))
    for actor in actors:
        if actor["state"] == "ALIVE" and not actor.get("placement_group_id"):
            node = str(actor.get("node_id"))
            busy[node] = busy.get(node, 0.0) + _gpus(actor.get("required_resources"))
    up = [node for node in nodes if node["state"] == "ALIVE"]
    roles = sorted({_role(node) for node in up})
    return [_of_role(role, [node for node in up if _role(node) == role], busy) for role in roles]


def _role(node: Row) -> str:
    return str((node.get("labels") or {}).get("role", "-"))


def _of_role(role: str, nodes: Sequence[Row], busy: Mapping[str, float]) -> Nodes:
    gpus = sum(_gpus(node.get("resources_total")) for node in nodes)
    return Nodes(role, len(nodes), gpus, sum(busy.get(str(node["node_id"]), 0.0) for node in nodes))
