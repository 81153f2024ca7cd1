"""From a sweep's arms and workers to the policy that gives every clip its widths; what cannot be, told before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from orchestrator.arms import Arm
from orchestrator.calibration import cost_model
from orchestrator.cost import CostModel, split, with_degrees
from orchestrator.degrees import WEIGHT_BYTES, Limits, device_limits, powers, require, shard_ranks
from orchestrator.demands import actions_of
from orchestrator.geometry import model
from orchestrator.method_widths import (
    BLOCKWISE,
    backend_mistake,
    kept_tensors,
    kept_together,
    kept_told,
    sharding_mistake,
    width_mistake,
)
from orchestrator.model_geometry import ModelGeometry
from orchestrator.policy import ArmSizing, Sizing
from orchestrator.sizing import SizingConfig
from orchestrator.types import VideoShape
from parallel import backends


class Pod(Protocol):
    """What a sweep's workers say of the pod (``orchestrator.config.ClusterConfig``)."""

    @property
    def heavy_ranks(self) -> int: ...
    @property
    def gpus_per_rank(self) -> float: ...
    @property
    def backend(self) -> str: ...
    @property
    def sizing(self) -> SizingConfig: ...


def sizing_of(arms: Iterable[Arm], pod: Pod) -> Sizing:
    """The policy of a sweep. Raises ValueError, with the arithmetic, for an arm that no slice of the pod can run.

    Arms that share a model in memory are spread over as many ranks as any of them needs.
    """
    arms = tuple(arms)
    alone = {arm.name: arm_sizing(arm, pod) for arm in arms}
    least = _least_widths(arms, alone)
    if wrong := _sharding_mistakes(arms, least):
        raise ValueError("; ".join(wrong))
    joint = {arm.name: alone[arm.name].model_copy(update={"least_width": least[arm.name]}) for arm in arms}
    return Sizing(config=pod.sizing, arms=joint)


def _least_widths(arms: Iterable[Arm], alone: Mapping[str, ArmSizing]) -> dict[str, int]:
    """By arm: over how many ranks the model that it shares with others is spread."""
    least: dict[object, int] = {}
    for arm in arms:
        least[_memory_key(arm)] = max(least.get(_memory_key(arm), 1), alone[arm.name].least_width)
    return {arm.name: least[_memory_key(arm)] for arm in arms}


def _sharding_mistakes(arms: Iterable[Arm], least: Mapping[str, int]) -> list[str]:
    return [f"arm {arm.name}: {wrong}" for arm in arms if (wrong := sharding_mistake(arm, least[arm.name]))]


def _memory_key(arm: Arm) -> object:
    """As ``stages.worker`` keeps models."""
    return arm.model, arm.weights, arm.lora


def arm_sizing(arm: Arm, pod: Pod) -> ArmSizing:
    """Raises ValueError as :func:`sizing_of`, and for a width that its accelerators cannot have."""
    if wrong := width_mistake(arm, pod.sizing):
        raise ValueError(wrong)
    geometry = model(arm.model)
    cost = arm.cost or cost_model(geometry, arm.shape, arm.guidance)
    together, limits = kept_together(arm), _limits(cost.device, pod)
    limits = limits.model_copy(update={"kept_tensors": kept_tensors(arm)} | ({"max_width": 1} if together else {}))
    try:
        sized = sizing_on(limits, geometry, _seen(arm), cost)
    except ValueError as error:
        raise ValueError("; ".join(filter(None, [str(error), together, kept_told(arm)]))) from error
    most = _most_asked(pod.sizing, limits.max_width, sized.least_width)
    if wrong := backend_mistake(arm, limits.model_copy(update={"max_width": most})):
        raise ValueError(wrong)
    return sized.model_copy(update={"actions": actions_of(arm), "together": together})


def _most_asked(config: SizingConfig, most: int, least: int) -> int:
    """The widest slice that the rule may give a clip."""
    return min(most, max(config.width or 1, least)) if config.rule == "fixed" else most


