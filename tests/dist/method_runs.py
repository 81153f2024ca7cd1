"""What the ranks of a gang do under one method: a guided clip of wan-mini, or some steps of any tiny model on drifting noise."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import find, read_settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Attended, Grid, VideoShape
from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from stages.accelerators.base import Boost, StageEvent
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Placed
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from tests.dist import joint_runs
from tests.dist.test_wan import Case, condition, random, resident

CASE = Case("wan-mini", is_guided=True)
NUM_TEXT = 7
Make = Callable[[ModelGeometry], Callable[[], Any]]
"""What makes a method for each stage, of a model."""
Ran = tuple[list[Tensor], tuple[Attended, ...], float]
"""Velocities, what attention kept, the share of the operations that was executed."""


def maker(name: str, settings: Mapping[str, Any], geometry: ModelGeometry) -> Callable[[], Any]:
    method = find(name, "accelerator")
    return functools.partial(method.make, read_settings(method, dict(settings)), geometry)


def guided_clip(
    groups: Groups, make: Make, folder: str, shape: VideoShape, steps: int, width: int, num_branches: int, planner: str
) -> Boundary | None:
    """The end of a clip by the first ``width`` ranks; planner ``dvg`` has 12 steps on grids that change."""
    if groups.rank >= width:
        return None
    model = resident(CASE.name, folder)
    model.attach(layout(groups, 0, width, num_branches), Native())
    budget, steps = (0.5, 12) if planner == "dvg" else (None, steps)
    makers = (make(model.geometry),)
    plan = make_planner(planner, model.geometry, shape, steps, budget, DvgConfig(tolerance=0.2), accelerators=makers)
    boundary = start(model, plan, condition(CASE), 3)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    model.attach(None, None)
    return boundary


def shifted(x: Tensor, step: int) -> Tensor:
    return x + 0.02 * step


def grown(x: Tensor, step: int) -> Tensor:
    return x * (1 + 0.02 * step)


def drifting(
    model: Any, make: Make, placed: Placed, grid: Grid, steps: int, moved: Callable[[Tensor, int], Tensor] = grown, seed: int = 1
) -> Ran:
    """A stage's steps on noise that changes a little from one to the next, by whatever ``model`` is attached to."""
    boost = Boost((make(model.geometry),), StageEvent(grid, range(steps), steps, 0, False), model.geometry)
    model.accelerate(boost)
    found, noise = [], random(1, model.geometry.latent_channels, *grid, seed=seed)
    for step in range(steps):
        x, level = moved(noise, step), NoiseLevel(1 - step / 20, 1000 - 50.0 * step, 950 - 50.0 * step)
        boost.at(step, level)
        found.append(model.denoise(x, level, placed))
        boost.saw(x, found[-1])
    attended = boost.attended()
    model.accelerate(None)
    return found, attended, boost.share


def beside_text(model: Any, name: str, grid: Grid) -> Placed:
    """Of a model whose text tokens join the image's."""
    make = joint_runs.hunyuan15_condition if "1.5" in name else joint_runs.hunyuan_condition
    placed: Placed = model.place(make(name, NUM_TEXT, grid), tuple(tuple(range(size)) for size in grid), "index")
    return placed


def joint_steps(
    groups: Groups,
    make: Make,
    name: str,
    folder: str,
    grid: Grid,
    steps: int,
    width: int,
    moved: Callable[[Tensor, int], Tensor] = grown,
) -> Ran | None:
    """:func:`drifting` of such a model, by the first ``width`` ranks."""
    if groups.rank >= width:
        return None
    own = joint_runs.resident(name, folder)
    own.attach(layout(groups, 0, width, 1), Native())
    found = drifting(own, make, beside_text(own, name, grid), grid, steps, moved)
    own.attach(None, None)
    return found
