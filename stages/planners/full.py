"""The plain run: every step on the full grid."""

from __future__ import annotations

from torch import Tensor

from orchestrator.actions import full_action
from orchestrator.methods import Method
from orchestrator.types import Action, Decision, Stage
from stages.demand import Pixels
from stages.planners.task import BasePlanner, Task


class FullPlanner(BasePlanner):
    """One stage, so there is nothing to decide and nothing to carry over."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.action = full_action(task.geometry, task.shape, task.num_steps)

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None = None, pixels: Pixels | None = None) -> Decision:
        return Decision(self.action, "full grid at every step")

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        raise RuntimeError(f"a full run has one stage, so stage {stage_index} of {action.name!r} has no successor")


METHODS = {
    "full": Method(
        "full", "planner", "grid", "the stock pipeline", "every step on the full grid", "release",
        make=lambda settings, task, budget: FullPlanner(task),
    )
}  # fmt: skip
