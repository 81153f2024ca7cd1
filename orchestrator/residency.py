"""What a worker holds in GPU memory with every arm's models loaded, as they stay until the sweep ends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.arms import Arm
from orchestrator.cluster_config import ClusterConfig
from orchestrator.degrees import all_weights_gb, gpu_gb, memory_gb
from orchestrator.geometry import model
from orchestrator.policy import Sizing


@dataclass(frozen=True)
class Held:
    """GB, 10^9 bytes, of weights and of working memory. Text encoders and VAEs are left out: they give way where it is tight."""

    weights_gb: float = 0.0
    working_gb: float = 0.0

    @property
    def total_gb(self) -> float:
        return self.weights_gb + self.working_gb


def rank_holds(arms: Iterable[Arm], sizing: Sizing) -> Held:
    """Every rank of a pod, each arm on its narrowest slices."""
    weights: dict[object, float] = {}
    working_gb = 0.0
    for arm in arms:
        geometry, sized = model(arm.model), sizing.arms[arm.name]
        tokens = geometry.num_tokens(geometry.latent_grid(arm.shape))
        weights[_key(arm)], needs_gb = memory_gb(geometry, sized.least_width, sized.cost.num_branches, tokens)
        working_gb = max(working_gb, needs_gb)
    return Held(sum(weights.values()), working_gb)


def sketcher_holds(arms: Iterable[Arm], first_tokens: Mapping[str, int]) -> Held:
    """A sketch worker: transformers whole, of two experts the one for noisy steps. ``first_tokens``: of each arm's sketch."""
    weights: dict[object, float] = {}
    working_gb = 0.0
    for arm in arms:
        geometry = model(arm.model)
        weights[_key(arm)] = all_weights_gb(geometry) / (1 if geometry.boundary is None else 2)
        working_gb = max(working_gb, memory_gb(geometry, 1, 1, first_tokens.get(arm.name, 0))[1])
    return Held(sum(weights.values()), working_gb)


def _key(arm: Arm) -> object:
    """Arms alike in these share a model in memory, as ``stages.worker`` keeps them."""
    return arm.model, arm.weights, arm.lora


def smallest_gpu_gb(arms: Iterable[Arm], sizing: Sizing) -> float | None:
    """Of the GPUs that the arms' cost was predicted for; None when no name of them is known."""
    return min((gb for arm in arms if (gb := gpu_gb(sizing.arms[arm.name].cost.device))), default=None)


def memory_mistakes(
    config: ClusterConfig, rank: Held, sketcher: Held, rank_gb: float | None, sketcher_gb: float | None
) -> list[str]:
    """Who holds more than its GPU has, a part of a GPU being that part of its memory. Workers on CPUs are not looked at."""
    rows = [
        (
            f"a rank of a pod of {config.heavy_ranks}",
            rank,
            rank_gb,
            config.gpus_per_rank,
            "fewer models in a sweep, or more ranks in a pod",
        ),
        ("a sketch worker", sketcher, sketcher_gb, config.gpus_per_sketch, "fewer models in a sweep"),
    ]
    return [
        f"{who} holds {held.weights_gb:.1f} GB of weights (every arm's models) + {held.working_gb:.1f} GB of working memory = "
        f"{held.total_gb:.1f} GB, and its GPU has {gb * min(1.0, gpus):.0f} GB; {remedy}"
        for who, held, gb, gpus, remedy in rows
        if gpus and gb and held.total_gb > gb * min(1.0, gpus)
    ]
