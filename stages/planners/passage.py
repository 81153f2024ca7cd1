"""From one grid to the next: resize, smooth, re-noise (DVG's equations 11 to 14, arXiv 2605.21042), and the first noise."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Action, Grid
from stages.noise import coordinate_noise, derive_seed
from stages.resize import Axes, nested_axes, resize, smooth
from stages.sampling import initial_noise


def carry(x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int, config: DvgConfig) -> Tensor:
    """The clean latent of stage ``stage_index`` on the next stage's grid, at its level ``sigma``.

    Smoothed on entering the second stage only. ``seed`` is the item's.
    """
    axes = nested_axes(tuple(stage.grid for stage in action.stages))
    target = axes[stage_index + 1]
    y = resize(x0.float(), axes[stage_index], target, config.resize)
    if stage_index == 0:
        y = smooth(y, config.smoothing, config.smoothing_padding)
    if config.renoise == "random":
        noise = _fresh(y, stage_index, seed, config)
    else:
        noise = field(target, action.stages[-1].grid, y.shape[1], seed, y.device, config)
    return (1 - sigma) * y + sigma * noise


def _fresh(y: Tensor, stage_index: int, seed: int, config: DvgConfig) -> Tensor:
    generator = torch.Generator().manual_seed(derive_seed(_noise_seed(seed, config) + stage_index))
    return torch.randn(y.shape, generator=generator).to(y.device)


def _noise_seed(seed: int, config: DvgConfig) -> int:
    return derive_seed(seed) if config.noise_seed is None else config.noise_seed


def field(axes: Axes, full_grid: Grid, num_channels: int, seed: int, device: torch.device, config: DvgConfig) -> Tensor:
    """The noise [1, C, T, H, W] of the final-grid cells ``axes``: one field a seed, whatever the stage."""
    if config.noise_field == "hash":
        return coordinate_noise(axes, num_channels, _noise_seed(seed, config), device, config.noise_hash)
    t, h, w = (torch.tensor(axis) for axis in axes)
    whole = initial_noise(full_grid, num_channels, seed if config.noise_seed is None else config.noise_seed)
    return whole[:, :, t[:, None, None], h[:, None], w].to(device)


def first_noise(axes: Axes, full_grid: Grid, num_channels: int, seed: int, config: DvgConfig) -> Tensor:
    """Pure noise [1, C, T, H, W] on the first stage's cells, on the CPU."""
    if config.initial_noise == "coordinate":
        return field(axes, full_grid, num_channels, seed, torch.device("cpu"), config)
    t, h, w = axes
    return initial_noise((len(t), len(h), len(w)), num_channels, seed)
