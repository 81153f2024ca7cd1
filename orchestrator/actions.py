"""DVG's action lists: every schedule that meets a budget.

Source: Dynamic Video Generation (DVG), arXiv 2605.21042, equations 6 to 8. Defaults follow the authors' release; where
the paper's text differs, its form is an option of :class:`DvgConfig`. Pure arithmetic, as are the modules whose names
this one re-exports, so ``dvg plan`` and the simulator load no torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import NUM_STAGES, ModelGeometry
from orchestrator.matching import choose, decide, weights
from orchestrator.schedules import (
    density,
    density_executed,
    forwards_per_stage,
    stage_grids,
    stage_shapes,
    steps_per_stage,
    transition_steps,
)
from orchestrator.types import Action, Grid, Stage, VideoShape

__all__ = [
    "DvgConfig",
    "InfeasibleBudget",
    "action_list",
    "candidates",
    "choose",
    "decide",
    "density",
    "density_executed",
    "feasible_budgets",
    "first_stage",
    "format_budgets",
    "forwards_per_stage",
    "full_action",
    "stage_grids",
    "stage_shapes",
    "steps_per_stage",
    "transition_steps",
    "uniform_action",
    "weights",
]

MIN_STEPS = 3
"""A transition needs a step before it and one after it."""
ROUNDING = 1e-9
"""Slack on the tolerance, so that a density on its edge does not depend on the last bit."""


class InfeasibleBudget(ValueError):
    """No action meets the budget. ``nearest`` holds the closest actions, ``feasible`` the budgets that would do."""

    def __init__(
        self, budget: float, config: DvgConfig, nearest: Sequence[Action], feasible: Sequence[float], hint: str = ""
    ) -> None:
        self.budget, self.nearest, self.feasible = budget, tuple(nearest), tuple(feasible)
        around = sorted(sorted(feasible, key=lambda value: abs(value - budget))[:3])
        closest = ", ".join(f"{action.name} with {action.density:.4f}" for action in nearest)
        super().__init__(
            f"budget {budget:g}: no action has a density within {config.tolerance:g} of it. "
            f"Nearest actions: {closest}. "
            f"Nearest feasible budgets: {', '.join(f'{value:.2f}' for value in around)} "
            f"(all: {format_budgets(feasible)}){hint}"
        )


def full_action(geometry: ModelGeometry, shape: VideoShape, num_steps: int) -> Action:
    """The plain run: every step on the full grid."""
    stage = Stage(geometry.latent_grid(shape), num_steps, geometry.full_shift)
    return Action("full", (stage,), 1.0)


def action_list(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float, config: DvgConfig
) -> tuple[Action, ...]:
    """Every schedule whose density is within the tolerance of the budget, nearest first (eqs. 6 and 8).

    A budget of 1 is the plain run. Raises InfeasibleBudget when no schedule fits, ValueError for a bad shape or budget.
    """
    options = tuple(candidates(geometry, shape, num_steps, budget, config))
    feasible = [action for action in options if _fits(action, budget, config)]
    feasible.sort(key=lambda action: _order(action, budget))
    if feasible:
        return tuple(feasible)
    nearest = sorted(options, key=lambda action: _order(action, budget))[:3]
    feasible_ones = feasible_budgets(geometry, shape, num_steps, config)
    raise InfeasibleBudget(budget, config, nearest, feasible_ones, _hint(num_steps))


def _hint(num_steps: int) -> str:
    """What else would help: with few steps it is the steps that leave no choice."""
    if num_steps < MIN_STEPS:
        return f". With {num_steps} steps there is no room for a smaller grid: at least {MIN_STEPS} are needed"
    if num_steps <= NUM_STAGES:
        return f". With {num_steps} steps there are two grids and nothing to choose: {NUM_STAGES + 1} steps offer more budgets"
    return ""


def uniform_action(
    planner: str, geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float | None, config: DvgConfig
) -> Action:
    """The schedule of ``temporal-only``, ``spatial-only`` or ``fixed``: every stage but the last on one grid.

    The first two take the density nearest the budget, the larger of equals; ``fixed`` takes its rates from the config.
    Raises ValueError for a budget that is missing or idle, InfeasibleBudget for one beyond the densities there are.
    """
    if planner == "fixed":
        if budget is not None:
            raise ValueError(f"planner fixed takes no budget (got {budget:g}): set fixed_spatial and fixed_temporal")
        if num_steps < MIN_STEPS:
            raise ValueError(
                f"num_steps is {num_steps}: planner fixed needs at least {MIN_STEPS}, for a smaller grid before the full"
            )
        return _uniform(geometry, shape, num_steps, config, config.fixed_spatial, config.fixed_temporal)
    if budget is None or not 0 < budget <= 1:
        raise ValueError(f"planner {planner} needs a budget above 0 and at most 1, got {budget}")
    if budget == 1:
        return full_action(geometry, shape, num_steps)
    num_frames = geometry.latent_grid(shape)[0]
    if planner == "temporal-only":
        rates = [(1.0, frames / num_frames) for frames in range(1, num_frames + 1)]
    else:
        rates = [(percent / 100, 1.0) for percent in range(1, 101)]
    actions = [_uniform(geometry, shape, num_steps, config, *pair) for pair in rates]
    actions.sort(key=lambda action: _order(action, budget))
    least = min(action.density for action in actions)
    if budget < least - config.tolerance - ROUNDING:
        budgets = [hundredths / 100 for hundredths in range(1, 101) if hundredths / 100 >= least - config.tolerance]
        raise InfeasibleBudget(budget, config, actions[:3], budgets, _hint(num_steps))
    return actions[0]


def _uniform(
    geometry: ModelGeometry, shape: VideoShape, num_steps: int, config: DvgConfig, spatial: float, temporal: float
) -> Action:
    full_grid = geometry.latent_grid(shape)
    steps = steps_per_stage(num_steps, config.transition_rates)
    if len(steps) == 1:
        return full_action(geometry, shape, num_steps)
    num_small = len(steps) - 1
    rates = (*[spatial] * num_small, 1.0), (*[temporal] * num_small, 1.0)
    shapes = stage_shapes(geometry, full_grid, *rates)
    stages = _stages(geometry, stage_grids(geometry, full_grid, *rates), steps, config)
    name = f"s{spatial:.2f}-f{shapes[0][0]}"
    return Action(name, stages, density(shapes, steps), spatial, shapes[0][0])


def _stages(geometry: ModelGeometry, grids: Sequence[Grid], steps: Sequence[int], config: DvgConfig) -> tuple[Stage, ...]:
    """Each grid with its steps and timestep shift; with fewer stages the last keeps the last shift."""
    shifts = config.shifts or geometry.stage_shifts
    return tuple(map(Stage, grids, steps, (*shifts[: len(steps) - 1], shifts[-1])))


def first_stage(geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float, config: DvgConfig) -> Stage:
    """The sketch, which every action of the list shares. It is the whole run when ``steps == num_steps``."""
    return next(candidates(geometry, shape, num_steps, budget, config)).stages[0]


def candidates(geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float, config: DvgConfig) -> Iterator[Action]:
    """Every schedule DVG knows at this budget, feasible or not; two rates that give the same stages count once."""
    if not 0 < budget <= 1:
        raise ValueError(f"budget is {budget:g}: it must be above 0 and at most 1")
    steps = steps_per_stage(num_steps, config.transition_rates)
    num_frames = geometry.latent_grid(shape)[0]
    if budget == 1 or len(steps) == 1:
        yield full_action(geometry, shape, num_steps)
        return
    if len(steps) == 2:
        yield _action(geometry, shape, steps, budget, config, None)
        return
    f1 = min(max(round(num_frames * config.stage1_temporal * budget), 1), num_frames)
    seen = set()
    for s2 in config.spatial_rates:
        for f2 in _frame_choices(f1, num_frames, config.temporal_rate_step) if s2 >= config.stage1_spatial else ():
            action = _action(geometry, shape, steps, budget, config, (s2, f2))
            if action.stages not in seen:
                yield action
            seen.add(action.stages)


def _frame_choices(least: int, most: int, rate_step: float | None) -> Sequence[int]:
    if rate_step is None:
        return range(least, most + 1)
    frames = {round(most * rate_step * i) for i in range(1, round(1 / rate_step) + 1)}
    return sorted(value for value in frames if least <= value <= most)


def _action(
    geometry: ModelGeometry,
    shape: VideoShape,
    steps: Sequence[int],
    budget: float,
    config: DvgConfig,
    choice: tuple[float, int] | None,
) -> Action:
    """Stages of one choice (s2, F2): rates s1, s2, 1, .. in space and t1, F2/F, .., 1 in time; None with two stages."""
    full_grid = geometry.latent_grid(shape)
    s2, f2 = choice or (1.0, full_grid[0])
    num_middle = len(steps) - 2
    spatial = (config.stage1_spatial, s2, *[1.0] * num_middle)
    temporal = (config.stage1_temporal * budget, *[f2 / full_grid[0]] * num_middle, 1.0)
    shapes = stage_shapes(geometry, full_grid, spatial, temporal)
    stages = _stages(geometry, stage_grids(geometry, full_grid, spatial, temporal), steps, config)
    if choice is None:
        return Action("sketch-full", stages, density(shapes, steps))
    return Action(f"s{s2:.2f}-f{f2}", stages, density(shapes, steps), s2, f2)


def _fits(action: Action, budget: float, config: DvgConfig) -> bool:
    above = 0.0 if config.one_sided else config.tolerance
    return -config.tolerance - ROUNDING <= action.density - budget <= above + ROUNDING


def _order(action: Action, budget: float) -> tuple[float, float, float, int]:
    """Smallest gap first, then the larger density, s2 and f2; ties in the score go to the earlier action."""
    return round(abs(action.density - budget), 12), -action.density, -(action.s2 or 0.0), -(action.f2 or 0)


def feasible_budgets(geometry: ModelGeometry, shape: VideoShape, num_steps: int, config: DvgConfig) -> tuple[float, ...]:
    """Budgets 0.01, 0.02, .. 1.00 for which :func:`action_list` is not empty."""
    budgets = (hundredths / 100 for hundredths in range(1, 101))
    return tuple(
        budget
        for budget in budgets
        if any(_fits(action, budget, config) for action in candidates(geometry, shape, num_steps, budget, config))
    )


def format_budgets(budgets: Sequence[float]) -> str:
    """Budgets in hundredths as ranges, for people: ``0.36-0.78, 1.00``."""
    runs: list[list[float]] = []
    for budget in budgets:
        if runs and budget - runs[-1][-1] < 0.015:
            runs[-1].append(budget)
        else:
            runs.append([budget])
    return ", ".join(f"{run[0]:.2f}-{run[-1]:.2f}" if len(run) > 1 else f"{run[0]:.2f}" for run in runs)
