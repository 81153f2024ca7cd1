"""Fresco: regions that have converged go to the full grid before the others (arXiv 2601.07462).

Reconstructed: the paper's two ideas are here, the numbers are pieced together, and no code of theirs was seen.

- One noise field on the full grid's cells, of which every stage sees its own cells, from the first noise on.
- Clean estimates by the level under which they were computed; a coarse cell's children start as copies of it. Shifts rise, so
  a transition goes back to more noise.
- ``mixed``: between the first grid, one n-th of the full one, and the full one, both are there at once (:mod:`stages.mixed`).
  A stage has as many tokens as a uniform one of its rate would have; squares whose clean estimates varied least over the last
  ``window`` steps are fine, the others wait for the next transition. Coarse tokens have their square's middle for a place.
- Without ``mixed`` every stage is uniform and nothing is measured: the first idea alone. Clean values go to the cells that hold
  the centres, while noise and a first frame's cells are those of DVG's nested grids, which may be a neighbour's.

Not known, and chosen here: shares of the steps, shifts (Jenga's), how many squares a transition promotes, that all tokens of a
stage are at one noise level, and that steps are 20 of 50.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from orchestrator.methods import FIELD_KNOBS, Method, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import grid_schedule, own_steps, part_of
from orchestrator.types import Action, Decision, Grid, Stage
from stages.mixed import Mixed, Regions
from stages.planners.passage import field
from stages.planners.scheduled import ScheduledPlanner, always, refused, require_shares, require_shifts
from stages.planners.task import Crossing, Task
from stages.resize import Axes, nested_axes

OF_STEPS = 0.4
"""20 of 50."""
ALMOST = 1e-3
"""How near a first rate must be to one over a whole number."""
RISE = 8 / 7
"""Of the shift, for each unit that the rate rises: 7, 9, 11 at 0.5, 0.75, 1."""


class FrescoSettings(Settings):
    """Grids that grow, first where nothing moves any more."""

    steps: int | None = Field(None, ge=1)
    """Solver steps of the clip; none given: 0.4 of the arm's (published: 20 of 50), or all of a step-distilled model's."""
    rates: tuple[float, ...] = Field((0.5, 0.75, 1.0), min_length=1)
    """Height and width of every stage as a share of the full grid's, rising to 1. ``[1]`` is the plain run, of ``steps``. With
    ``mixed`` those between the first and the last say how many tokens there are."""
    step_rates: tuple[float, ...] = (0.3, 0.5)
    """Share of the steps after which each stage but the last ends. Empty for one stage."""
    shifts: tuple[float, ...] | None = Field(None, min_length=1)
    """Timestep shift of every stage; none given: the model's own, rising with the rates as 7, 9, 11 of 7 do."""
    mixed: bool = True
    """Stages between have tokens of the first grid and of the full one at once. ``false``: one grid each, between these."""
    window: int = Field(3, ge=2)
    """Steps whose clean estimates tell what has converged: the last ones of a stage."""


class FrescoPlanner(ScheduledPlanner):
    """Raises ValueError for settings that do not fit."""

    def __init__(self, task: Task, settings: FrescoSettings) -> None:
        known = filled(settings, task.geometry, task.num_steps)
        action = schedule(known, task.geometry, task.full_grid, task.num_steps)
        grows = len(action.stages) > 1
        config = task.config.model_copy(update={"initial_noise": "coordinate"}) if grows else task.config
        num_steps = num_steps_of(known, task.geometry, task.num_steps)
        super().__init__(replace(task, num_steps=num_steps, config=config), action, "fresco")
        self.regions = regions_of(known, task.geometry, task.full_grid) if known.mixed and grows else None
        self.remembers = known.window if self.regions and len(action.stages) > 2 else 0

    def axes(self, stages: Sequence[Stage], decision: Decision | None) -> tuple[Axes, ...]:
        if self.regions is None:
            return nested_axes(tuple(stage.grid for stage in self.action.stages))
        t, h, w = (tuple(range(size)) for size in self.task.full_grid)
        return (self.regions.axes, *((t, h, w) for _ in self.action.stages[1:]))

    def mixture(self, x: Tensor, stage_index: int) -> Mixed | None:
        """By the latent itself, so that a clip goes on from any boundary."""
        if self.regions is None or stage_index in (0, len(self.action.stages) - 1):
            return None
        return self.regions.unpromoted(x, self._num_whole(self.regions, stage_index))

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        index, clean = crossing.stage_index + 1, x0.float()
        axes = self.axes(self.action.stages, crossing.decision)[index]
        noise = field(axes, self.task.full_grid, clean.shape[1], crossing.seed, clean.device, self.task.config)
        if self.regions is None:
            clean = F.interpolate(clean, size=self.action.stages[index].grid, mode="nearest-exact")
            return (1 - crossing.sigma) * clean + crossing.sigma * noise
        if index == 1:
            clean = self.regions.children(clean)
        x = (1 - crossing.sigma) * clean + crossing.sigma * noise
        if index == len(self.action.stages) - 1:
            return x
        order = urgency(self.regions, crossing.recent, crossing.mixed)
        mixed = self.regions.mixed(order, self._num_whole(self.regions, index))
        return torch.where(mixed.cells, self.regions.children(self.regions.parents(x)), x)

    def _num_whole(self, regions: Regions, stage_index: int) -> int:
        return regions.num_whole(self.task.geometry.num_tokens(self.action.stages[stage_index].grid))


