"""How a sweep's GPUs divide into sketch workers, heavy ranks and decode workers: seconds per item of each phase, and who waits.

In a long sweep every pool passes on as many items per second as the slowest one, so the share of time that a pool idles follows
from what an item costs each of them. Ramp and tail come on top: :mod:`orchestrator.spec_plan` bounds those.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from orchestrator.cost import CostModel
from orchestrator.geometry import model
from orchestrator.policy import ArmSizing, stage_choices
from orchestrator.schedules import forwards_per_stage
from orchestrator.types import Action

Pool = Literal["sketch", "heavy", "decode"]
DecodeOn = Literal["workers", "pod", "sketchers"]
"""As ``orchestrator.cluster_config`` has it."""
POOLS: tuple[Pool, ...] = ("sketch", "heavy", "decode")
DECODE_SHARE = 0.015
"""Decoding over denoising on the full grid for the model's usual steps, where nobody measured it: 0.9 to 1.8 % on H200s."""


@dataclass(frozen=True)
class Load:
    """GPU-seconds of one item in each pool."""

    sketch_s: float
    heavy_s: float
    """Ranks x seconds."""
    decode_s: float

    def __add__(self, other: Load) -> Load:
        return Load(self.sketch_s + other.sketch_s, self.heavy_s + other.heavy_s, self.decode_s + other.decode_s)

    def __mul__(self, times: float) -> Load:
        return Load(self.sketch_s * times, self.heavy_s * times, self.decode_s * times)

    @property
    def gpu_s(self) -> float:
        return self.sketch_s + self.heavy_s + self.decode_s

    def decoded_on(self, where: DecodeOn) -> Load:
        """The same by who decodes: workers of their own, ranks of the pod, or those that sketch."""
        if where == "pod":
            return Load(self.sketch_s, self.heavy_s + self.decode_s, 0.0)
        if where == "sketchers":
            return Load(self.sketch_s + self.decode_s, self.heavy_s, 0.0)
        return self

    def of(self, pool: Pool) -> float:
        return {"sketch": self.sketch_s, "heavy": self.heavy_s, "decode": self.decode_s}[pool]


