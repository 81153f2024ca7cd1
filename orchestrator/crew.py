"""Hires and dismisses the actors of a sweep: what each kind needs, where it may run, under which environment."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.inbox import Ref
from orchestrator.naming import Holding
from orchestrator.packing import SHARES, Wish, left_over, refusal, share_evenly
from orchestrator.pods import DecodeActor, Meeting, Member, Place, PodRank, SketchActor, Workshop

if TYPE_CHECKING:
    from orchestrator.jobs import Job

Actor = Any
"""A Ray actor handle."""

CLASSES: dict[str, type[Member]] = {"sketch": SketchActor, "pod": PodRank, "decode": DecodeActor}
PARTS = {
    "sketch": frozenset({"text", "transformer"}),
    "pod": frozenset({"transformer"}),
    "decode": frozenset({"vae"}),
}
"""What each kind loads of a model."""
ROLES = {"sketch": "sketch", "pod": "heavy", "decode": "in(sketch,decode)"}
"""Label selector of the nodes for each kind, where nodes carry a ``role`` (ray_cluster.yaml)."""

START_TIMEOUT_S = 900.0
"""How long a worker may take to be ready: an autoscaled node boots and large weights load in that time."""
SETTLE_S = 5.0
"""How long a worker that goes may still write its last checkpoint."""
PLACE_TIMEOUT_S = 600.0
"""How long a sweep without a single pod waits for a node with room."""


@dataclass(eq=False)
class Unit:
    """One sketch or decode actor, or the ranks of one pod. A replacement keeps the slot and has the next generation."""

    kind: str
    slot: int
    generation: int
    asked_s: float = field(default_factory=time.monotonic)
    group: Any = None
    """A pod's placement group: one node's worth of ranks, kept while ranks are replaced in it."""
    actors: list[Actor] = field(default_factory=list)
    """None yet where a pod waits for a node."""
    starting: set[int] = field(default_factory=set)
    """Ranks that have not said they are ready."""
    place: Place | None = None
    """The first rank's, once it is ready."""
    dead: set[int] = field(default_factory=set)
    jobs: dict[str, Job] = field(default_factory=dict)
    """What it is at work on, by item key."""
    deadline_s: float = 0.0
    """Until when it should have a node, and then until when it should be ready."""
    leaving_s: float | None = None
    """Once it is to be taken away: until when it may finish what it does."""
    leaving_why: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.slot}" + (f".{self.generation}" if self.generation else "")

    @property
    def node(self) -> str:
        """Ray's id of where it runs; where that is not known, no other unit's."""
        return (self.place and self.place.node) or self.name

    @property
    def asked(self) -> bool:
        """A pod without a node."""
        return not self.actors

    @property
    def ready(self) -> bool:
        return bool(self.actors) and not self.starting and not self.dead


