"""``dvg plan SPEC``: what a sweep comes to before any of it runs. Items, expected actions, GPU-hours, time, cost, disk, split.

Every figure is an expectation: actions as often as the demands make them, seconds as the cost model predicts them. The wall time
is a bound that no schedule beats: the canonical allotment of the heavy work, and each pool's own work behind the fill of the
pipeline and before its drain.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import split
from orchestrator.allotment import Frontier, frontier, makespan_s
from orchestrator.arms import Arm
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep
from orchestrator.demands import Demands, expected_actions, saves_by_content_alone
from orchestrator.geometry import model
from orchestrator.policy import Sizing, stage_choices
from orchestrator.split import POOLS, Load, Pools
from orchestrator.types import Action

BITS_PER_PIXEL = 0.5
"""Of a nearly lossless video, where no clip was recorded: a guess."""
EVENT_BYTES = 6_000
"""What a clip adds to the event log, its record and its sidecar."""
LATENT_BYTES = 4
"""Checkpoints hold float32."""
HOUR_S = 3600.0


@dataclass(frozen=True)
class Expected:
    """The items of one arm that come to one action; ``number`` need not be whole."""

    arm: Arm
    action: Action
    number: float
    load: Load
    """Of one item, in the fewest GPU-seconds."""
    ways: Frontier
    """To run its stages after the sketch."""


@dataclass(frozen=True)
class Heavy:
    """The heavy pool's work as the sweep's rule allots it."""

    seconds: float
    """At least, were the ranks busy from first to last."""
    gpu_s: float
    widths: Mapping[int, float]
    """GPU-seconds on slices of each width."""


def expected_work(sweep: Sweep, demands: Demands, sizing: Sizing) -> list[Expected]:
    """Every arm's items by action. Raises ValueError for an arm that no slice can run."""
    counts = Counter(item.arm for item in sweep.items)
    found = []
    for arm in sweep.arms:
        text_s = demands.text_s(arm.model) or 0.0
        sized = sizing.arms[arm.name]
        for action, share in expected_actions(arm, demands):
            stages = stage_choices(sized, action, sized.limits.max_width)
            load = split.load_of(sized, action, text_s)
            found.append(Expected(arm, action, share * counts[arm.name], load, _ways(sizing, stages)))
    return found


def _ways(sizing: Sizing, stages: Any) -> Frontier:
    """All of them where the scheduler is free to choose; one where the rule says."""
    if sizing.config.rule == "throughput":
        return frontier(stages)
    return frontier([(choice,) for choice in sizing.clip(stages)])


def heavy_work(work: Sequence[Expected], num_ranks: int, decode_on_pod: bool) -> Heavy:
    """The canonical allotment on ``num_ranks`` ranks; their decodes too, where the pod decodes."""
    decode_s = sum(row.number * row.load.decode_s for row in work) if decode_on_pod else 0.0
    bound_s = makespan_s([(row.ways, row.number) for row in work], num_ranks, decode_s)
    widths: dict[int, float] = {}
    for row in work:
        way = row.ways.within(bound_s)
        widest = max(way.widths, default=1)
        widths[widest] = widths.get(widest, 0.0) + row.number * way.gpu_s
    return Heavy(bound_s, sum(widths.values()) + decode_s, dict(sorted(widths.items())))


def pools_of(config: ClusterConfig, num_pods: int | None = None) -> Pools:
    """The sweep's workers in GPUs; workers on CPUs count one each."""

    def gpus(number: int, each: float) -> float:
        return number * (min(1.0, each) if each else 1.0)

    decode = gpus(config.decode_workers, config.gpus_per_decode) if config.decode_on == "workers" else 0.0
    ranks = gpus((num_pods or config.pods) * config.heavy_ranks, config.gpus_per_rank)
    return Pools(gpus(config.sketch_workers, config.gpus_per_sketch), ranks, decode)


def num_gpus(config: ClusterConfig) -> float:
    """GPUs that the sweep holds while it runs."""
    decode = config.decode_workers * config.gpus_per_decode if config.decode_on == "workers" else 0.0
    return config.sketch_workers * config.gpus_per_sketch + config.pods * config.heavy_ranks * config.gpus_per_rank + decode


