"""Fewer steps: the plain run with a share of its solver steps, which every published comparison has a row of."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field
from torch import Tensor

from orchestrator.actions import full_action
from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import require_steps
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
    """Of the arm's ``steps``, which stay what density and speedup are counted against: 0.22 is 11 of 50. A step-distilled
    model has to be told one of the two."""


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
    require_steps(num_steps, full_steps)
    return replace(full_action(geometry, shape, num_steps), name=f"steps-{num_steps}", density=num_steps / full_steps)


def resolve(settings: FewerStepsSettings, request: Request) -> FewerStepsSettings:
    """With steps. Raises ValueError for a step-distilled model unless the setting is the user's own."""
    num_steps = num_steps_of(settings, request.num_steps)
    if request.geometry.meanflow and not settings.model_fields_set & {"steps", "share"}:
        raise ValueError(
            f"{request.geometry.name} is distilled to few steps, and a share of {settings.share:g} would leave {num_steps} of "
            f"{request.num_steps}: say how many by steps or share, or take planner full"
        )
    return settings.model_copy(update={"steps": num_steps})


def actions(settings: FewerStepsSettings, request: Request) -> tuple[Action, ...]:
    return (schedule(settings, request.geometry, request.shape, request.num_steps),)


METHODS = {
    "fewer-steps": Method(
        "fewer-steps", "planner", "steps", "the stock pipeline with fewer steps", "the plain run with a share of its steps",
        "release",
        make=lambda settings, task, budget: FewerStepsPlanner(task, settings),
        settings=FewerStepsSettings,
        resolve=resolve, knobs=("image_condition", "initial_noise"),
        mistakes=refused(actions), actions=actions,
    )
}  # fmt: skip
