"""Bottleneck Sampling: the full grid, a smaller one for most of the way, the full grid (arXiv 2503.18940).

Reconstructed. The paper gives the U, the clean estimate at each border, and that every stage has a start level and a shift of
its own; numbers of steps, grids and shifts for video are pieced together to meet its published speed (2.4 times at 30 steps).
"""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from orchestrator.methods import Method, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import default_shifts, grid_schedule, own_steps
from orchestrator.types import Action, Grid
from stages.planners.scheduled import ScheduledPlanner, always, refused, require_shares, require_shifts
from stages.planners.task import Task

OF_STEPS = 0.6
"""30 of 50."""
PATTERNS = {3: (7.0, 5.0, 9.0)}
"""By the number of stages: down, and up to more than there was."""


class BottleneckSettings(Settings):
    """A U over height and width."""

    steps: int | None = Field(None, ge=1)
    """Solver steps of the clip; none given: 0.6 of the arm's, which density and speedup stay shares of, or all of a
    step-distilled model's."""
    rates: tuple[float, ...] = Field((1.0, 0.75, 1.0), min_length=1)
    """Height and width of every stage as a share of the full grid's; the last is 1. ``[1]`` is the plain run, of ``steps``."""
    step_rates: tuple[float, ...] = (0.2, 0.8)
    """Share of the steps after which each stage but the last ends: 6, 18 and 6 of 30. Empty for one stage."""
    shifts: tuple[float, ...] | None = Field(None, min_length=1)
    """Timestep shift of every stage; none given: of 3 the model's own, times 7, 5, 9 of 7. They set where each stage starts."""


class BottleneckPlanner(ScheduledPlanner):
    """Back at the level at which the next stage's own schedule has its step."""

    def __init__(self, task: Task, settings: BottleneckSettings) -> None:
        action = schedule(settings, task.geometry, task.full_grid, task.num_steps)
        super().__init__(replace(task, num_steps=num_steps_of(settings, task.geometry, task.num_steps)), action, "bottleneck")


def num_steps_of(settings: BottleneckSettings, geometry: ModelGeometry, full_steps: int) -> int:
    return settings.steps or own_steps(geometry, full_steps, OF_STEPS)


def filled(settings: BottleneckSettings, geometry: ModelGeometry, full_steps: int) -> BottleneckSettings:
    """With steps and shifts. Raises ValueError for lists that do not fit."""
    rates = settings.rates
    ends = settings.step_rates if len(rates) > 1 else ()
    require_shares(rates, ends)
    shifts = settings.shifts or default_shifts(geometry, rates, PATTERNS)
    require_shifts(rates, shifts)
    steps = num_steps_of(settings, geometry, full_steps)
    return settings.model_copy(update={"steps": steps, "step_rates": ends, "shifts": shifts})


def schedule(settings: BottleneckSettings, geometry: ModelGeometry, full_grid: Grid, full_steps: int) -> Action:
    """A stage's last forward is its transition. Raises ValueError as :func:`filled`, or for too few steps."""
    known = filled(settings, geometry, full_steps)
    num_steps = num_steps_of(known, geometry, full_steps)
    transitions = [round(num_steps * end) - 1 for end in known.step_rates]
    return grid_schedule(geometry, full_grid, known.rates, transitions, known.shifts or (), num_steps, full_steps)


actions = always(schedule)


METHODS = {
    "bottleneck": Method(
        "bottleneck", "planner", "grid", "Bottleneck Sampling, arXiv 2503.18940",
        "fewer steps, most of them on a smaller grid between two ends on the full one", "reconstructed",
        make=lambda settings, task, budget: BottleneckPlanner(task, settings),
        settings=BottleneckSettings, resolve=lambda settings, request: filled(settings, request.geometry, request.num_steps),
        mistakes=refused(actions), actions=actions,
    )
}  # fmt: skip