def urgency(regions: Regions, recent: Sequence[Tensor], mixed: Mixed | None) -> Tensor:
    """How soon each square ``[t, h, w]`` is promoted, by the variance over the last clean estimates; one that was, stays so."""
    clean = torch.stack([x0.float() for x0 in recent])
    varied = clean.var(dim=0, correction=0).mean(dim=1)[0]
    varied = regions.mean(varied if mixed else regions.children(varied))
    return -varied if mixed is None else torch.where(mixed.whole, -varied, torch.inf)


def num_steps_of(settings: FrescoSettings, geometry: ModelGeometry, full_steps: int) -> int:
    return settings.steps or own_steps(geometry, full_steps, OF_STEPS)


def filled(settings: FrescoSettings, geometry: ModelGeometry, full_steps: int) -> FrescoSettings:
    """With steps and shifts. Raises ValueError for lists that do not fit."""
    rates = settings.rates
    ends = settings.step_rates if len(rates) > 1 else ()
    shifts = settings.shifts or tuple(geometry.full_shift * (1 + RISE * (rate - rates[0])) for rate in rates)
    require_shares(rates, ends)
    require_shifts(rates, shifts)
    if list(rates) != sorted(set(rates)):
        raise ValueError(f"rates is {list(rates)}: they must rise; planner bottleneck and changing-resolution also shrink")
    if settings.mixed and len(rates) > 1 and abs(1 / rates[0] - round(1 / rates[0])) > ALMOST:
        raise ValueError(
            f"rates is {list(rates)}: under mixed a coarse token stands for a square of tokens, so the first rate must be 1/2, "
            "1/3 or the like (0.5, 0.3333); or take mixed: false, or planner jenga-prores"
        )
    steps = num_steps_of(settings, geometry, full_steps)
    return settings.model_copy(update={"steps": steps, "step_rates": ends, "shifts": shifts})


def regions_of(settings: FrescoSettings, geometry: ModelGeometry, full_grid: Grid) -> Regions:
    return Regions(round(1 / settings.rates[0]), full_grid, geometry.patch)


def schedule(settings: FrescoSettings, geometry: ModelGeometry, full_grid: Grid, full_steps: int) -> Action:
    """A stage's last forward is its transition; a mixed one is told by the uniform grid of as many tokens.

    Raises ValueError as :func:`filled`, for too few steps, or for a video too small for a square.
    """
    known = filled(settings, geometry, full_steps)
    num_steps = num_steps_of(known, geometry, full_steps)
    transitions = [part_of(num_steps, end) - 1 for end in known.step_rates]
    action = grid_schedule(geometry, full_grid, known.rates, transitions, known.shifts or (), num_steps, full_steps)
    if known.mixed and len(known.rates) > 1:
        _require_squares(regions_of(known, geometry, full_grid))
        _require_past(action)
    return action


def _require_squares(regions: Regions) -> None:
    if min(regions.grid) < 1:
        raise ValueError(
            f"the video is {' x '.join(map(str, regions.tokens))} tokens, which hold no square of {regions.factor} x "
            f"{regions.factor}; take a larger video, a larger first rate, or planner full"
        )


def _require_past(action: Action) -> None:
    if any(stage.steps < 2 for stage in action.stages[1:-2]):
        raise ValueError(
            f"its stages have {', '.join(str(stage.steps) for stage in action.stages)} steps: one before a mixed stage needs two "
            "steps to tell what has settled; take more steps, fewer rates, or mixed: false"
        )


actions = always(schedule)


METHODS = {
    "fresco": Method(
        "fresco", "planner", "grid", "Fresco, arXiv 2601.07462",
        "coarse tokens, then coarse and fine ones at once, fine first where clean estimates have settled; one noise field",
        "reconstructed",
        make=lambda settings, task, budget: FrescoPlanner(task, settings),
        settings=FrescoSettings, resolve=lambda settings, request: filled(settings, request.geometry, request.num_steps),
        mistakes=refused(actions), actions=actions,
        knobs=("image_condition", "extrapolation", "meanflow_clean", *FIELD_KNOBS),
        excludes={"adacache": "it compares frames token by token, and the tokens of two grids at once form no frames"},
        without=dict.fromkeys(("attention", "tokens"), "its stages mix tokens of two grids, which form no frames"),
    )
}  # fmt: skip
