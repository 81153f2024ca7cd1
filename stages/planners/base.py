"""A planner by its name."""

from __future__ import annotations

from typing import get_args

from orchestrator.arms import PlannerName
from orchestrator.budgets import Target
from orchestrator.cost import CostModel
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
    budget: float | Target | None,
    config: DvgConfig,
    solver: SolverName | None = None,
    cost: CostModel | None = None,
) -> Planner:
    """A planner by name. Only ``dvg`` knows budgets in speedup or seconds, which need ``cost``.

    Raises ValueError for an unknown name, an illegal shape, or a missing, idle or infeasible budget.
    """
    task = Task(geometry, shape, num_steps, config, solver)
    if name not in PLANNERS:
        raise ValueError(f"planner {name!r} is not known. Choices: {', '.join(PLANNERS)}")
    if name == "full":
        return FullPlanner(task)
    if name == "dvg":
        if budget is None:
            raise ValueError("planner dvg needs a budget, above 0 and at most 1")
        return DvgPlanner(task, budget if isinstance(budget, Target) else Target(value=budget), cost)
    if isinstance(budget, Target):
        raise ValueError(f"planner {name} takes a budget as a share of the full run's token-steps, not {budget}")
    return UniformPlanner(task, name, budget)
