"""Rectified-flow sampling: x_sigma = (1 - sigma) x0 + sigma eps, and the network returns v = eps - x0.

All tensors are float32 latents ``[1, C, T, H, W]``; sigma falls from 1 (noise) to 0 (clean). The solvers are diffusers' own,
so a full run takes the steps of the stock pipeline.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from torch import Tensor

from orchestrator.geometry import LevelSpacing, SolverName
from orchestrator.types import Grid


@dataclass(frozen=True)
class NoiseLevel:
    """Where a step starts, in numbers that live on the host."""

    sigma: float
    timestep: float
    """What the network is told: 1000 sigma, as the solver rounds it."""
    timestep_next: float
    """The next step's timestep; 0 at the last step."""


class Solver(Protocol):
    """Steps along one schedule. It may keep history, so make one per stage: a history never crosses a grid."""

    levels: tuple[NoiseLevel, ...]
    """One per step; the sigma after the last is 0."""

    def step(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        """From level ``index`` to the next, given the velocity there."""
        ...


class EulerSolver:
    """One Euler step of dx/dsigma = v, on the levels of ``FlowMatchEulerDiscreteScheduler``."""

    def __init__(self, num_steps: int, shift: float, spacing: LevelSpacing) -> None:
        self.sigmas = sigmas(num_steps, shift, spacing)
        self.levels = _levels(self.sigmas, self.sigmas[:-1] * 1000)

    def step(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        return x + float(self.sigmas[index + 1] - self.sigmas[index]) * v


class UniPCSolver:
    """UniPC (Zhao et al. 2023) with the settings that the Wan checkpoints ship: order 2, B(h) = bh2, flow levels."""

    def __init__(self, num_steps: int, shift: float) -> None:
        self._scheduler: Any = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        )
        self._scheduler.set_timesteps(num_steps)
        self.levels = _levels(self._scheduler.sigmas, self._scheduler.timesteps)

    def step(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        if self._scheduler.step_index is None:
            self._scheduler.set_begin_index(index)
        x_next: Tensor = self._scheduler.step(v, self._scheduler.timesteps[index], x, return_dict=False)[0]
        return x_next


def make_solver(name: SolverName, num_steps: int, shift: float, spacing: LevelSpacing = "training") -> Solver:
    """A fresh solver without history. ``spacing`` matters to Euler's levels only. Raises ValueError for an unknown name."""
    if name == "euler":
        return EulerSolver(num_steps, shift, spacing)
    if name == "unipc":
        return UniPCSolver(num_steps, shift)
    raise ValueError(f"solver {name!r} is not known. Choices: euler, unipc")


def _levels(levels: Tensor, timesteps: Tensor) -> tuple[NoiseLevel, ...]:
    steps = [float(t) for t in timesteps]
    return tuple(NoiseLevel(float(s), t, after) for s, t, after in zip(levels, steps, [*steps[1:], 0.0], strict=False))


@functools.lru_cache(maxsize=64)
def sigmas(num_steps: int, shift: float, spacing: LevelSpacing = "training") -> Tensor:
    """Noise levels ``[num_steps + 1]`` of diffusers' ``FlowMatchEulerDiscreteScheduler``; the last one is 0.

    ``training`` spreads the steps down to a level near 0 before the shift, as the scheduler does unasked; ``uniform`` stops at
    ``1 / num_steps``, as HunyuanVideo's pipelines and DVG's release do.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    if spacing == "uniform":
        scheduler.set_timesteps(sigmas=list(np.linspace(1.0, 0.0, num_steps + 1)[:-1]))
    else:
        scheduler.set_timesteps(num_steps)
    levels: Tensor = scheduler.sigmas
    return levels


def initial_noise(grid: Grid, num_channels: int, seed: int) -> Tensor:
    """The noise that the stock pipeline draws from ``torch.Generator().manual_seed(seed)``, on the CPU.

    That generator heeds the low 32 bits of a seed only.
    """
    return torch.randn((1, num_channels, *grid), generator=torch.Generator().manual_seed(seed))


def clean_estimate(x: Tensor, v: Tensor, sigma: float) -> Tensor:
    """One-step extrapolation to sigma = 0, by the sigma of the schedule under which ``v`` was computed (DVG 3.2)."""
    return x - sigma * v