def wall_times(work: Sequence[Expected], config: ClusterConfig, num_pods: int | None = None) -> dict[str, Any]:
    """Seconds that no schedule beats on so many pods, and the pool that sets them.

    Each pool's own work, after the earliest that any clip can reach it, and before the least that its last clip needs after it.
    """
    pools, where = pools_of(config, num_pods), config.decode_on
    heavy = heavy_work(work, max(1, round(pools.heavy)), where == "pod")
    total = split.NOTHING
    for row in work:
        total += (row.load * row.number).decoded_on(where)
    sketch_s = min(row.load.sketch_s for row in work)
    refine_s = min(row.ways.fastest.seconds for row in work)
    decode_s = 0.0 if where == "pod" else min(row.load.decode_s for row in work)
    bounds = {
        "sketch": total.sketch_s / pools.sketch + (0.0 if where == "sketchers" else refine_s + decode_s),
        "heavy": sketch_s + heavy.seconds + decode_s,
        "decode": sketch_s + refine_s + total.decode_s / pools.decode if where == "workers" else 0.0,
    }
    slowest = max(POOLS, key=lambda pool: bounds[pool])
    return {
        "at_least_s": bounds[slowest],
        "set_by": slowest,
        "of_pools_s": bounds,
        "fill_s": sketch_s,
        "allotment_s": heavy.seconds,
        "drain_s": decode_s,
        "gpu_s_by_width": {str(width): gpu_s for width, gpu_s in heavy.widths.items()},
    }


def gpu_hours(work: Sequence[Expected], config: ClusterConfig) -> dict[str, float]:
    """By phase, the heavy one at the widths of the allotment."""
    on_pod = config.decode_on == "pod"
    heavy = heavy_work(work, max(1, round(pools_of(config).heavy)), on_pod)
    decode_s = sum(row.number * row.load.decode_s for row in work)
    hours = {
        "sketch": sum(row.number * row.load.sketch_s for row in work) / HOUR_S,
        "refine": (heavy.gpu_s - (decode_s if on_pod else 0.0)) / HOUR_S,
        "decode": decode_s / HOUR_S,
    }
    return hours | {"total": sum(hours.values())}


def split_report(work: Sequence[Expected], config: ClusterConfig) -> dict[str, Any]:
    """What each pool does to an item, who waits with the workers asked for, and how many would balance."""
    load = split.mean_load((row.load, row.number) for row in work)
    asked_of, pools = load.decoded_on(config.decode_on), pools_of(config)
    steady = split.steady(asked_of, pools)
    needed = split.needed(asked_of, pools.heavy) if asked_of.heavy_s > 0 else None
    beside = round(pools.sketch + pools.decode)
    divided = split.divide(asked_of, max(1, beside))
    return {
        "decode_on": config.decode_on,
        "seconds_per_item": {pool: load.of(pool) for pool in POOLS},
        "workers": {pool: pools.of(pool) for pool in POOLS},
        "idle": dict(steady.idle),
        "slowest": steady.slowest,
        "videos_per_hour": steady.items_per_s * HOUR_S,
        "balanced": {pool: needed.of(pool) for pool in POOLS} if needed else None,
        "beside_the_pods": {"gpus": max(1, beside), "sketch": divided[0], "decode": divided[1]},
    }


def disk(work: Sequence[Expected], config: ClusterConfig, demands: Demands) -> dict[str, Any]:
    """GB, 10^9 bytes, of videos, of latents under way (each kept once as a checkpoint, once in memory), and of logs."""
    recorded = demands.bits_per_pixel()
    bits = recorded or BITS_PER_PIXEL
    pixels = sum(row.number * math.prod((row.arm.num_frames, row.arm.height, row.arm.width)) for row in work)
    items = sum(row.number for row in work)
    pools = pools_of(config)
    under_way = min(items, pools.sketch + 2 * pools.heavy + pools.decode)
    latents_gb = under_way * max(latent_bytes(row.arm) for row in work) / 1e9
    rows = {
        "videos_gb": pixels * bits / 8 / 1e9,
        "checkpoints_gb": latents_gb if config.checkpoints else 0.0,
        "logs_gb": items * EVENT_BYTES / 1e9,
    }
    told = "recorded clips" if recorded else "an estimate: no recorded clip says"
    return {**rows, "total_gb": sum(rows.values()), "latents_in_memory_gb": latents_gb, "bits_per_pixel": bits, "bits_from": told}


def latent_bytes(arm: Arm) -> int:
    """Of a clip on its full grid."""
    geometry = model(arm.model)
    return LATENT_BYTES * geometry.latent_channels * math.prod(geometry.latent_grid(arm.shape))


