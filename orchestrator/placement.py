"""Whether a sweep's workers fit a cluster's nodes: each pod whole on one node of its role, and a place for every other worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.cluster_config import ClusterConfig
from orchestrator.packing import SHARES, share_evenly

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


def units(config: ClusterConfig, cpus: float) -> dict[str, tuple[Unit, int]]:
    """Each kind's unit and how many the sweep starts with, every process on a share of ``cpus``."""
    num_decode = config.decode_workers if config.decode_on == "workers" else 0
    return {
        "pod": (Unit("pod", config.heavy_ranks, cpus, config.gpus_per_rank), config.pods),
        "sketch": (Unit("sketch", 1, cpus, config.gpus_per_sketch), config.sketch_workers),
        "decode": (Unit("decode", 1, cpus, config.gpus_per_decode), num_decode),
    }


def shares(config: ClusterConfig, machines: Machines) -> tuple[float, ...]:
    """CPUs that a process may reserve, as the crew tries them: on one node an even share, else the largest with which all fit."""
    if sum(node.number for node in machines.nodes) != 1:
        return SHARES
    processes = sum(unit.members * number for unit, number in units(config, 1.0).values())
    return (share_evenly(machines.num_cpus, processes) or 1.0,)


@dataclass(frozen=True)
class _Trial:
    """The crew on the nodes, with one share of CPUs."""

    wanted: Mapping[str, tuple[Unit, int]]
    placed: Mapping[str, int]
    room: _Room

    @property
    def fits(self) -> bool:
        return all(self.placed[kind] == number for kind, (_, number) in self.wanted.items())


def _tried(config: ClusterConfig, machines: Machines) -> _Trial:
    """With the largest share of CPUs that lets all of the crew in; with the smallest, if none does."""
    for share in shares(config, machines):
        room = _Room([(node, [node.cpus, node.gpus]) for node in machines.nodes for _ in range(node.number)])
        wanted = units(config, share)
        placed = {kind: room.place(unit, number, machines.offering(kind)) for kind, (unit, number) in wanted.items()}
        trial = _Trial(wanted, placed, room)
        if trial.fits:
            break
    return trial


def placement_mistakes(config: ClusterConfig, machines: Machines) -> list[str]:
    """Every worker that finds no place, pods first; empty when the sweep can start whole."""
    trial, most = _tried(config, machines), machines.most_workers
    if not trial.fits:
        short = [(kind, unit, number) for kind, (unit, number) in trial.wanted.items() if trial.placed[kind] < number]
        return [_no_place(unit, number, trial.placed[kind], machines) for kind, unit, number in short]
    if most is not None and len(trial.room.used) > most:
        return [f"the workers take {len(trial.room.used)} nodes, and {machines.source} allows {most} at once (max_workers)"]
    return []


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
    trial = _tried(config, machines)
    more = trial.room.place(trial.wanted["pod"][0], config.most_pods - config.pods, machines.offering("pod"))
    return trial.placed["pod"] + more
