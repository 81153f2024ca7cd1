"""A planner by its name."""

from __future__ import annotations

from typing import get_args

from orchestrator.arms import PlannerName
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import ModelGeometry, SolverName
from orchestrator.types import VideoShape
from stages.planners.dvg import DvgPlanner
from stages.planners.full import FullPlanner
from stages.planners.task import Planner, Task
from stages.planners.uniform import UniformPlanner

__all__ = ["PLANNERS", "Planner", "Task", "make_planner"]

PLANNERS: tuple[str, ...] = get_args(PlannerName)


def make_planner(
    name: str,
    geometry: ModelGeometry,
    shape: VideoShape,
    num_steps: int,
    budget: float | None,
    config: DvgConfig,
    solver: SolverName | None = None,
) -> Planner:
    """A planner by name. Raises ValueError for an unknown name, an illegal shape, or a missing, idle or infeasible budget."""
    task = Task(geometry, shape, num_steps, config, solver)
    if name not in PLANNERS:
        raise ValueError(f"planner {name!r} is not known. Choices: {', '.join(PLANNERS)}")
    if name == "full":
        return FullPlanner(task)
    if name == "dvg":
        return DvgPlanner(task, _required(name, budget))
    return UniformPlanner(task, name, budget)


def _required(name: str, budget: float | None) -> float:
    if budget is None:
        raise ValueError(f"planner {name} needs a budget, above 0 and at most 1")
    return budget