def _seen(arm: Arm) -> VideoShape:
    """The largest video that a forward sees: all of the arm's, but of a long one that is made by blocks."""
    if arm.planner != BLOCKWISE:
        return arm.shape
    geometry, stages = model(arm.model), actions_of(arm)[0].stages
    return replace(arm.shape, num_frames=(max(stage.seen[0] for stage in stages) - 1) * geometry.vae_stride[0] + 1)


def sizing_on(limits: Limits, geometry: ModelGeometry, shape: VideoShape, cost: CostModel) -> ArmSizing:
    """What the widths of such videos rest on. Raises ValueError, with the arithmetic, when no slice can run the full grid."""
    tokens, branches = geometry.num_tokens(geometry.latent_grid(shape)), cost.num_branches
    least = shard_ranks(geometry, limits, branches, tokens)
    legal = require(geometry, limits, branches, [tokens])
    if idle := _idle(legal, limits, branches):
        require(geometry, limits, branches, [tokens], asked=idle)
    backend = backends.settled(limits.backend, limits.device_type)
    instead = "native" if limits.backend == backends.AUTO else None  # which it falls back to
    cost = with_degrees(geometry, cost, powers(limits.max_width), backend, instead)
    return ArmSizing(model=geometry.name, cost=cost, limits=limits, least_width=least)


def _idle(legal: Sequence[int], limits: Limits, num_branches: int) -> int | None:
    """A width at which the backend would have had work, when it has none at any width; the default one is never in the way."""
    shared = [width for width in powers(limits.max_width) if split(width, num_branches)[1] > 1]
    chosen = limits.backend != backends.AUTO
    return shared[0] if chosen and shared and not set(shared) & set(legal) else None


def _limits(device: str, pod: Pod) -> Limits:
    limits = device_limits(device, pod.heavy_ranks, pod.backend)
    on_gpu = pod.gpus_per_rank > 0
    return limits.model_copy(update={"on_gpu": on_gpu, "memory_gb": limits.memory_gb if on_gpu else None})


def sizing_mistakes(arms: Iterable[Arm], pod: Pod) -> list[str]:
    """Everything about the pod that cannot be, and every arm that it cannot run."""
    found, alone, arms = _pod_mistakes(pod), {}, tuple(arms)
    for arm in arms:
        try:
            alone[arm.name] = arm_sizing(arm, pod)
        except ValueError as error:
            found.append(f"arm {arm.name}: {error}")
    sized = [arm for arm in arms if arm.name in alone]
    for arm in sized:
        found += _sketch_mistakes(arm, alone[arm.name].limits)
    return [*found, *_sharding_mistakes(sized, _least_widths(sized, alone))]


def _sketch_mistakes(arm: Arm, limits: Limits) -> list[str]:
    """A sketch worker holds one transformer whole (of two experts the first), however widely the pod spreads them."""
    first_gb = model(arm.model).num_params * WEIGHT_BYTES / 1e9
    if limits.memory_gb is None or first_gb < limits.memory_gb:
        return []
    return [
        f"arm {arm.name}: {arm.model}: a sketch worker holds a whole transformer, {first_gb:.1f} GB, and a GPU has "
        f"{limits.memory_gb:.0f} GB; the pod alone can spread it over its ranks"
    ]


def ranks_mistake(num_ranks: int) -> str | None:
    """Why a pod cannot have so many ranks."""
    if num_ranks in powers(num_ranks):
        return None
    return f"{num_ranks}: slices nest, so a pod has 1, 2, 4 or 8 ranks"


def _pod_mistakes(pod: Pod) -> list[str]:
    if pod.heavy_ranks == 1:
        return []
    found = []
    if wrong := ranks_mistake(pod.heavy_ranks):
        found.append(f"cluster.heavy_ranks is {wrong}")
    if 0 < pod.gpus_per_rank < 1:
        found.append(
            f"cluster.gpus_per_rank is {pod.gpus_per_rank:g} and cluster.heavy_ranks {pod.heavy_ranks}: ranks that work together "
            "need a GPU each; set gpus_per_rank to 1 or heavy_ranks to 1"
        )
    if (missing := backends.missing(pod.backend)) is not None:
        found.append(f"cluster.backend {pod.backend} cannot run here: {missing}; auto takes what can")
    return found
