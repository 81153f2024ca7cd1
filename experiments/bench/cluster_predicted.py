"""What the simulator says of a run: from the cost measured before it, and from its own recorded seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator import eventlog
from orchestrator.cli_sweep import scheduler_config
from orchestrator.config import Sweep
from orchestrator.demands import actions_of, decision_for
from orchestrator.policy import Sizing
from orchestrator.scheduler import Scheduler
from orchestrator.simulator import simulate
from orchestrator.simulator_parts import Fleet
from orchestrator.simulator_replay import Recording, decisions_of, replay_report
from orchestrator.simulator_world import Realism, World, world_of
from orchestrator.types import Decision, Demand, Item


def decided(sweep: Sweep, demands: dict[str, Demand]) -> list[Decision]:
    """Of each item, in order; items that decide alike share one."""
    actions = {arm.name: (arm, actions_of(arm)) for arm in sweep.arms}
    made: dict[tuple[str, str], Decision] = {}
    for item in sweep.items:
        key = (item.arm, item.prompt_id)
        made.setdefault(key, decision_for(*actions[item.arm], demands[item.prompt_id]))
    return [made[item.arm, item.prompt_id] for item in sweep.items]


def simulated_s(sweep: Sweep, sizing: Sizing, demands: dict[str, Demand]) -> float:
    """The makespan that the cost model predicts: nothing fails and nothing varies."""
    cluster = sweep.cluster
    decoders = 0 if cluster.decode_on == "pod" else cluster.decode_workers
    fleet = Fleet(cluster.pods, cluster.heavy_ranks, cluster.sketch_workers, decoders)
    world = world_of(sweep.items, decided(sweep, demands), sizing, Realism(noise=0.0))
    return simulate(Scheduler(scheduler_config(sweep), sizing, keep_log=False), world, fleet).makespan_s


def replayed(sweep: Sweep, sizing: Sizing, rows: Sequence[dict[str, Any]], demands: dict[str, Demand]) -> dict[str, Any]:
    """The run's own commands and seconds through the simulator."""
    by_item = dict(zip((item.item_key for item in sweep.items), decided(sweep, demands), strict=True))

    def first(item: Item) -> Decision:
        return by_item[item.item_key]

    def recorded_world(run: Recording) -> World:
        return world_of(run.items, decisions_of(run, first), sizing, Realism(noise=0.0))

    return replay_report(eventlog.told(rows), lambda: Scheduler(scheduler_config(sweep), sizing), recorded_world)
