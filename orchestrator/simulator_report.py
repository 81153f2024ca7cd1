"""A simulated sweep in figures: ours, the bound, and what other schedules would have taken in the same world."""

from __future__ import annotations

import gc
import math
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.policy import Sizing
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.simulator import Simulation
from orchestrator.simulator_baselines import FIRST_COME, legal_widths, round_robin_s
from orchestrator.simulator_bound import lower_bound_s
from orchestrator.simulator_parts import HOUR_S, DecodeOn, Fleet, Outcome
from orchestrator.simulator_world import World
from orchestrator.sizing import SizingConfig
from orchestrator.split import Load, divide, needed

HEADROOM = 1.25
"""Sketch and decode workers over what the heavy pods need in a long sweep: the first sketches are waited for."""
LEAST_GROWTH_GB = 1 / 32
"""Of memory, below which nothing can be said of it."""


def fleet_for(load: Load, pods: int, ranks_per_pod: int, sketch_gpus: int | None, decode_on: DecodeOn = "workers") -> Fleet:
    """``sketch_gpus`` sketch and decode, divided by their seconds; None: enough for the pods, and a quarter more."""
    if decode_on == "pod":
        load = load.decoded_on("pod")
    if sketch_gpus is None:
        most = needed(load, pods * ranks_per_pod * HEADROOM)
        sketch_gpus = max(math.ceil(most.sketch + most.decode), 2 if decode_on == "workers" else 1)
    if decode_on != "workers":
        return Fleet(pods, ranks_per_pod, sketch_gpus, 0, decode_on)
    sketch, decode = divide(load, sketch_gpus)
    return Fleet(pods, ranks_per_pod, max(int(sketch), 1), max(int(decode), 1))


@dataclass(frozen=True)
class Study:
    """One world on one fleet, and everything that is simulated of it."""

    world: World
    fleet: Fleet
    sizing: Sizing
    config: SchedulerConfig
    seed: int = 0
    checkpoints: bool = True

    def run(self, config: SizingConfig | None = None) -> Outcome:
        """Under another sizing than the spec's, if given."""
        sizing = self.sizing if config is None else self.sizing.model_copy(update={"config": config})
        scheduler = Scheduler(self.config, sizing, keep_log=False)
        return Simulation(scheduler, self.world, self.fleet, self.seed, self.checkpoints).run()

    def bound_s(self) -> float:
        return lower_bound_s(self.world, self.fleet)


def report(study: Study, baselines: bool = True, before_gb: float | None = None) -> dict[str, Any]:
    """JSON-ready; ``docs/scheduling.md`` says how to read it.

    ``before_gb``: what the process held before it had the world, whose items are part of what is simulated; None: not told,
    and nothing is said of memory.
    """
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    outcome = without_collector(study.run)
    wall_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    growth_gb = None if before_gb is None else peak_gb() - before_gb
    bound_s = study.bound_s()
    found = {
        "items": len(study.world.items),
        "pods": study.fleet.pods,
        "gpus_per_pod": study.fleet.ranks_per_pod,
        "sketch_workers": study.fleet.sketch_workers,
        "decode_workers": study.fleet.decode_workers,
        "decode_on": study.fleet.decode_on,
        "items_per_heavy_gpu": len(study.world.items) / study.fleet.num_ranks,
        "seed": study.seed,
        "realism": study.world.realism.model_dump(),
        "sizing": study.sizing.config.model_dump(mode="json"),
        **figures(outcome, study.fleet),
        "lower_bound_s": bound_s,
        "regret": outcome.makespan_s / bound_s - 1.0 if bound_s else 0.0,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "events_per_s": outcome.events / wall_s,
        "memory_growth_gib": growth_gb,
        "items_per_gib": len(study.world.items) / growth_gb if growth_gb and growth_gb > LEAST_GROWTH_GB else None,
    }
    return found | ({"baselines": compared(study, outcome.makespan_s)} if baselines else {})


def figures(outcome: Outcome, fleet: Fleet) -> dict[str, Any]:
    """Of one simulation. ``videos_per_gpu_hour`` is of GPUs at work, ``_held`` of all of them from first to last."""
    held_s = outcome.makespan_s * fleet.num_ranks
    gpu_s, held_hours = outcome.heavy_s + outcome.sketch_s + outcome.decode_s, outcome.makespan_s * fleet.num_gpus / HOUR_S
    return {
        "makespan_s": outcome.makespan_s,
        "utilisation": outcome.heavy_s / held_s if held_s else 0.0,
        "idle_breakdown": outcome.idle_s,
        "idle_gpu_s": held_s - outcome.heavy_s,
        "width_histogram": {
            str(width): {"gpu_s": outcome.width_gpu_s[width], "clips": outcome.width_clips[width]}
            for width in sorted({*outcome.width_gpu_s, *outcome.width_clips})
        },
        "gpu_seconds": gpu_s,
        "gpu_seconds_by_pool": {"heavy": outcome.heavy_s, "sketch": outcome.sketch_s, "decode": outcome.decode_s},
        "gpu_seconds_lost": outcome.lost_s,
        "gpu_seconds_of_hand_overs": outcome.hand_over_s,
        "videos_per_gpu_hour": outcome.finished * HOUR_S / gpu_s if gpu_s else 0.0,
        "videos_per_gpu_hour_held": outcome.finished / held_hours if held_hours else 0.0,
        "finished": outcome.finished,
        "given_up": outcome.given_up,
        "failures": outcome.failures,
        "attempts": outcome.attempts,
        "events": outcome.events,
    }


def compared(study: Study, ours_s: float) -> dict[str, dict[str, Any]]:
    """What other schedules take, and ours over that less 1: below 0 where ours is faster.

    Round robin knows no failures, so it is left out where there are any.
    """
    widths = legal_widths(study.world, study.fleet)
    found: dict[str, dict[str, Any]] = {}
    for name, config in FIRST_COME.items():
        if config.width is None or config.width in widths:
            outcome = without_collector(lambda config=config: study.run(config))  # type: ignore[misc]
            used = outcome.heavy_s / (outcome.makespan_s * study.fleet.num_ranks)
            found[name] = {"makespan_s": outcome.makespan_s, "utilisation": used}
    for width in widths if study.world.realism.mtbf_hours is None else ():
        found[f"round_robin_{width}"] = {"makespan_s": round_robin_s(study.world, study.fleet, width)}
    return {name: row | {"ours_against_it": ours_s / row["makespan_s"] - 1.0} for name, row in found.items()}


def without_collector(run: Callable[[], Outcome]) -> Outcome:
    """Millions of small objects that live to the end are not looked through for cycles again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        return run()
    finally:
        if was_on:
            gc.enable()


def peak_gb() -> float:
    """GiB that this process has held at most so far. Of what it was forked from, the system's own count remembers the peak."""
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        return int(found[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 2**30
