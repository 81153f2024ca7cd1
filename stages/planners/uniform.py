"""Schedules that no content decides: every stage but the last on one grid (the ablations of DVG's table 4)."""

from __future__ import annotations

from torch import Tensor

from orchestrator.actions import uniform_action
from orchestrator.methods import Method
from orchestrator.types import Action, Decision, Stage
from stages.demand import Pixels
from stages.planners import passage
from stages.planners.task import BasePlanner, Task


class UniformPlanner(BasePlanner):
    """``temporal-only`` and ``spatial-only`` at the density nearest the budget; ``fixed`` at the configured ratio.

    Raises ValueError for a budget that is missing, idle or out of reach.
    """

    def __init__(self, task: Task, name: str, budget: float | None) -> None:
        self.task = task
        self.action = uniform_action(name, task.geometry, task.shape, task.num_steps, budget, task.config)
        self._why = f"{name}: always {self.action.name}, density {self.action.density:.3f}"

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None = None, pixels: Pixels | None = None) -> Decision:
        return Decision(self.action, self._why)

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        return passage.carry(x0, action, stage_index, sigma, seed, self.task.config)


WHAT = {
    "temporal-only": "every stage but the last on fewer frames, at one density",
    "spatial-only": "every stage but the last on less height and width, at one density",
    "fixed": "every stage but the last at fixed shares of height, width and frames",
}
METHODS = {
    name: Method(
        name, "planner", "grid", "DVG's ablations, arXiv 2605.21042, table 4", what, "paper",
        make=lambda settings, task, budget, name=name: UniformPlanner(task, name, budget),
    )
    for name, what in WHAT.items()
}  # fmt: skip
