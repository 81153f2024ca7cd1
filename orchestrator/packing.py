"""What a crew needs of the nodes of a cluster, and whether it fits: shares of CPUs, and the arithmetic behind a refusal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

Needs = Mapping[str, float]
"""Resources by Ray's names."""

SHARES = (1.0, 0.5, 0.25, 0.1, 0.05, 0.02, 0.01)
"""CPUs that an actor may reserve where nodes differ: the largest with which the crew fits."""


@dataclass(frozen=True)
class Node:
    """What one node has in all."""

    resources: Needs
    role: str = ""
    """Its ``role`` label; "" without one."""


@dataclass(frozen=True)
class Wish:
    """Actors of one kind that must share a node."""

    kind: str
    needs: Needs
    number: int = 1
    roles: frozenset[str] = field(default_factory=frozenset)
    """Roles of the nodes that will do; none: any node."""

    def __str__(self) -> str:
        return f"{self.number} x {dict(self.needs)}"

    def total(self) -> dict[str, float]:
        return {name: self.number * amount for name, amount in self.needs.items()}


def left_over(nodes: Sequence[Node], wishes: Iterable[Wish]) -> list[Wish]:
    """Wishes that find no room when each in turn takes the fullest node that has it."""
    rooms = [dict(node.resources) for node in nodes]
    refused = []
    for wish in wishes:
        fitting = [room for room, node in zip(rooms, nodes, strict=True) if _fits(wish, room, node)]
        if not fitting:
            refused.append(wish)
            continue
        room = min(fitting, key=lambda left: (left.get("GPU", 0.0), left.get("CPU", 0.0)))
        for name, amount in wish.total().items():
            room[name] = room.get(name, 0.0) - amount
    return refused


def _fits(wish: Wish, room: Needs, node: Node) -> bool:
    if wish.roles and node.role not in wish.roles:
        return False
    return all(room.get(name, 0.0) + 1e-9 >= amount for name, amount in wish.total().items())


def share_evenly(num_cpus: float, num_actors: int) -> float:
    """CPUs of each actor on one machine, at most one: a small machine runs a full crew too."""
    return min(1.0, int(100 * num_cpus / num_actors) / 100)


def refusal(nodes: Sequence[Node], wish: Wish, beside: Sequence[Wish] = ()) -> str:
    """Why no node takes ``wish``, in numbers."""
    num_cpus, num_gpus = (sum(node.resources.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    extra = f" beside {' and '.join(f'{other.kind} workers of {other}' for other in beside)}" if beside else ""
    return f"no single node offered {wish} for a heavy pod{extra}; the cluster has {num_cpus:g} CPUs and {num_gpus:g} GPUs in all"
