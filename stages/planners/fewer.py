"""Fewer steps: the plain run with a share of its solver steps, which every published comparison has a row of."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from orchestrator.actions import full_action
from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Action, Decision, VideoShape
from stages.demand import Pixels
from stages.planners.full import FullPlanner
from stages.planners.scheduled import refused
from stages.planners.task import Task


class FewerStepsSettings(Settings):
    """How many."""

    steps: int | None = Field(None, ge=1)
    """Solver steps of the clip; none given: ``share`` of the arm's."""
    share: float = Field(0.22, gt=0, le=1)
    """Of the arm's ``steps``, which stay what density and speedup are counted against: 0.22 is 11 of 50."""


class FewerStepsPlanner(FullPlanner):
    """The plain run on a shorter schedule."""

    def __init__(self, task: Task, settings: FewerStepsSettings) -> None:
        num_steps = num_steps_of(settings, task.num_steps)
        super().__init__(replace(task, num_steps=num_steps))
        self.action = schedule(settings, task.geometry, task.shape, task.num_steps)
        self._why = f"{num_steps} of {task.num_steps} steps, all on the full grid"

    def decide(self, x0: Tensor | None = None, pixels: Pixels | None = None) -> Decision:
        return Decision(self.action, self._why)


def num_steps_of(settings: FewerStepsSettings, full_steps: int) -> int:
    return settings.steps or max(1, round(full_steps * settings.share))


def schedule(settings: FewerStepsSettings, geometry: ModelGeometry, shape: VideoShape, full_steps: int) -> Action:
    """Raises ValueError for more steps than the full run has."""
    num_steps = num_steps_of(settings, full_steps)
    if num_steps > full_steps:
        raise ValueError(f"steps is {num_steps}, and the arm's steps are {full_steps}: take at most those, or raise the arm's")
    return replace(full_action(geometry, shape, num_steps), name=f"steps-{num_steps}", density=num_steps / full_steps)


def actions(settings: FewerStepsSettings, request: Request) -> tuple[Action, ...]:
    return (schedule(settings, request.geometry, request.shape, request.num_steps),)


METHODS = {
    "fewer-steps": Method(
        "fewer-steps", "planner", "steps", "the stock pipeline with fewer steps", "the plain run with a share of its steps",
        "release",
        make=lambda settings, task, budget: FewerStepsPlanner(task, settings),
        settings=FewerStepsSettings,
        resolve=lambda settings, request: settings.model_copy(update={"steps": num_steps_of(settings, request.num_steps)}),
        mistakes=refused(actions), actions=actions,
    )
}  # fmt: skip
