"""A planner by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from orchestrator.budgets import Target
from orchestrator.cost import CostModel
from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import ModelGeometry, SolverName
from orchestrator.methods import PLANNERS, find, read_settings
from orchestrator.types import VideoShape
from stages.accelerators.base import Accelerator
from stages.planners.dvg import DvgPlanner
from stages.planners.task import Planner, Task

__all__ = ["PLANNERS", "Planner", "Task", "make_planner"]


def make_planner(
    name: str,
    geometry: ModelGeometry,
    shape: VideoShape,
    num_steps: int,
    budget: float | Target | None,
    config: DvgConfig,
    solver: SolverName | None = None,
    cost: CostModel | None = None,
    settings: Mapping[str, Any] | None = None,
    accelerators: tuple[Callable[[], Accelerator], ...] = (),
) -> Planner:
    """A planner by name. Only ``dvg`` knows budgets in speedup or seconds, which need ``cost``.

    Raises ValueError for an unknown name or setting, an illegal shape, or a missing, idle or infeasible budget.
    """
    task = Task(geometry, shape, num_steps, config, solver, accelerators)
    if name not in PLANNERS:
        raise ValueError(f"planner {name!r} is not known. Choices: {', '.join(PLANNERS)}")
    if name == "dvg":
        if budget is None:
            raise ValueError("planner dvg needs a budget, above 0 and at most 1")
        return DvgPlanner(task, budget if isinstance(budget, Target) else Target(value=budget), cost)
    if isinstance(budget, Target):
        raise ValueError(f"planner {name} takes a budget as a share of the full run's token-steps, not {budget}")
    method = find(name, "planner")
    planner: Planner = method.make(read_settings(method, settings or {}), task, budget)
    return planner
