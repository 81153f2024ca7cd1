"""Small simulated worlds for the simulator's tests."""

from __future__ import annotations

from array import array
from pathlib import Path

from orchestrator.allotment import frontier
from orchestrator.cli_simulate import SimulateOptions, study_of
from orchestrator.simulator_report import Study
from orchestrator.simulator_world import ClipCost, Realism, World
from orchestrator.sizing import Choice
from orchestrator.split import Load
from orchestrator.types import Action, Decision, Item, Stage

MIXED = Path(__file__).parents[2] / "experiments" / "specs" / "mixed.yaml"


def study(items: int, pods: int = 2, *overrides: str, **options) -> Study:
    """Of the shipped spec."""
    return study_of(MIXED, overrides, SimulateOptions(pods=pods, gpus_per_pod=8, items=items, **options))


def clip_cost(name: str, sketch_s: float, stages: list[dict[int, float]], decode_s: float) -> ClipCost:
    """A clip with given seconds of every stage on every width."""
    grids = tuple(Stage((1, 1, 1), 2, 1.0) for _ in range(len(stages) + 1))
    choices = [[Choice(w, 1, s, s, 1.0, False) for w, s in sorted(stage.items())] for stage in stages]
    ways = frontier(choices)
    load = Load(sketch_s, ways.cheapest.gpu_s, decode_s)
    return ClipCost("arm", Action(name, grids, 0.5), sketch_s, tuple(stages), {1: decode_s}, ways, load)


def world(costs: list[ClipCost], drawn: list[tuple[float, float, float]], hand_over_s: float = 0.0) -> World:
    """One item of each cost, with what was drawn for its sketch, refining and decode."""
    items = tuple(Item(f"key{n}", "arm", f"p{n}", "x", 0) for n in range(len(costs)))
    draws = [array("d", column) for column in zip(*drawn, strict=True)]
    decisions = [Decision(cost.action, "") for cost in costs]
    return World(items, decisions, costs, array("I", range(len(costs))), *draws, Realism(hand_over_s=hand_over_s))
