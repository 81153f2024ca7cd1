"""From what an arm says of its budget to numbers: what the run is predicted to cost, and the density that fixes stage 1."""

from __future__ import annotations

import pathlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from orchestrator.actions import uniform_action
from orchestrator.arms import Arm
from orchestrator.budgets import Target, actions_for, density_for, parse_target, uniform_density_for
from orchestrator.calibration import cost_model
from orchestrator.cost import CostModel
from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import BUDGETED
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import VideoShape

DEFAULT = Target(value=0.5)


@dataclass(frozen=True)
class Budgeting:
    """The budget part of an arm: see the fields of ``orchestrator.arms.Arm``."""

    budget: float | None
    target: Target | None
    cost: CostModel


@dataclass(frozen=True)
class Run:
    """What a budget is for: the run without it."""

    planner: str
    geometry: ModelGeometry
    shape: VideoShape
    num_steps: int
    guidance: float
    config: DvgConfig


def idle_budget(planner: str, budget: Any) -> str:
    """Why a budget says nothing under the planner that it was given for; empty if it does, or there is none."""
    return (
        "" if budget is None or planner in BUDGETED else f"budget: planner {planner} spends what it spends; drop one of the two"
    )


def resolve_budget(run: Run, settings: Mapping[str, Any]) -> Budgeting:
    """Reads ``budget``, ``calibration`` and ``device_name`` of the settings. An inherited budget is idle under some planners.

    Raises ValueError for a bad calibration file, and for a budget that no schedule meets: it is refused before the sketch.
    """
    cost = cost_of(run, settings)
    given = settings.get("budget")
    if run.planner not in BUDGETED:
        return Budgeting(None, None, cost)
    target = DEFAULT if given is None else parse_target(given)
    budget = _density(run, target, cost)
    return Budgeting(budget, None if target.kind == "density" else target, cost)


def cost_of(run: Run, settings: Mapping[str, Any]) -> CostModel:
    """From the calibration file named, or the one found for the device, or the roofline. Raises ValueError for a bad file."""
    file = settings.get("calibration")
    return cost_model(run.geometry, run.shape, run.guidance, settings.get("device_name"), pathlib.Path(file) if file else None)


def _density(run: Run, target: Target, cost: CostModel) -> float:
    """The density that gives the target, checked to be feasible."""
    task = (run.geometry, run.shape, run.num_steps)
    if run.planner == "dvg":
        actions_for(*task, target, run.config, cost)
        return density_for(*task, target, run.config, cost)
    if target.kind != "density":
        return uniform_density_for(run.planner, *task, target, run.config, cost)
    uniform_action(run.planner, *task, target.value, run.config)
    return target.value


def device_mistakes(arms: Iterable[Arm], on_gpu: bool) -> list[str]:
    """Cost budgets whose cost was predicted for this machine's CPU though the workers have GPUs."""
    return [
        f"arm {arm.name}: {arm.target} is to be met on GPUs, and this machine has none to predict for; set device_name "
        "(for example NVIDIA H200) or calibration"
        for arm in arms
        if on_gpu and arm.target and arm.cost and arm.cost.device.startswith("CPU")
    ]
