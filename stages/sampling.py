"""Rectified-flow sampling: x_sigma = (1 - sigma) x0 + sigma eps, and the network returns v = eps - x0.

All tensors are float32 latents ``[1, C, T, H, W]``; sigma falls from 1 (noise) to 0 (clean).
"""

from __future__ import annotations

import functools

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from orchestrator.types import Grid


@functools.lru_cache(maxsize=64)
def sigmas(num_steps: int, shift: float) -> Tensor:
    """Noise levels ``[num_steps + 1]`` of the stock scheduler of this shift; the last one is 0."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    levels: Tensor = scheduler.sigmas
    return levels


def initial_noise(grid: Grid, num_channels: int, seed: int) -> Tensor:
    """The noise that the stock pipeline draws from ``torch.Generator().manual_seed(seed)``, on the CPU."""
    return torch.randn((1, num_channels, *grid), generator=torch.Generator().manual_seed(seed))


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of dx/dsigma = v."""
    return x + (sigma_next - sigma) * v


def clean_estimate(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """One-step extrapolation to sigma = 0, by the sigma of the schedule under which ``v`` was computed (DVG 3.2)."""
    return x - sigma * v