NOTHING = Load(0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Pools:
    """Workers of each pool, in GPUs: two that share one count half each."""

    sketch: float
    heavy: float
    """Ranks of all pods."""
    decode: float

    def of(self, pool: Pool) -> float:
        return {"sketch": self.sketch, "heavy": self.heavy, "decode": self.decode}[pool]


@dataclass(frozen=True)
class Steady:
    """A long sweep between its first and its last clips."""

    items_per_s: float
    slowest: Pool
    idle: Mapping[Pool, float]
    """Share of a pool's time without work, in [0, 1]; 1 for a pool that is never asked."""


def load_of(arm: ArmSizing, action: Action, text_s: float = 0.0) -> Load:
    """One item's, each stage on the slice that takes the fewest GPU-seconds. ``text_s``: encoding its prompt.

    Raises ValueError when a stage can run on no slice of the arm's pod.
    """
    refine = stage_choices(arm, action, arm.limits.max_width)
    heavy_s = sum(min(choice.gpu_s for choice in options) for options in refine)
    return Load(text_s + sketch_s(arm, action), heavy_s, decode_s(arm, action))


def sketch_s(arm: ArmSizing, action: Action) -> float:
    """Stage 1 on one GPU; 0 for a plain full run, of which a sketch worker only encodes the prompt."""
    if not action.num_sketched:
        return 0.0
    forwards = forwards_per_stage([stage.steps for stage in action.stages])
    return forwards[0] * arm.cost.step_s(model(arm.model).num_tokens(action.stages[0].grid))


def decode_s(arm: ArmSizing, action: Action) -> float:
    """On one GPU: as measured, or else ``DECODE_SHARE`` (see :func:`decode_is_measured`)."""
    if arm.cost.decode_s is not None:
        return arm.cost.decode_s
    geometry = model(arm.model)
    last = action.stages[-1]
    return DECODE_SHARE * geometry.default_steps * last.passes * arm.cost.step_s(geometry.num_tokens(last.seen))


def decode_is_measured(cost: CostModel) -> bool:
    return cost.decode_s is not None


def mean_load(loads: Iterable[tuple[Load, float]]) -> Load:
    """Of ``(load, weight)``. Raises ValueError without any weight."""
    total, weights = NOTHING, 0.0
    for load, weight in loads:
        total, weights = total + load * weight, weights + weight
    if weights <= 0:
        raise ValueError("a mean needs at least one item with a weight above 0")
    return total * (1 / weights)


def steady(load: Load, pools: Pools) -> Steady:
    """Raises ValueError for a pool that has work and no worker, or when there is no work at all."""
    if missing := [pool for pool in POOLS if load.of(pool) > 0 and pools.of(pool) <= 0]:
        raise ValueError(f"items have work for the {' and the '.join(missing)} pool, which has no worker")
    rates = {pool: pools.of(pool) / load.of(pool) for pool in POOLS if load.of(pool) > 0}
    if not rates:
        raise ValueError("an item without any work keeps nobody busy")
    slowest = min(rates, key=lambda pool: rates[pool])
    idle = {pool: 1.0 - rates[slowest] / rates[pool] if pool in rates else 1.0 for pool in POOLS}
    return Steady(rates[slowest], slowest, idle)


def needed(load: Load, num_ranks: float) -> Pools:
    """The fewest whole sketch and decode workers that keep ``num_ranks`` heavy ranks busy; at least one where there is work.

    Raises ValueError for work without a heavy part, which no number of ranks can set the pace of.
    """
    if load.heavy_s <= 0:
        raise ValueError("items have no work for the heavy pool, so it sets no pace")
    pace = num_ranks / load.heavy_s
    return Pools(_whole(pace * load.sketch_s), num_ranks, _whole(pace * load.decode_s))


def _whole(workers: float) -> int:
    """A thousandth of a worker too few is not one more."""
    return max(math.ceil(workers - 1e-3), 1 if workers > 0 else 0)


def divide(load: Load, num_gpus: int) -> tuple[float, float]:
    """(Sketch, decode) GPUs out of ``num_gpus`` such that the slower of both pools is as fast as can be.

    Whole GPUs, at least one each where there is work; of a single GPU each gets the share that its work is.
    Raises ValueError without a GPU.
    """
    if num_gpus < 1:
        raise ValueError(f"{num_gpus} GPUs cannot be divided; give at least 1")
    both_s = load.sketch_s + load.decode_s
    if both_s <= 0 or load.decode_s <= 0:
        return float(num_gpus), 0.0
    if load.sketch_s <= 0:
        return 0.0, float(num_gpus)
    share = load.sketch_s / both_s
    if num_gpus == 1:
        return share, 1.0 - share
    near = math.floor(num_gpus * share)
    options = {min(max(number, 1), num_gpus - 1) for number in (near, near + 1)}
    sketch = max(options, key=lambda number: (min(number / load.sketch_s, (num_gpus - number) / load.decode_s), number))
    return float(sketch), float(num_gpus - sketch)


def best(load: Load, num_gpus: int, ranks_per_pod: int) -> Pools:
    """``num_gpus`` in all, as whole pods and the rest for sketch and decode: the most items per second, then the most pods.

    Raises ValueError when one pod and one GPU beside it, where there is work for that, are more than there are.
    """
    beside = 1 if load.sketch_s + load.decode_s > 0 else 0
    most = (num_gpus - beside) // ranks_per_pod
    if most < 1:
        raise ValueError(f"{num_gpus} GPUs have no room for a pod of {ranks_per_pod} and {beside} beside it")
    options = [_with_pods(load, num_gpus, pods * ranks_per_pod) for pods in range(1, most + 1)]
    return max(options, key=lambda pools: (steady(load, pools).items_per_s, pools.heavy))


def _with_pods(load: Load, num_gpus: int, num_ranks: int) -> Pools:
    left = num_gpus - num_ranks
    sketch, decode = divide(load, left) if left else (0.0, 0.0)
    return Pools(sketch, num_ranks, decode)
