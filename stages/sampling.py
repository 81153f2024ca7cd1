"""Rectified-flow sampling: x_sigma = (1 - sigma) x0 + sigma eps, and the network returns v = eps - x0.

All tensors are float32 latents ``[1, C, T, H, W]``; sigma falls from 1 (noise) to 0 (clean). Levels are diffusers' own and
updates equal its solvers', so a full run takes the steps of the stock pipeline. No step waits for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
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
    """UniPC (Zhao et al. 2023, arXiv 2302.04867) as the Wan checkpoints ship it: order 2, B(h) = bh2, flow levels.

    The levels are diffusers'. The update is written out for order 2, because the stock one solves a linear system on the
    device at every step, which the host waits for. Coefficients are float32 on the CPU, as stock rounds them.
    """

    def __init__(self, num_steps: int, shift: float) -> None:
        scheduler: Any = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
        )
        scheduler.set_timesteps(num_steps)
        self.levels = _levels(scheduler.sigmas, scheduler.timesteps)
        self._sigma: Tensor = scheduler.sigmas
        self._lambda = torch.log(1 - self._sigma) - torch.log(self._sigma)
        self._clean: tuple[Tensor, ...] = ()
        self._origin: Tensor | None = None

    @property
    def num_remembered(self) -> int:
        """Clean estimates of earlier steps that the next step will use."""
        return len(self._clean)

    def step(self, x: Tensor, v: Tensor, index: int) -> Tensor:
        x0 = x - self._sigma[index] * v
        if self._origin is not None:
            x = self._correct(self._origin, x0, index)
        self._clean, self._origin = (*self._clean[-1:], x0), x
        order = min(len(self._clean), len(self.levels) - index)
        return self._move(x, index, index + 1, self._slope(index, index + 1) / 2 if order == 2 else None)

    def _correct(self, origin: Tensor, x0: Tensor, index: int) -> Tensor:
        """UniC: the last step again from where it began, now that the clean estimate at its end is known."""
        change = x0 - self._clean[-1]
        if len(self._clean) == 1:
            return self._move(origin, index - 1, index, change / 2)
        ratio = self._ratio(index - 1, index)
        hh = self._lambda[index - 1] - self._lambda[index]
        phi = torch.expm1(hh)
        first = (phi / hh - 1) / phi
        second = ((phi / hh - 1) / hh - 0.5) * 2 / phi
        weight = (first - second) / (1 - ratio)
        return self._move(origin, index - 1, index, weight * self._slope(index - 1, index) + (first - weight) * change)

    def _ratio(self, start: int, end: int) -> Tensor:
        """The step before, in units of the step from ``start`` to ``end``; negative."""
        return (self._lambda[start - 1] - self._lambda[start]) / (self._lambda[end] - self._lambda[start])

    def _slope(self, start: int, end: int) -> Tensor:
        """Change of the clean estimate over one such step, from the last two."""
        return (self._clean[-2] - self._clean[-1]) / self._ratio(start, end)

    def _move(self, x: Tensor, start: int, end: int, correction: Tensor | None) -> Tensor:
        """From ``x`` at level ``start`` to level ``end`` along the last clean estimate, ``correction`` added to it."""
        phi = torch.expm1(self._lambda[start] - self._lambda[end])
        clean = self._clean[-1] if correction is None else self._clean[-1] + correction
        return self._sigma[end] / self._sigma[start] * x - (1 - self._sigma[end]) * phi * clean


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


def clean_estimate(x: Tensor, v: Tensor, sigma: float, extrapolation: float = 1.0) -> Tensor:
    """One-step extrapolation to sigma = 0, by the sigma of the schedule under which ``v`` was computed (DVG 3.2).

    ``extrapolation`` below 1 goes that share of the way only.
    """
    return x - extrapolation * sigma * v


def nearest_sigma(levels: Sequence[NoiseLevel], timestep: float) -> float:
    """The noise level of a schedule whose timestep is nearest; the earlier of two."""
    return min(levels, key=lambda level: abs(level.timestep - timestep)).sigma
