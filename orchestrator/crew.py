"""Hires and dismisses the actors of a sweep: what each kind needs, where it may run, under which environment."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from orchestrator.cluster import Cluster
from orchestrator.cluster_config import ClusterConfig
from orchestrator.mistakes import RunError
from orchestrator.pods import DecodeActor, Meeting, Member, Place, PodRank, SketchActor, Workshop

Actor = Any
"""A Ray actor handle."""
Ref = Any
"""A Ray object reference."""

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
PLACE_TIMEOUT_S = {True: 30.0, False: 600.0}
"""How long a pod waits for a node with room; a cluster of our own will not grow."""


@dataclass
class Unit:
    """One sketch or decode actor, or the ranks of one pod. A replacement keeps the slot and has the next generation."""

    kind: str
    slot: int
    generation: int
    actors: list[Actor]
    starting: set[int]
    """Ranks that have not said they are ready."""
    deadline_s: float
    place: Place | None = None
    """Set once all ranks are ready; the first rank's."""
    dead: set[int] = field(default_factory=set)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.slot}" + (f".{self.generation}" if self.generation else "")


class Crew:
    """All actors of one sweep. ``close`` ends these and nothing else of the cluster."""

    def __init__(self, cluster: Cluster, config: ClusterConfig, workshop: Workshop) -> None:
        self.cluster = cluster
        self.config = config
        self.workshop = workshop
        self.units: list[Unit] = []
        self.num_actors = config.sketch_workers + config.heavy_ranks + self._num_decode_workers
        self.num_threads = config.num_threads or max(1, int(cluster.num_cpus) // self.num_actors)
        self._pod_place: Any = None

    @property
    def _num_decode_workers(self) -> int:
        return 0 if self.config.decode_on == "pod" else self.config.decode_workers

    def slots(self) -> list[tuple[str, int]]:
        """Every (kind, slot) of a full crew."""
        numbers = {"sketch": self.config.sketch_workers, "pod": 1, "decode": self._num_decode_workers}
        return [(kind, slot) for kind, number in numbers.items() for slot in range(number)]

    def hire(self, kind: str, slot: int, generation: int) -> tuple[Unit, list[Ref]]:
        """Start the actors of one unit; the references resolve to their places, in rank order, when they are ready."""
        actors = self._pod_actors() if kind == "pod" else [self._actor(kind)]
        ranks = set(range(len(actors)))
        unit = Unit(kind, slot, generation, actors, ranks, time.monotonic() + START_TIMEOUT_S)
        self.units.append(unit)
        return unit, self._form(actors) if kind == "pod" else [actors[0].ready.remote()]

    def _form(self, ranks: list[Actor]) -> list[Ref]:
        address = ranks[0].open_store.remote()
        meeting = Meeting(len(ranks), self.config.backend, self.config.collective_timeout_s)
        return [actor.form.remote(rank, address, meeting) for rank, actor in enumerate(ranks)]

    def dismiss(self, unit: Unit) -> None:
        import ray

        for actor in unit.actors:
            ray.kill(actor)
        self.units.remove(unit)

    def close(self) -> None:
        from ray.util import remove_placement_group

        for unit in list(self.units):
            self.dismiss(unit)
        if self._pod_place is not None:
            remove_placement_group(self._pod_place)
            self._pod_place = None

    def _actor(self, kind: str, **options: Any) -> Actor:
        import ray

        remote = ray.remote(concurrency_groups={"watch": 1, "ask": 1}, max_restarts=0, max_task_retries=0)(CLASSES[kind])
        if self.cluster.uses_roles and "scheduling_strategy" not in options:
            options["label_selector"] = {"role": ROLES[kind]}
        needs = self.needs(kind)
        return remote.options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            runtime_env={"env_vars": environment(needs.get("GPU", 0), self.num_threads, self.config.nvlink_multicast)},
            **options,
        ).remote(self.workshop, self.parts(kind), self.num_threads)

    def parts(self, kind: str) -> frozenset[str]:
        """What an actor loads of each model; a pod that decodes has the VAE too."""
        return PARTS[kind] | (PARTS["decode"] if kind == "pod" and self.config.decode_on == "pod" else frozenset())

    def _pod_actors(self) -> list[Actor]:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy as Within

        if self._pod_place is None:
            self._pod_place = self._reserve_pod()
        return [
            self._actor("pod", scheduling_strategy=Within(self._pod_place, placement_group_bundle_index=rank))
            for rank in range(self.config.heavy_ranks)
        ]

    def _reserve_pod(self) -> Any:
        """One node's worth of ranks, kept for the sweep: replacements start in the same place.

        Raises RunError when no node has the room in time.
        """
        from ray.util import placement_group, remove_placement_group

        bundles = [self.needs("pod")] * self.config.heavy_ranks
        roles = {"bundle_label_selector": [{"role": ROLES["pod"]}] * len(bundles)} if self.cluster.uses_roles else {}
        group = placement_group(bundles, strategy="STRICT_PACK", name="dvg-pod", **roles)
        timeout_s = PLACE_TIMEOUT_S[self.cluster.owned]
        if not group.wait(timeout_s):
            remove_placement_group(group)
            raise RunError(
                f"no single node offered {len(bundles)} x {bundles[0]} for the heavy pod within {timeout_s:.0f} s; "
                f"the cluster has {self.cluster.num_cpus:g} CPUs and {self.cluster.num_gpus:g} GPUs in all"
            )
        return group

    def needs(self, kind: str) -> dict[str, float]:
        """What one actor of a kind reserves. CPUs are shared out, at most one each: a small machine runs a full crew too."""
        gpus = {
            "sketch": self.config.gpus_per_sketch,
            "pod": self.config.gpus_per_rank,
            "decode": self.config.gpus_per_decode,
        }[kind]
        share = min(1.0, int(100 * self.cluster.num_cpus / self.num_actors) / 100)
        return {"CPU": share} | ({"GPU": gpus} if gpus else {})


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
