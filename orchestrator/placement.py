"""Whether a sweep's workers fit a cluster's nodes: each pod whole on one node of its role, and a place for every other worker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from orchestrator.cluster_config import ClusterConfig

ROLES = {"pod": ("heavy",), "sketch": ("sketch",), "decode": ("sketch", "decode")}
"""Labels ``role`` of the nodes for each kind of worker, where any node carries one."""
WORDS = {"pod": "pods", "sketch": "sketch workers", "decode": "decode workers"}


@dataclass(frozen=True)
class NodeType:
    """``number`` nodes alike: as many as there are, or as the cluster may grow to."""

    name: str
    number: int
    cpus: float
    gpus: float = 0.0
    role: str | None = None
    gpu_gb: float | None = None
    """Memory of each GPU, in 10^9 bytes; None: not known."""


@dataclass(frozen=True)
class Machines:
    nodes: tuple[NodeType, ...]
    source: str
    """For people."""
    most_workers: int | None = None
    """Nodes that may be up at once beside the head; None: all of them."""

    @property
    def uses_roles(self) -> bool:
        return any(node.role for node in self.nodes)

    def offering(self, kind: str) -> list[NodeType]:
        """Types that may hold workers of a kind."""
        return [node for node in self.nodes if not self.uses_roles or node.role in ROLES[kind]]

    @property
    def num_cpus(self) -> float:
        return sum(node.number * node.cpus for node in self.nodes)

    @property
    def num_gpus(self) -> float:
        return sum(node.number * node.gpus for node in self.nodes)


@dataclass(frozen=True)
class Unit:
    """What one worker takes: ``members`` processes, each with its share of a node, all on one node."""

    kind: str
    members: int
    cpus: float
    gpus: float

    def told(self) -> str:
        of_each = f"{self.gpus:g} GPU" if self.gpus else f"{self.cpus:g} CPU"
        return f"{self.members} x {of_each}" if self.members > 1 else of_each


@dataclass
class _Room:
    """What is left of the nodes."""

    nodes: list[tuple[NodeType, list[float]]] = field(default_factory=list)
    """(Type, [CPUs left, GPUs left]) of every node."""
    used: set[int] = field(default_factory=set)

    def place(self, unit: Unit, number: int, kinds: Sequence[NodeType]) -> int:
        """How many of ``number`` find a place: on nodes in use first, then on the smallest that will do."""
        order = sorted(range(len(self.nodes)), key=lambda i: (i not in self.used, self.nodes[i][0].gpus, self.nodes[i][0].cpus))
        placed = 0
        for index in order:
            kind, left = self.nodes[index]
            if placed == number or kind not in kinds:
                continue
            here = min(number - placed, _times(left, unit))
            if here:
                self.used.add(index)
                left[0] -= here * unit.members * unit.cpus
                left[1] -= here * unit.members * unit.gpus
            placed += here
        return placed


def _times(left: Sequence[float], unit: Unit) -> int:
    """How often a unit fits what is left of a node."""
    asked = [(left[0], unit.members * unit.cpus), (left[1], unit.members * unit.gpus)]
    return min(int(have / need + 1e-6) for have, need in asked if need > 0)


def units(config: ClusterConfig, num_cpus: float) -> dict[str, tuple[Unit, int]]:
    """Each kind's unit and how many the sweep starts with. CPUs are shared out, at most one to each process."""
    num_decode = config.decode_workers if config.decode_on == "workers" else 0
    processes = config.sketch_workers + config.most_pods * config.heavy_ranks + num_decode
    cpus = min(1.0, int(100 * num_cpus / processes) / 100) or 0.01
    return {
        "pod": (Unit("pod", config.heavy_ranks, cpus, config.gpus_per_rank), config.pods),
        "sketch": (Unit("sketch", 1, cpus, config.gpus_per_sketch), config.sketch_workers),
        "decode": (Unit("decode", 1, cpus, config.gpus_per_decode), num_decode),
    }


def placement_mistakes(config: ClusterConfig, machines: Machines) -> list[str]:
    """Every worker that finds no place, pods first; empty when the sweep can start whole."""
    room = _Room([(node, [node.cpus, node.gpus]) for node in machines.nodes for _ in range(node.number)])
    found = []
    for kind, (unit, number) in units(config, machines.num_cpus).items():
        placed = room.place(unit, number, machines.offering(kind))
        if placed < number:
            found.append(_no_place(unit, number, placed, machines))
    most = machines.most_workers
    if not found and most is not None and len(room.used) > most:
        found.append(f"the workers take {len(room.used)} nodes, and {machines.source} allows {most} at once (max_workers)")
    return found


def _no_place(unit: Unit, number: int, placed: int, machines: Machines) -> str:
    role = f" of role {' or '.join(ROLES[unit.kind])}" if machines.uses_roles else ""
    offering = machines.offering(unit.kind)
    if not offering:
        return f"no node{role} for {number} {WORDS[unit.kind]}; {machines.source} has {_told(machines.nodes)}"
    if placed:
        return (
            f"{placed} of {number} {WORDS[unit.kind]} ({unit.told()} each) find a place on nodes{role}: {machines.source} has "
            f"{_told(offering)}"
        )
    whole = f"a pod is whole on one node, {unit.told()}" if unit.members > 1 else f"{WORDS[unit.kind]} take {unit.told()} each"
    return f"{whole}, and no node{role} has that much left: {machines.source} has {_told(offering)}"


def _told(nodes: Iterable[NodeType]) -> str:
    rows = [f"{n.number} x {n.name} ({f'{n.gpus:g} GPUs' if n.gpus else f'{n.cpus:g} CPUs'})" for n in nodes]
    return ", ".join(rows) or "no nodes"


def most_pods(config: ClusterConfig, machines: Machines) -> int:
    """Pods that find a place beside the sketch and decode workers, up to ``config.most_pods``."""
    room = _Room([(node, [node.cpus, node.gpus]) for node in machines.nodes for _ in range(node.number)])
    wanted = units(config, machines.num_cpus)
    sure = room.place(wanted["pod"][0], config.pods, machines.offering("pod"))
    for kind in ("sketch", "decode"):
        room.place(*wanted[kind], machines.offering(kind))
    return sure + room.place(wanted["pod"][0], config.most_pods - sure, machines.offering("pod"))