def arm_rows(work: Sequence[Expected], sizing: Sizing) -> list[dict[str, Any]]:
    """One row per arm, with the actions that its items are expected to come to."""
    rows = []
    for name in dict.fromkeys(row.arm.name for row in work):
        own = [row for row in work if row.arm.name == name]
        arm, cost = own[0].arm, sizing.arms[name].cost
        number = sum(row.number for row in own)
        load = split.mean_load((row.load, row.number or 1.0) for row in own)
        rows.append(
            {
                "arm": name,
                "model": arm.model,
                "planner": arm.planner,
                "items": round(number),
                "cost": cost.label,
                "device": cost.device,
                "decode": "measured" if split.decode_is_measured(cost) else "estimated",
                "gpu_s": {"sketch": load.sketch_s, "heavy": load.heavy_s, "decode": load.decode_s, "total": load.gpu_s},
                "actions": [_action_row(row, number) for row in own],
            }
        )
    return rows


def _action_row(row: Expected, number: float) -> dict[str, Any]:
    share = row.number / number if number else 0.0
    return {"action": row.action.name, "share": share, "density": row.action.density, "gpu_s": row.load.gpu_s}


def spec_plan(sweep: Sweep, demands: Demands, sizing: Sizing, simulated_s: float | None = None) -> dict[str, Any]:
    """All of it, JSON-ready, but for what depends on a cluster. Raises ValueError as :func:`expected_work`.

    ``simulated_s``: what a simulation of the sweep took, which then counts as its time, not the bound.
    """
    config, work = sweep.cluster, expected_work(sweep, demands, sizing)
    hours, wall = gpu_hours(work, config), wall_times(work, config)
    rows = {
        "name": sweep.name,
        "items": len(sweep.items),
        "rule": sizing.config.rule,
        "on_gpus": config.gpus_per_rank > 0,
        "demands": demands.source,
        "arms": arm_rows(work, sizing),
        "gpu_hours": hours,
        "videos_per_gpu_hour": len(sweep.items) / hours["total"] if hours["total"] else None,
        "wall": wall | {"simulated_s": simulated_s},
        "held": held(sweep, simulated_s or wall["at_least_s"], hours["total"]),
        "split": split_report(work, config),
        "disk": disk(work, config, demands),
        "notes": notes(sweep, sizing),
    }
    if config.most_pods > config.pods:
        grown = wall_times(work, config, config.most_pods)
        rows["grown"] = {"pods": config.most_pods, "at_least_s": grown["at_least_s"], "set_by": grown["set_by"]}
    return rows


def held(sweep: Sweep, wall_s: float, work_hours: float) -> dict[str, Any]:
    """GPUs reserved from first to last, and what they cost; ``work`` is the price of the GPU-hours that something runs in."""
    config = sweep.cluster
    gpus, price = num_gpus(config), config.price_per_gpu_hour
    hours = gpus * wall_s / HOUR_S
    return {
        "gpus": gpus,
        "gpu_hours": hours,
        "videos_per_gpu_hour_held": len(sweep.items) / hours if hours else None,
        "price_per_gpu_hour": price,
        "cost": None if price is None else price * hours,
        "cost_of_work": None if price is None or not gpus else price * work_hours,
    }


def notes(sweep: Sweep, sizing: Sizing) -> list[str]:
    """What makes the figures less sure than they look."""
    costs = {arm.name: sizing.arms[arm.name].cost for arm in sweep.arms}
    found = []
    if sweep.cluster.gpus_per_rank and (on_cpu := [name for name, cost in costs.items() if cost.device.startswith("CPU")]):
        found.append(
            f"{_several('arm', on_cpu)}: predicted for this machine's CPU though the workers have GPUs; "
            'give device_name, for example device_name="NVIDIA H200"'
        )
    if rough := [name for name, cost in costs.items() if cost.label == "uncalibrated"]:
        found.append(f"{_several('arm', rough)}: seconds from a roofline, good to a factor of two; dvg calibrate measures them")
    if guessed := [name for name, cost in costs.items() if not split.decode_is_measured(cost)]:
        found.append(f"{_several('arm', guessed)}: decoding was never measured; taken as {split.DECODE_SHARE:.1%} of a full run")
    if cached := [arm.name for arm in sweep.arms if arm.accelerators]:
        found.append(f"{_several('arm', cached)}: what accelerators leave out is not predicted; counted as if all were computed")
    if unseen := [arm.name for arm in sweep.arms if saves_by_content_alone(arm)]:
        found.append(f"{_several('arm', unseen)}: no saving expected until content is seen; counted as full runs")
    return found


def _several(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"{what}{'s' if len(names) > 1 else ''} {shown}"
