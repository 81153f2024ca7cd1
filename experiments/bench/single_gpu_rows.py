"""A clip's seconds from the median seconds of a forward per grid: pure arithmetic over what was measured."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from orchestrator.actions import action_list
from orchestrator.cost import ForwardCost
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import ModelGeometry
from orchestrator.schedules import forwards_per_stage
from orchestrator.types import Action, Grid, VideoShape

STEPS = (50, 40, 25, 12)
BUDGETS = (0.5, 0.7)

Seconds = Mapping[Grid, float]
"""Median seconds of one forward of one branch, by latent grid."""


@dataclass(frozen=True)
class Clock:
    """Seconds of a forward on any grid: measured where it was, else by the curve through what was."""

    geometry: ModelGeometry
    measured: Seconds
    curve: ForwardCost

    def forward_s(self, grid: Grid) -> float:
        return self.measured.get(grid, self.curve.seconds(self.geometry.num_tokens(grid)))

    def forwards_s(self, action: Action, branches: int) -> float:
        """All forwards of a clip; a transition's runs on the grid that it leaves."""
        counts = forwards_per_stage([stage.steps for stage in action.stages])
        return sum(branches * count * self.forward_s(stage.grid) for stage, count in zip(action.stages, counts, strict=True))

    def is_measured(self, action: Action) -> bool:
        return all(stage.grid in self.measured for stage in action.stages)


@dataclass(frozen=True)
class Spread:
    """The feasible actions of one row that take most, least, and nearest to the mean; the mean is over all of them."""

    slowest: Action
    nearest: Action
    fastest: Action
    mean_s: float
    num_actions: int

    @property
    def actions(self) -> dict[str, Action]:
        return {"slowest": self.slowest, "nearest the mean": self.nearest, "fastest": self.fastest}


def feasible(geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float) -> tuple[Action, ...]:
    return action_list(geometry, shape, num_steps, budget, DvgConfig.for_model(geometry))


def spread(actions: Sequence[Action], clock: Clock, branches: int) -> Spread:
    """By predicted seconds of the forwards."""
    seconds = {action.name: clock.forwards_s(action, branches) for action in actions}
    ordered = sorted(actions, key=lambda action: seconds[action.name])
    mean_s = statistics.fmean(seconds.values())
    nearest = min(actions, key=lambda action: abs(seconds[action.name] - mean_s))
    return Spread(ordered[-1], nearest, ordered[0], mean_s, len(actions))


def by_flops(geometry: ModelGeometry) -> ForwardCost:
    """Floating-point operations of a forward: which actions are slow or fast, before anything was measured."""
    width = geometry.heads * geometry.head_dim
    return ForwardCost(fixed_s=0.0, token_s=2.0 * geometry.linear_macs, token2_s=4.0 * width * geometry.num_layers)


def key_grids(actions: Sequence[Action]) -> tuple[Grid, ...]:
    """Every grid of the actions, the full one left out."""
    grids = itertools.chain.from_iterable((stage.grid for stage in action.stages[:-1]) for action in actions)
    return tuple(dict.fromkeys(grids))
