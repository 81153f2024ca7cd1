"""DVG: a sketch on a small grid, then the schedule that its content asks for (arXiv 2605.21042)."""

from __future__ import annotations

from torch import Tensor

from orchestrator.budgets import Target, actions_for
from orchestrator.cost import CostModel
from orchestrator.matching import decide
from orchestrator.methods import Method
from orchestrator.types import Action, Decision, Stage
from stages.demand import Pixels, brightness, measure
from stages.planners import passage
from stages.planners.task import BasePlanner, Task


class DvgPlanner(BasePlanner):
    """One video's plan at one budget. Raises InfeasibleBudget or InfeasibleTarget at construction, before any work is done."""

    def __init__(self, task: Task, target: Target, cost: CostModel | None = None) -> None:
        self.task, self.config = task, task.config
        self._first, self.actions = actions_for(task.geometry, task.shape, task.num_steps, target, task.config, cost)

    def first(self) -> Stage:
        return self._first

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        """The action for a sketch's clean latent [1, C, T, H, W] (eqs. 3 to 10)."""
        only = self.actions[0]
        if len(only.stages) == 1:
            return Decision(only, "one stage: the full grid at every step")
        if x0 is None:
            raise ValueError("dvg decides on the clean latent of the sketch, and was given none")
        return decide(self.actions, measure(self._seen(x0, pixels), self.config), self.config)

    def _seen(self, x0: Tensor, pixels: Pixels | None) -> Tensor:
        """What the demands are measured on."""
        if self.config.demand_space == "latent":
            return x0
        if pixels is None:
            raise ValueError("demand_space is pixels, and nothing was given to decode the sketch with")
        return brightness(pixels(x0))

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        return passage.carry(x0, action, stage_index, sigma, seed, self.config)


METHODS = {
    "dvg": Method(
        "dvg", "planner", "grid", "DVG, arXiv 2605.21042",
        "a sketch on a small grid, then the grids that its content asks for", "release",
        make=lambda settings, task, budget: DvgPlanner(task, Target(value=budget)),
        needs="settings: the key dvg and a budget",
    )
}  # fmt: skip
