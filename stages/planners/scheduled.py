"""Planners whose schedule no content decides: height and width by fixed rates, a clean estimate resized, fresh noise.

Jenga's progressive resolution, Bottleneck Sampling, changing resolution and the spectral one are this with their own numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.methods import Request
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Action, Decision, Grid, Stage
from stages.demand import Pixels
from stages.planners.task import BasePlanner, Crossing, Task
from stages.resize import Axes, Axis


class ScheduledPlanner(BasePlanner):
    """Runs ``action`` for every clip. Grids may shrink on the way: a stage's cells are those nearest its cells' centres."""

    needs_sketch = False

    def __init__(self, task: Task, action: Action, name: str) -> None:
        self.task, self.action = task, action
        self._why = f"{name}: always {action.name}, density {action.density:.3f}"

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None = None, pixels: Pixels | None = None) -> Decision:
        return Decision(self.action, self._why)

    def axes(self, stages: Sequence[Stage], decision: Decision | None) -> tuple[Axes, ...]:
        return tuple(nearest_cells(stage.grid, self.task.full_grid) for stage in stages)

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        stages, index = crossing.action.stages, crossing.stage_index
        y = stretched(x0.float(), stages[index + 1].grid)
        return (1 - crossing.sigma) * y + crossing.sigma * fresh_noise(stages, index + 1, y, crossing.seed)


def nearest_cells(grid: Grid, full_grid: Grid) -> Axes:
    """Of the full grid, those that hold the centres of a smaller grid's cells."""
    t, h, w = (_nearest(size, full) for size, full in zip(grid, full_grid, strict=True))
    return t, h, w


def _nearest(size: int, full: int) -> Axis:
    return tuple((2 * i + 1) * full // (2 * size) for i in range(size))


def stretched(x: Tensor, grid: Grid) -> Tensor:
    """[1, C, T, H, W] on another grid, linearly between the cells' centres; up or down, in one dimension or several."""
    return x if tuple(x.shape[2:]) == grid else F.interpolate(x, size=grid, mode="trilinear", align_corners=False)


def fresh_noise(stages: Sequence[Stage], stage_index: int, like: Tensor, seed: int) -> Tensor:
    """The noise of a stage: the stock generator's next draw after one for the grid of each stage before.

    The first of these is what a clip starts from, unless ``initial_noise: coordinate`` has it start from the field instead.

    So it is a function of the seed and the schedule, wherever and whenever a clip goes on.
    """
    generator = torch.Generator().manual_seed(seed)
    for stage in stages[:stage_index]:
        torch.randn((1, like.shape[1], *stage.grid), generator=generator)
    return torch.randn((1, like.shape[1], *stages[stage_index].grid), generator=generator).to(like.device)


def require_shares(rates: Sequence[float], shares: Sequence[float]) -> None:
    """Raises ValueError unless ``rates`` end at the full grid and ``shares`` rise through [0, 1), one between every two rates."""
    if not all(0 < rate <= 1 for rate in rates) or rates[-1] != 1:
        raise ValueError(f"rates is {list(rates)}: each must be above 0 and at most 1, and the last 1, which is what is decoded")
    if len(shares) != len(rates) - 1:
        raise ValueError(f"{len(rates)} rates need {len(rates) - 1} changes between them, not {len(shares)}: {list(shares)}")
    if list(shares) != sorted(set(shares)) or not all(0 < share < 1 for share in shares):
        raise ValueError(f"changes are at {list(shares)} of the steps: they must rise, above 0 and below 1")


def require_shifts(rates: Sequence[float], shifts: Sequence[float]) -> None:
    """Raises ValueError unless there is a timestep shift above 0 for every rate."""
    if len(shifts) != len(rates) or min(shifts) <= 0:
        raise ValueError(f"shifts is {list(shifts)}: of {len(rates)} rates there must be {len(rates)}, each above 0")


def always(schedule: Callable[[Any, ModelGeometry, Grid, int], Action]) -> Callable[[Any, Request], tuple[Action, ...]]:
    """``actions`` of a method whose clips all have one ``schedule(settings, geometry, full_grid, num_steps)``."""

    def actions(settings: Any, request: Request) -> tuple[Action, ...]:
        grid = request.geometry.latent_grid(request.shape)
        return (schedule(settings, request.geometry, grid, request.num_steps),)

    return actions


def refused(actions: Callable[[Any, Request], tuple[Action, ...]]) -> Callable[[Any, Request], list[str]]:
    """``mistakes`` of a method: what stands in the way of its schedule."""

    def mistakes(settings: Any, request: Request) -> list[str]:
        try:
            actions(settings, request)
        except ValueError as error:
            return [str(error)]
        return []

    return mistakes
