"""The one transition engine: stages of solver steps on growing grids, whatever the planner (DVG, arXiv 2605.21042, sec. 3).

The last forward of a stage runs on the stage's grid, but its solver step is replaced by a transition: one-step clean
estimate, resize and re-noising at the next step's level on the next stage's schedule.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrator.types import Decision, Grid, Stage
from stages.models.base import Condition, Model
from stages.planners.base import Planner
from stages.sampling import clean_estimate, euler_step, initial_noise, sigmas


@dataclass(frozen=True, eq=False)
class Boundary:
    """A clip where work is handed over: latent ``x [1, C, T, H, W]`` before solver step ``step`` of stage ``stage``.

    ``decision`` is None until the sketch has chosen. There is no other state: the solver has no history.
    """

    x: Tensor
    step: int
    stage: int
    decision: Decision | None
    condition: Condition
    seed: int

    def pack(self) -> dict[str, Any]:
        """For another process: numpy arrays, numbers and frozen values only."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {**fields, "x": self.x.cpu().numpy(), "condition": self.condition.pack()}

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Boundary:
        """Inverse of :meth:`pack`, on the CPU."""
        x = torch.from_numpy(np.array(packed["x"]))
        return Boundary(**{**packed, "x": x, "condition": Condition.unpack(packed["condition"])})


@dataclass(frozen=True)
class StepDone:
    """Told after every forward. Counting starts at 0; ``num_stages`` is 0 until the action is chosen."""

    stage: int
    num_stages: int
    step: int
    num_steps: int
    grid: Grid
    sigma: float


OnStep = Callable[[StepDone], None]


def ignore(step: StepDone) -> None:
    """The listener that does nothing."""


def start(model: Model, planner: Planner, condition: Condition, seed: int) -> Boundary:
    """Pure noise on the first stage's grid. A run of one stage is decided here: there is nothing to measure."""
    first = planner.first()
    decision = planner.decide(None) if first.steps == planner.num_steps else None
    noise = initial_noise(first.grid, model.geometry.latent_channels, seed)
    return Boundary(noise, 0, 0, decision, condition, seed)


@torch.inference_mode()
def run_stages(
    model: Model, planner: Planner, boundary: Boundary, stop: int, on_step: OnStep = ignore
) -> tuple[Boundary, dict[str, float]]:
    """Run from ``boundary`` until ``stop`` stages of the clip are done.

    Returns the next boundary and seconds by stage (``stage1_s`` is the first), each with the transition that ended it.
    Raises RuntimeError, naming stage and step, when the latent is not finite.
    """
    timings_s: dict[str, float] = {}
    while boundary.stage < stop:
        started_s = clock_s(model.device)
        boundary = _run_stage(model, planner, boundary, on_step)
        timings_s[f"stage{boundary.stage}_s"] = clock_s(model.device) - started_s
    return boundary, timings_s


def _run_stage(model: Model, planner: Planner, boundary: Boundary, on_step: OnStep) -> Boundary:
    stages = boundary.decision.action.stages if boundary.decision else (planner.first(),)
    stage = stages[boundary.stage]
    is_last = boundary.decision is not None and boundary.stage == len(stages) - 1
    end = sum(s.steps for s in stages[: boundary.stage + 1]) + (0 if is_last else 1)
    levels = sigmas(planner.num_steps, stage.shift)
    x = boundary.x.to(model.device)
    for step in range(boundary.step, end):
        v = model.denoise(x, float(levels[step]), boundary.condition)
        if step < end - 1 or is_last:
            x = euler_step(x, v, levels[step], levels[step + 1])
        else:
            boundary, x = _cross(model, planner, boundary, clean_estimate(x, v, levels[step]), step)
        _require_finite(x, stage, boundary.stage, step, planner.num_steps)
        num_stages = len(stages) if boundary.decision else 0
        on_step(StepDone(boundary.stage, num_stages, step, planner.num_steps, stage.grid, float(levels[step])))
    return dataclasses.replace(boundary, x=x, step=end, stage=boundary.stage + 1)


def _cross(model: Model, planner: Planner, boundary: Boundary, x0: Tensor, step: int) -> tuple[Boundary, Tensor]:
    """Decide if nobody has yet, then carry the clean estimate to the next grid, at the level of the next step there."""
    decision = boundary.decision or planner.decide(x0, model.pixels)
    following = decision.action.stages[boundary.stage + 1]
    sigma = float(sigmas(planner.num_steps, following.shift)[step + 1])
    x = planner.carry(x0, decision.action, boundary.stage, sigma, boundary.seed)
    return dataclasses.replace(boundary, decision=decision), x


def _require_finite(x: Tensor, stage: Stage, index: int, step: int, num_steps: int) -> None:
    if not x.isfinite().all():
        where = f"stage {index + 1} (grid {'x'.join(map(str, stage.grid))}), step {step + 1} of {num_steps}"
        raise RuntimeError(f"the latent is not finite after {where}: the weights, the guidance or the shift are at fault")


def clock_s(device: torch.device) -> float:
    """Now, once the device has done what it was asked to."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
