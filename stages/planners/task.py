"""What a planner is: the policy of a run that changes its grid on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import ModelGeometry, SolverName
from orchestrator.types import Action, Decision, Grid, Stage, VideoShape
from stages.accelerators.base import Accelerator
from stages.demand import Pixels
from stages.mixed import Mixed
from stages.models.base import Model, Positions
from stages.planners.passage import first_noise
from stages.resize import Axes, nested_axes
from stages.sampling import Solver, make_solver

if TYPE_CHECKING:
    from stages.denoise import Boundary, OnStep


@dataclass(frozen=True)
class Task:
    """What is planned for: one model and shape, one number of steps, every knob."""

    geometry: ModelGeometry
    shape: VideoShape
    num_steps: int
    config: DvgConfig
    solver_name: SolverName | None = None
    """None: the solver that the checkpoint ships with."""
    accelerators: tuple[Callable[[], Accelerator], ...] = ()
    """What makes the steps on a grid cheaper: made anew for every stage, so that nothing of one is left in the next."""

    @property
    def full_grid(self) -> Grid:
        return self.geometry.latent_grid(self.shape)

    def solver(self, stage: Stage) -> Solver:
        """A solver for one stage, without history, on that stage's schedule."""
        name = self.solver_name or self.geometry.solver
        return make_solver(name, self.num_steps, stage.shift, self.geometry.level_spacing)


@dataclass(frozen=True, eq=False)
class Crossing:
    """A clip on its way from stage ``stage_index`` (0 is the first) to the next, for planners with a passage of their own."""

    decision: Decision
    stage_index: int
    sigma: float
    """The level to come back to: of the next step, unless the planner says otherwise."""
    seed: int
    """The item's."""
    model: Model
    velocity: Tensor
    """Of the transition's forward, on the grid that is left: with the clean estimate it tells the noise in the latent."""
    pixels: Pixels
    """What the planner decided by, so that a clean estimate is decoded once."""
    onward: Callable[[], Tensor]
    """Where the solver's own step would have led: for a planner that finds nothing to change."""
    recent: tuple[Tensor, ...] = ()
    """The clean estimates of the stage's last steps, ``x0`` the last of them; as many as the planner ``remembers``."""
    mixed: Mixed | None = None
    """The tokens of the stage that is left, if they are of two grids."""

    @property
    def action(self) -> Action:
        return self.decision.action


class Leg(Protocol):
    """One stage of a clip."""

    def run(self) -> Boundary:
        """The boundary at its end, the same on every rank of the slice."""
        ...


class Planner(Protocol):
    """Stages and the passage between them; the engine that runs them is the same for every planner.

    :class:`BasePlanner` has all but the first three.
    """

    task: Task
    needs_sketch: bool
    """False: the schedule is known without a first stage, which runs where the others do (``Action.needs_sketch``)."""
    remembers: int
    """Clean estimates of a stage's last steps that :meth:`cross` is to be given."""

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

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        """As ``carry``, with the model and the whole decision at hand; it is what the engine calls."""
        ...

    def clean_sigma(self, step: int, stage_index: int, here: Solver) -> float:
        """The level that the clean estimate of transition step ``step`` out of stage ``stage_index`` goes by.

        ``here`` is on the schedule of the stage that ends.
        """
        ...

    def sigma_after(self, step: int, here: Solver, there: Solver) -> float:
        """The level to come back to; ``there`` is on the schedule of the stage that begins, with step ``step + 1``."""
        ...

    def look(self, model: Model) -> Pixels:
        """What decodes a clean estimate for :meth:`decide`."""
        ...

    def positions(self, decision: Decision | None, stage_index: int) -> Positions | None:
        """Where a stage's latent frames are, for layers that are to go by that; None: all count them from 0."""
        ...

    def mixture(self, x: Tensor, stage_index: int) -> Mixed | None:
        """The tokens of a stage that begins with ``x``, where they are of two grids at once; None: of one."""
        ...

    def noise(self, axes: Axes, seed: int) -> Tensor:
        """Pure noise ``[1, C, T, H, W]`` on the first stage's cells, on the CPU. ``seed`` is the item's."""
        ...

    def leg(self, model: Model, boundary: Boundary, on_step: OnStep) -> Leg | None:
        """The stage that begins at ``boundary``, for a planner that runs it in its own way; None: the engine does."""
        ...

    def axes(self, stages: Sequence[Stage], decision: Decision | None) -> tuple[Axes, ...]:
        """For every stage the cells of the final grid that it is on. Without a decision there is one stage, the first."""
        ...


class BasePlanner:
    """What planners do alike unless they say otherwise: DVG's levels and nested cells."""

    task: Task
    needs_sketch = True
    remembers = 0

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        raise RuntimeError(f"{type(self).__name__} has no passage out of stage {stage_index + 1} of {action.name!r}")

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        return self.carry(x0, crossing.action, crossing.stage_index, crossing.sigma, crossing.seed)

    def clean_sigma(self, step: int, stage_index: int, here: Solver) -> float:
        return here.levels[step].sigma

    def sigma_after(self, step: int, here: Solver, there: Solver) -> float:
        return there.levels[step + 1].sigma

    def look(self, model: Model) -> Pixels:
        return model.pixels

    def positions(self, decision: Decision | None, stage_index: int) -> Positions | None:
        return None

    def mixture(self, x: Tensor, stage_index: int) -> Mixed | None:
        return None

    def noise(self, axes: Axes, seed: int) -> Tensor:
        return first_noise(axes, self.task.full_grid, self.task.geometry.latent_channels, seed, self.task.config)

    def leg(self, model: Model, boundary: Boundary, on_step: OnStep) -> Leg | None:
        return None

    def axes(self, stages: Sequence[Stage], decision: Decision | None) -> tuple[Axes, ...]:
        """Until the plan is known the first stage's cells are nested in the full grid itself."""
        grids = tuple(stage.grid for stage in stages)
        return nested_axes(grids if decision else (*grids, self.task.full_grid))
