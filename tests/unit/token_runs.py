"""Methods that choose tokens, on tiny models: forwards of a few steps, told back as the engine does."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.base import Boost, Now, StageEvent
from stages.models.base import Placed
from stages.sampling import NoiseLevel
from tests.unit.test_trunk import noise, placed, resident

GRID: Grid = (3, 4, 6)
FAMILIES = ("wan-mini", "wan2.1-i2v-14b", "wan2.2-ti2v-5b", "hunyuanvideo", "hunyuanvideo-i2v", "hunyuanvideo-1.5")
STILL = NoiseLevel(0.5, 500.0, 500.0)
READS = ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "nonzero")
"""By which the host would wait for a device."""


def now(step: int, num_steps: int = 28, branch: int = 0, sigma: float = 0.5, grid: Grid = (3, 8, 8)) -> Now:
    """Of a clip in one stage."""
    return Now(step, NoiseLevel(sigma, 1000 * sigma, 0.0), branch, StageEvent(grid, range(num_steps), num_steps, 0, False))


def falling(num: int) -> list[NoiseLevel]:
    return [NoiseLevel(0.9 - 0.05 * step, 900.0 - 50 * step, 850.0 - 50 * step) for step in range(num)]


def boosted(model: str, make: Callable[[Any], Any], num_steps: int, *more: Callable[[], Any]) -> Boost:
    geometry = resident(model).geometry
    return Boost((lambda: make(geometry), *more), StageEvent(GRID, range(num_steps), num_steps, 0, crosses=False), geometry)


def forwards(
    model: str, boost: Boost | None, levels: Sequence[NoiseLevel], x: Tensor | None = None, cond: Placed | None = None
) -> list[Tensor]:
    """Guided velocities of one latent ``[1, C, *GRID]``, a step each."""
    own, cond, found = resident(model), cond or placed(model, GRID), []
    x = cond.pin(noise(1, own.geometry.latent_channels, *GRID, seed=1) if x is None else x)
    own.accelerate(boost)
    with torch.inference_mode():
        for step, level in enumerate(levels):
            if boost is not None:
                boost.at(step, level)
            found.append(own.denoise(x, level, cond))
            if boost is not None:
                boost.saw(x, found[-1])
    own.accelerate(None)
    return found


def reads_of(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fills with every read of a tensor from now on."""
    found: list[str] = []
    for read in READS:
        monkeypatch.setattr(Tensor, read, functools.partialmethod(_noted, getattr(Tensor, read), found, read))
    return found


def _noted(x: Tensor, real: Callable[..., Any], found: list[str], read: str, *args: Any, **more: Any) -> Any:
    found.append(read)
    return real(x, *args, **more)