class Crew:
    """All actors of one sweep. ``close`` ends these and nothing else of the cluster."""

    def __init__(self, cluster: Cluster, config: ClusterConfig, workshop: Workshop, sweep: str = "sweep") -> None:
        self.cluster = cluster
        self.config = config
        self.workshop = workshop
        self.sweep = sweep
        self._classes: dict[str, Any] = {}
        self.units: dict[str, Unit] = {}
        """By name."""
        self.num_actors = config.sketch_workers + config.pods * config.heavy_ranks + self._num_decode_workers
        self.num_threads = config.num_threads or max(1, int(cluster.num_cpus) // self.num_actors)

    @property
    def _num_decode_workers(self) -> int:
        return self.config.decode_workers if self.config.decode_on == "workers" else 0

    def slots(self) -> list[tuple[str, int]]:
        """Every (kind, slot) of a full crew, pods first: they need the most room on one node."""
        numbers = {"pod": self.config.pods, "sketch": self.config.sketch_workers, "decode": self._num_decode_workers}
        return [(kind, slot) for kind, number in numbers.items() for slot in range(number)]

    def of(self, kind: str) -> list[Unit]:
        return [unit for unit in self.units.values() if unit.kind == kind]

    def ask(self, kind: str, slot: int, generation: int = 0, group: Any = None) -> Unit:
        """A unit that is to be: a pod asks for a node, unless it has ``group``; the others are made as soon as one has room.

        Never waits; :meth:`start` makes the actors.
        """
        unit = Unit(kind, slot, generation, group=group, deadline_s=time.monotonic() + PLACE_TIMEOUT_S)
        self.units[unit.name] = unit
        if kind == "pod" and group is None:
            unit.group = self._ask_node(self._holding(unit))
        return unit

    def placed(self) -> list[Unit]:
        """Units without actors that can have them now: a pod once it has a node."""
        waiting = [unit for unit in self.units.values() if unit.asked]
        states = group_states() if any(unit.kind == "pod" for unit in waiting) else {}
        return [unit for unit in waiting if unit.kind != "pod" or states.get(unit.group.id.hex()) == "CREATED"]

    def start(self, unit: Unit) -> list[Ref]:
        """Make a unit's actors; the references resolve to their places, in rank order, when they are ready."""
        unit.deadline_s = time.monotonic() + START_TIMEOUT_S
        num_actors = self.config.heavy_ranks if unit.kind == "pod" else 1
        unit.actors = [self._actor(unit, rank) for rank in range(num_actors)]
        unit.starting = set(range(num_actors))
        return self._form(unit.actors) if unit.kind == "pod" else [unit.actors[0].ready.remote()]

    def _form(self, ranks: list[Actor]) -> list[Ref]:
        address = ranks[0].open_store.remote()
        meeting = Meeting(len(ranks), self.config.backend, self.config.collective_timeout_s)
        return [actor.form.remote(rank, address, meeting) for rank, actor in enumerate(ranks)]

    def kill(self, unit: Unit, ranks: Iterable[int]) -> None:
        """End actors at once, without a word."""
        import ray

        for rank in ranks:
            ray.kill(unit.actors[rank])

    def settle(self, unit: Unit) -> None:
        """Wait, a while, for the checkpoints that a unit still writes."""
        import ray

        written = [actor.settle.remote() for actor in unit.actors]
        ray.wait(written, num_returns=len(written), timeout=SETTLE_S)

    def dismiss(self, unit: Unit) -> None:
        """End a unit. Its node is given back unless :meth:`keep_node` took it."""
        from ray.util import remove_placement_group

        self.kill(unit, range(len(unit.actors)))
        if unit.group is not None:
            remove_placement_group(unit.group)
        del self.units[unit.name]

    def keep_node(self, unit: Unit) -> Any:
        """A pod's placement group, for the pod that follows it there; None when its node is gone or going."""
        if unit.group is None or unit.leaving_s is not None or self.is_gone(unit):
            return None
        group, unit.group = unit.group, None
        return group

    def is_gone(self, unit: Unit) -> bool:
        """A pod's node has left the cluster."""
        return unit.group is not None and group_states().get(unit.group.id.hex()) != "CREATED"

    def close(self) -> None:
        for unit in list(self.units.values()):
            self.dismiss(unit)

    def abandon(self) -> None:
        """Of a cluster that is lost: nothing can be ended there."""
        self.units.clear()

    def _holding(self, unit: Unit, rank: int | None = None) -> str:
        return Holding(self.sweep, unit.kind, unit.slot, unit.generation, rank).name

    def _actor(self, unit: Unit, rank: int) -> Actor:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Within

        kind, needs = unit.kind, self.needs(unit.kind)
        where: dict[str, Any] = {"label_selector": {"role": ROLES[kind]}} if self.cluster.uses_roles else {}
        if unit.group is not None:
            where = {"scheduling_strategy": Within(unit.group, placement_group_bundle_index=rank)}
        return (
            self._class(kind)
            .options(
                name=self._holding(unit, rank if kind == "pod" else None),
                num_cpus=needs["CPU"],
                num_gpus=needs.get("GPU", 0),
                runtime_env={"env_vars": environment(needs.get("GPU", 0), self.num_threads, self.config.nvlink_multicast)},
                **where,
            )
            .remote(self.workshop, self.parts(kind), self.num_threads)
        )

    def _class(self, kind: str) -> Any:
        """Made once: Ray sends a class to its head every time one is made of it."""
        if kind not in self._classes:
            import ray

            made = ray.remote(concurrency_groups={"watch": 1, "ask": 1}, max_restarts=0, max_task_retries=0)
            self._classes[kind] = made(CLASSES[kind])
        return self._classes[kind]

    def parts(self, kind: str) -> frozenset[str]:
        """What an actor loads of each model; whoever decodes has the VAE too."""
        decodes = {"pod": "pod", "sketchers": "sketch"}.get(self.config.decode_on, "decode")
        return PARTS[kind] | (PARTS["decode"] if kind == decodes else frozenset())

    def _ask_node(self, name: str) -> Any:
        """One node's worth of ranks: what an autoscaler sees as demand until there is such a node."""
        from ray.util import placement_group

        bundles = [self.needs("pod")] * self.config.heavy_ranks
        roles = {"bundle_label_selector": [{"role": ROLES["pod"]}] * len(bundles)} if self.cluster.uses_roles else {}
        return placement_group(bundles, strategy="STRICT_PACK", name=name, **roles)

    def needs(self, kind: str) -> dict[str, float]:
        """What one actor of a kind reserves."""
        return self._needs(kind, self._share)

    def _needs(self, kind: str, share: float) -> dict[str, float]:
        gpus = {
            "sketch": self.config.gpus_per_sketch,
            "pod": self.config.gpus_per_rank,
            "decode": self.config.gpus_per_decode,
        }[kind]
        return {"CPU": share} | ({"GPU": gpus} if gpus else {})

    @cached_property
    def _share(self) -> float:
        """CPUs of each actor. Where the crew does not fit yet because nodes are to come: one each."""
        nodes = self.cluster.nodes
        even = share_evenly(self.cluster.num_cpus, self.num_actors)
        if len(nodes) == 1:
            return even or 1.0
        return next((share for share in SHARES if not left_over(nodes, self._wishes(share))), 1.0)

    def _wishes(self, share: float) -> list[Wish]:
        ranks = self.config.heavy_ranks
        return [
            Wish(kind, self._needs(kind, share), ranks if kind == "pod" else 1, self._roles(kind)) for kind, _ in self.slots()
        ]

    def _roles(self, kind: str) -> frozenset[str]:
        selector = ROLES[kind].removeprefix("in(").removesuffix(")")
        return frozenset(selector.split(",")) if self.cluster.uses_roles else frozenset()

    def refusal(self) -> str | None:
        """Why a cluster of our own, which does not grow, can never hold this crew with a single pod; None when it can."""
        wishes = self._wishes(self._share)
        pod, others = wishes[0], [wish for wish in wishes if wish.kind != "pod"]
        if left_over(self.cluster.nodes, [pod]):
            return refusal(self.cluster.nodes, pod)
        return refusal(self.cluster.nodes, pod, others) if left_over(self.cluster.nodes, [pod, *others]) else None

    def no_pod(self) -> str:
        """Why there is no pod, once waiting for one is over."""
        return refusal(self.cluster.look_again(), self._wishes(self._share)[0])


def group_states() -> dict[str, str]:
    """State of every placement group of the cluster, by id. One question to the head, whatever their number."""
    from ray.util import placement_group_table

    return {group["placement_group_id"]: group["state"] for group in placement_group_table().values()}


def environment(num_gpus: float, num_threads: int, nvlink_multicast: bool = False) -> dict[str, str]:
    """An actor's environment, set on the actor because Ray takes some of it away from a job's.

    With a GPU the process sees all of the node's and picks its own (:func:`orchestrator.pods.device_of`); without, none.
    """
    shared = {"OMP_NUM_THREADS": str(num_threads)}
    if not num_gpus:
        return shared | {"CUDA_VISIBLE_DEVICES": ""}
    gpu = {"RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES": "1", "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    return shared | gpu | ({} if nvlink_multicast else WITHOUT_MULTICAST)


WITHOUT_MULTICAST = {"NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}
"""Some hosts grant NVLink multicast and then stall on it."""
