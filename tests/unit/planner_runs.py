"""Clips of planners that no content decides, with a model that writes down what it is asked, and on real weights."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import SolverName
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request, find, read_settings
from orchestrator.types import Action, VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Condition, Model, load
from stages.planners import Planner, make_planner
from stages.planners.task import Crossing
from tests.spies import CONDITION, SpyModel

SMALL = VideoShape(5, 128, 128)
"""Latent 2 x 16 x 16 on wan-mini."""
SEED = 5


def made(name: str, num_steps: int = 10, model: str = "wan-mini", solver: SolverName = "euler", **settings: Any) -> Planner:
    """The planner ``name`` for a small video."""
    return made_for(SMALL, name, num_steps, model, settings, solver=solver)


def made_for(
    shape: VideoShape,
    name: str,
    num_steps: int,
    model: str,
    settings: Mapping[str, Any],
    config: DvgConfig | None = None,
    solver: SolverName = "euler",
) -> Planner:
    return make_planner(name, geometry_of(model), shape, num_steps, None, config or DvgConfig(), solver, settings=settings)


def scheduled(name: str, model: str, num_steps: int | None = None, **settings: Any) -> Action:
    """What ``dvg plan`` knows of a planner at a model's own shape and steps."""
    geometry, method = geometry_of(model), find(name, "planner")
    steps = num_steps or geometry.default_steps
    request = Request(geometry, geometry.default_shape, steps, 1.0, name, DvgConfig())
    (action,) = method.actions(method.resolve(read_settings(method, settings), request), request)
    return action


def refusals(name: str, num_steps: int = 50, model: str = "wan2.1-1.3b", **settings: Any) -> str:
    """Why it is refused before any device is touched; empty if it is not."""
    geometry, method = geometry_of(model), find(name, "planner")
    request = Request(geometry, geometry.default_shape, num_steps, 1.0, name, DvgConfig())
    try:
        known = method.resolve(read_settings(method, settings), request)
    except ValueError as error:
        return str(error)
    return "; ".join(method.mistakes(known, request))


def finished(model: Model, planner: Planner, condition: Condition = CONDITION, seed: int = SEED) -> Boundary:
    """The whole clip."""
    boundary = start(model, planner, condition, seed)
    assert boundary.decision is not None, "nothing to measure, so nothing to wait for"
    return run_stages(model, planner, boundary, len(boundary.decision.action.stages))[0]


@dataclass
class Passage:
    """What went from one grid to the next: the forward's latent and velocity, the clean estimate, and what came of them."""

    x: Tensor
    v: Tensor
    clean: Tensor
    sigma: float
    after: Tensor


def watched(planner: Planner, model: SpyModel) -> list[Passage]:
    """Runs a clip and returns its passages."""
    cross, found = planner.cross, []

    def noted(x0: Tensor, crossing: Crossing) -> Tensor:
        after = cross(x0, crossing)
        found.append(Passage(*model.outputs[-1], x0, crossing.sigma, after))
        return after

    planner.cross = noted  # type: ignore[method-assign]
    finished(model, planner)
    return found


def draws(grids: list[tuple[int, ...]], channels: int = 16, seed: int = SEED) -> list[Tensor]:
    """One generator's noise for one grid after the other."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((1, channels, *grid), generator=generator) for grid in grids]


@functools.cache
def wan_mini() -> Model:
    return load("wan-mini", None)
