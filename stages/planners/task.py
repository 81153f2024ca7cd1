"""What a planner is: the policy of a run that changes its grid on the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import ModelGeometry, SolverName
from orchestrator.types import Action, Decision, Grid, Stage, VideoShape
from stages.demand import Pixels
from stages.sampling import Solver, make_solver


@dataclass(frozen=True)
class Task:
    """What is planned for: one model and shape, one number of steps, every knob."""

    geometry: ModelGeometry
    shape: VideoShape
    num_steps: int
    config: DvgConfig
    solver_name: SolverName | None = None
    """None: the solver that the checkpoint ships with."""

    @property
    def full_grid(self) -> Grid:
        return self.geometry.latent_grid(self.shape)

    def solver(self, stage: Stage) -> Solver:
        """A solver for one stage, without history, on that stage's schedule."""
        name = self.solver_name or self.geometry.solver
        return make_solver(name, self.num_steps, stage.shift, self.geometry.level_spacing)


class Planner(Protocol):
    """Stages and the passage between them; the engine that runs them is the same for every planner."""

    task: Task

    def first(self) -> Stage:
        """The stage every run starts with. It is the whole run when it has all steps."""
        ...

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        """The whole schedule, given the first stage's clean latent [1, C, T, H, W]; None if there is one stage only.

        ``pixels`` decodes a latent to video [1, 3, F, H, W] in [-1, 1]; only a planner that looks at pixels calls it.
        """
        ...

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        """The clean latent of stage ``stage_index`` -> the noisy latent [1, C, T, H, W], float32, on the next stage's grid.

        ``sigma`` is the next step's level on the next stage's schedule; ``seed`` is the item's.
        """
        ...
