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
    """Noise levels ``[num_steps + 1]`` of diffusers' ``FlowMatchEulerDiscreteScheduler``; the last one is 0.

    It spreads its steps down to a level near 0 before the shift, where DVG's release and Wan's UniPC stop at
    ``1 / num_steps``: 0.001 to 0.014 apart at the transitions of 50 steps, more in the last ones.
    """
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    levels: Tensor = scheduler.sigmas
    return levels


def initial_noise(grid: Grid, num_channels: int, seed: int) -> Tensor:
    """The noise that the stock pipeline draws from ``torch.Generator().manual_seed(seed)``, on the CPU.

    That generator heeds the low 32 bits of a seed only.
    """
    return torch.randn((1, num_channels, *grid), generator=torch.Generator().manual_seed(seed))


def euler_step(x: Tensor, v: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of dx/dsigma = v."""
    return x + (sigma_next - sigma) * v


def clean_estimate(x: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """One-step extrapolation to sigma = 0, by the sigma of the schedule under which ``v`` was computed (DVG 3.2)."""
    return x - sigma * v
