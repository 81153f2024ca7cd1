"""What a planner is: the policy of a run that changes its grid on the way."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from orchestrator.actions import DvgConfig
from orchestrator.geometry import ModelGeometry
from orchestrator.types import Action, Decision, Stage, VideoShape
from stages.demand import Pixels
from stages.planners.dvg import DvgPlanner
from stages.planners.full import FullPlanner

PLANNERS = ("full", "dvg")


class Planner(Protocol):
    """Stages and the passage between them; the engine that runs them is the same for every planner."""

    num_steps: int

    def first(self) -> Stage:
        """The stage every run starts with. It is the whole run when it has all ``num_steps``."""

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        """The whole schedule, given the first stage's clean latent [1, C, T, H, W]; None if there is one stage only.

        ``pixels`` decodes a latent to video [1, 3, F, H, W] in [-1, 1]; only a planner that looks at pixels calls it.
        """

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        """The clean latent of stage ``stage_index`` -> the noisy latent [1, C, T, H, W], float32, on the next stage's grid.

        ``sigma`` is the next step's level on the next stage's schedule; ``seed`` is the item's.
        """


def make_planner(
    name: str,
    geometry: ModelGeometry,
    shape: VideoShape,
    num_steps: int,
    budget: float | None,
    config: DvgConfig,
) -> Planner:
    """A planner by name. Raises ValueError for an unknown name, an illegal shape or a missing or infeasible budget."""
    if name == "full":
        return FullPlanner(geometry, shape, num_steps)
    if name == "dvg":
        if budget is None:
            raise ValueError("planner dvg needs a budget, above 0 and at most 1")
        return DvgPlanner(geometry, shape, num_steps, budget, config)
    raise ValueError(f"planner {name!r} is not known. Choices: {', '.join(PLANNERS)}")
