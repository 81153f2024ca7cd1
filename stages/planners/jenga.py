"""Jenga-ProRes: half of the way on a smaller grid, or in three grids (progressive resolution of Jenga, arXiv 2505.16864)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import default_shifts, grid_schedule, part_of
from orchestrator.types import Action, Grid
from stages.planners.scheduled import ScheduledPlanner, always, refused, require_shares, require_shifts
from stages.planners.task import Task
from stages.sampling import Solver

PRESETS = {"turbo": ((0.75, 1.0), (0.5, 1.0)), "3-stage": ((0.5, 0.75, 1.0), (0.3, 0.5, 1.0))}
"""Rates of height and width, and the shares of the steps at which each ends."""
PATTERNS = {2: (7.0, 9.0), 3: (7.0, 9.0, 11.0)}
"""Shifts of the stages, by how many there are, for a model whose own is 7."""


class JengaSettings(Settings):
    """Progressive resolution alone, without Jenga's sparse attention."""

    preset: Literal["turbo", "3-stage"] = "turbo"
    """The published lists: ``turbo`` is 0.75 for half of the steps, ``3-stage`` 0.5 and 0.75 before the full grid. The keys below
    stand in for parts of it."""
    rates: tuple[float, ...] | None = Field(None, min_length=1)
    """Height and width of every stage as a share of the full grid's; the last is 1. ``[1]`` is the plain run."""
    step_rates: tuple[float, ...] | None = Field(None, min_length=1)
    """Share of the steps done at the end of every stage; the last is 1."""
    shifts: tuple[float, ...] | None = Field(None, min_length=1)
    """Timestep shift of every stage; none given: of 2 or 3 the model's own, times 7, 9, 11 of 7 as published for
    HunyuanVideo's 7."""
    clean_sigma: Literal["new", "old"] = "new"
    """Level by which a clean estimate is taken: of the schedule that begins, as the release does, or of the one under which the
    velocity was computed."""
    text_boost: float = Field(0.0, ge=0)
    """Scale of the bias on text keys that the release adds in its first stage. Only 0 is served here."""


class JengaPlanner(ScheduledPlanner):
    """The release installs the next schedule first, and takes its level at the step for the clean estimate."""

    def __init__(self, task: Task, settings: JengaSettings) -> None:
        super().__init__(task, schedule(settings, task.geometry, task.full_grid, task.num_steps), "jenga-prores")
        self.settings = settings

    def clean_sigma(self, step: int, stage_index: int, here: Solver) -> float:
        if self.settings.clean_sigma == "old":
            return super().clean_sigma(step, stage_index, here)
        return self.task.solver(self.action.stages[stage_index + 1]).levels[step].sigma


def filled(settings: JengaSettings, geometry: ModelGeometry) -> JengaSettings:
    """With the preset's lists where none were given. Raises ValueError for lists that do not fit."""
    rates, ends = PRESETS[settings.preset]
    rates = settings.rates or rates
    ends = settings.step_rates or (ends if len(rates) > 1 else (1.0,))
    if ends[-1] != 1 or len(ends) != len(rates):
        raise ValueError(f"step_rates is {list(ends)}: of {len(rates)} rates there must be {len(rates)}, and the last must be 1")
    require_shares(rates, ends[:-1])
    shifts = settings.shifts or default_shifts(geometry, rates, PATTERNS)
    require_shifts(rates, shifts)
    return settings.model_copy(update={"rates": rates, "step_rates": ends, "shifts": shifts})


def schedule(settings: JengaSettings, geometry: ModelGeometry, full_grid: Grid, num_steps: int) -> Action:
    """A stage has its share of the forwards, its transition's being the last. Raises ValueError as :func:`filled`, or for too
    few steps."""
    known = filled(settings, geometry)
    rates, ends, shifts = known.rates or (), known.step_rates or (), known.shifts or ()
    transitions = [part_of(num_steps, end) - 1 for end in ends[:-1]]
    return grid_schedule(geometry, full_grid, rates, transitions, shifts, num_steps)


actions = always(schedule)


def mistakes(settings: JengaSettings, request: Request) -> list[str]:
    found = refused(actions)(settings, request)
    if settings.text_boost:
        how = "attends to its text by itself" if request.geometry.family == "wan" else "attends by kernels without a bias on keys"
        found.append(
            f"text_boost is {settings.text_boost:g}: {request.geometry.name} {how}, on one rank or several, so text keys cannot "
            "be raised; leave it 0"
        )
    return found


METHODS = {
    "jenga-prores": Method(
        "jenga-prores", "planner", "grid", "progressive resolution of Jenga, arXiv 2505.16864",
        "smaller height and width for the first steps, then the full grid", "release",
        make=lambda settings, task, budget: JengaPlanner(task, settings),
        settings=JengaSettings, resolve=lambda settings, request: filled(settings, request.geometry),
        mistakes=mistakes, actions=actions,
    )
}  # fmt: skip
