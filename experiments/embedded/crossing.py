"""What a latent looks like after one of DVG's transitions, and the straight way from there to the clean latent.

A clean estimate of a small grid, resized and re-noised, is no noised latent of the larger grid: its textures have another
period and its moving things are blends of two frames. Real models have seen blurred and ghosted video; this one has seen sharp
renders only, unless these are mixed in. Every way of resizing is as likely, so that no variant of DVG is favoured.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import get_args

import torch
from torch import Tensor

from experiments.embedded.latents import CROSSINGS, Grids
from experiments.embedded.sampling import SHIFT
from orchestrator.dvg_config import ResizeMode
from orchestrator.types import Grid
from stages.resize import nested_axes, resize, smooth

RATES = (0.28, 0.50, 0.72)
RISING = (7 / 7, 9 / 7, 11 / 7, 11 / 7)
JITTER, RISING_SHARE, SMOOTHED_SHARE, SMOOTHING = 0.06, 0.25, 0.5, 0.3
STEPS = (1 / 50, 1 / 12)

#: clean estimate [B, C, T, H, W] of a noised latent at levels [B]
Estimate = Callable[[Tensor, Tensor], Tensor]


def crossing_of(grids: Grids) -> int:
    """0 for the transition into stage 2, 1 into stage 3, 2 onto the full grid."""
    return next(index for index, group in enumerate(CROSSINGS) if grids in group)


def levels(crossing: int, number: int, device: str) -> tuple[Tensor, Tensor, Tensor]:
    """Noise levels [B]: of the last step before the transition, right after it, and anywhere until the next one."""
    done = RATES[crossing] + JITTER * (2 * torch.rand(number, device=device) - 1)
    step = STEPS[0] + (STEPS[1] - STEPS[0]) * torch.rand(number, device=device).square()
    rising = torch.rand(number, device=device) < RISING_SHARE
    before, after = (torch.where(rising, SHIFT * RISING[crossing + i], SHIFT) for i in (0, 1))
    start = _shifted(1 - done - step, after)
    following = RATES[crossing + 1] - RATES[crossing] if crossing + 1 < len(RATES) else 1.0
    end = _shifted((1 - done - following).clamp_min(0), after)
    now = start - (start - end) * torch.rand(number, device=device).pow(1.5)
    return _shifted(1 - done, before), start, now


def _shifted(level: Tensor, shift: Tensor) -> Tensor:
    return shift * level / (1 + (shift - 1) * level)


def cross(source: Tensor, target: Tensor, crossing: int, estimate: Estimate) -> tuple[Tensor, Tensor, Tensor]:
    """A latent on its way from a transition to the clean ``target``, its level [B], and its velocity."""
    before, start, now = levels(crossing, len(target), str(target.device))
    noise, level = torch.randn_like(source), _wide(before)
    seen = estimate((1 - level) * source + level * noise, before)
    small, large = nested_axes((_grid(source), _grid(target)))
    y = resize(seen, small, large, random.choice(get_args(ResizeMode)))
    if crossing == 0 and random.random() < SMOOTHED_SHARE:
        y = smooth(y, SMOOTHING, "replicate")
    x = (1 - _wide(start)) * y + _wide(start) * torch.randn_like(y)
    velocity = (x - target) / _wide(start)
    return target + _wide(now) * velocity, now, velocity


def _grid(latent: Tensor) -> Grid:
    frames, height, width = latent.shape[2:]
    return frames, height, width


def _wide(level: Tensor) -> Tensor:
    return level.view(-1, 1, 1, 1, 1)
