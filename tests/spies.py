"""A model and a planner that write down what they are asked, for tests of the engine. No weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.types import Action, Decision, Demand, Stage, VideoShape
from parallel.layout import Layout
from parallel.seam import Exchange
from stages.accelerators.base import Boost
from stages.demand import Pixels
from stages.models.base import Branch, Condition, ImageMode, Placed, Request
from stages.planners.task import BasePlanner, Task
from stages.resize import Axes
from stages.sampling import NoiseLevel

STAGES = (Stage((2, 4, 4), 8, 3.0), Stage((3, 6, 6), 7, 5.0), Stage((3, 8, 8), 6, 7.0), Stage((5, 8, 8), 9, 7.0))
CONDITION = Condition(
    Branch({"tokens": torch.randn(1, 3, 4)}, num_pads=509), Branch({"tokens": torch.randn(1, 1, 4)}, num_pads=511), 2.0
)


class SpyModel:
    """Its velocity is a smooth function of x and sigma. With an image it pins the first frame, as TI2V models do."""

    def __init__(self, name: str = "wan-mini", break_at_call: int = -1) -> None:
        self.geometry = geometry_of(name)
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.levels: list[NoiseLevel] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.placed: list[tuple[Axes, ImageMode]] = []
        self.num_starts = 0
        self.boosts: list[Boost | None] = []
        self.break_at_call = break_at_call

    @property
    def grids(self) -> list[tuple[int, ...]]:
        return [tuple(x.shape[2:]) for x, _ in self.outputs]

    def attach(self, layout: Layout | None, exchange: Exchange | None) -> None:
        """It does all of a clip on every rank."""

    @property
    def attached(self) -> tuple[Layout | None, Exchange | None]:
        return None, None

    def accelerate(self, boost: Boost | None) -> None:
        self.boosts.append(boost)

    def encode(self, request: Request) -> Condition:
        return CONDITION

    def place(self, condition: Condition, axes: Axes, mode: ImageMode) -> Placed:
        self.placed.append((axes, mode))
        if condition.latent is None:
            return Placed(condition)
        rows, columns = (torch.tensor(axis) for axis in axes[1:])
        return Placed(condition, pinned=condition.latent[:, :, :1, rows[:, None], columns])

    def start(self, noise: Tensor, placed: Placed) -> Tensor:
        self.num_starts += 1
        return noise

    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        self.levels.append(level)
        v = torch.cos(x + level.sigma) if len(self.levels) != self.break_at_call else x / 0
        self.outputs.append((x, v))
        return v

    def pixels(self, latent: Tensor) -> Tensor:
        raise AssertionError("the latent is measured as it is: nothing asked for pixels")

    def decode(self, latent: Tensor) -> Iterator[np.ndarray[Any, np.dtype[np.uint8]]]:
        yield np.zeros((1, 16, 16, 3), np.uint8)


class SpyPlanner(BasePlanner):
    """Plans ``stages``; carries by nearest resize and constant noise, and writes down what it was given."""

    def __init__(self, stages: tuple[Stage, ...] = STAGES, solver: Any = "euler", name: str = "wan-mini", **knobs: Any) -> None:
        self.action = Action("spy", stages, 0.5)
        t, h, w = stages[-1].grid
        geometry = geometry_of(name)
        shape = VideoShape(4 * (t - 1) + 1, h * geometry.vae_stride[1], w * geometry.vae_stride[2])
        self.task = Task(geometry, shape, sum(stage.steps for stage in stages), DvgConfig(**knobs), solver)
        self.decided_on: list[Tensor | None] = []
        self.carried: list[tuple[Tensor, int, float, int]] = []

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        self.decided_on.append(x0)
        return Decision(self.action, "because", Demand(0.25, 0.75), (0.4, 0.6))

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        self.carried.append((x0, stage_index, sigma, seed))
        return (1 - sigma) * F.interpolate(x0, size=action.stages[stage_index + 1].grid) + sigma
