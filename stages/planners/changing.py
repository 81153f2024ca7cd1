"""Changing resolution, as LightX2V ships it: a U or a rise over height and width, the noise of every stage drawn beforehand."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.methods import Method, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import grid_schedule, part_of
from orchestrator.types import Action, Grid
from stages.planners.scheduled import ScheduledPlanner, always, refused, require_shares
from stages.planners.task import Task
from stages.sampling import Solver

RATES = {"u": (1.0, 0.75, 1.0), "rising": (0.75, 1.0)}
CHANGES = {"u": (0.2, 0.7), "rising": (0.4,)}
"""After steps 10 and 35 of 50; a rise's is not given, so it spends about as many tokens as the U."""
IMAGE_CHANGES = {"u": (0.125, 0.625), "rising": (0.4,)}
"""From a first frame: after steps 5 and 25 of 40."""


class ChangingSettings(Settings):
    """Rates of height and width, and the steps at which they change."""

    shape: Literal["u", "rising"] = "u"
    """``u``: 1, 0.75, 1, as released; ``rising``: 0.75, 1, whose list is not the release's. The keys below stand in for parts."""
    rates: tuple[float, ...] | None = Field(None, min_length=1)
    """Height and width of every stage as a share of the full grid's; the last is 1. ``[1]`` is the plain run."""
    step_rates: tuple[float, ...] | None = None
    """Share of the steps after which each change comes; none given: 0.2 and 0.7, or 0.125 and 0.625 for models that need a first
    frame; 0.4 for a rise."""
    shift_step: float = Field(1.0, ge=0)
    """By how much the timestep shift grows at every change."""


class ChangingPlanner(ScheduledPlanner):
    """As released, the latent comes back at the level of the step it was at, whatever the next step's is."""

    def __init__(self, task: Task, settings: ChangingSettings) -> None:
        action = schedule(settings, task.geometry, task.full_grid, task.num_steps)
        super().__init__(task, action, "changing-resolution")

    def sigma_after(self, step: int, here: Solver, there: Solver) -> float:
        return here.levels[step].sigma


def filled(settings: ChangingSettings, geometry: ModelGeometry) -> ChangingSettings:
    """With rates and changes. Raises ValueError for lists that do not fit."""
    rates = settings.rates or RATES[settings.shape]
    known = (IMAGE_CHANGES if geometry.image == "required" else CHANGES)[settings.shape]
    changes = settings.step_rates if settings.step_rates is not None else known[: len(rates) - 1]
    require_shares(rates, changes)
    return settings.model_copy(update={"rates": rates, "step_rates": changes})


def schedule(settings: ChangingSettings, geometry: ModelGeometry, full_grid: Grid, num_steps: int) -> Action:
    """A change comes after its share of the forwards, the last of which is the transition. Raises ValueError as :func:`filled`,
    or for too few steps."""
    known = filled(settings, geometry)
    rates, changes = known.rates or (), known.step_rates or ()
    shifts = [geometry.full_shift + settings.shift_step * k for k in range(len(rates))]
    transitions = [part_of(num_steps, share) - 1 for share in changes]
    return grid_schedule(geometry, full_grid, rates, transitions, shifts, num_steps)


actions = always(schedule)


METHODS = {
    "changing-resolution": Method(
        "changing-resolution", "planner", "grid", "LightX2V's changing resolution",
        "height and width fall and rise again, or rise, at fixed steps", "release",
        make=lambda settings, task, budget: ChangingPlanner(task, settings),
        settings=ChangingSettings, resolve=lambda settings, request: filled(settings, request.geometry),
        mistakes=refused(actions), actions=actions,
    )
}  # fmt: skip
