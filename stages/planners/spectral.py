"""Spectral progressive diffusion: low frequencies first, on grids that hold no others (arXiv 2605.18736), in cosines (DCT-II).

Reconstructed. A noisy latent says nothing of details whose power is far below the noise's, so until then a grid will do that
has none of them. Here:

- A frame's first cosines on a small grid are those of the full grid, but for their size: a wave's coefficient grows with the
  root of the number of cells, white noise's does not. So the latent of ``n`` of ``N`` cells at level sigma is the low band of
  one at the level with odds sqrt(N / n) as high. A small grid runs under the shift that gives just these levels
  (``orchestrator.progressive.matched_shift``); step for step its low band is where the full run's would be.
- It grows when the first details that it lacks have ``delta`` times the noise's power, by a power law for all videos.
- ``dct``: the latent goes on. The band of its clean estimate, sized up, and of its own noise, as it is; beyond the band, fresh
  noise of the level, as nothing else would be seen there.
- ``dct_rewind``: the band of the clean estimate only, everywhere under fresh noise, at a higher level: later grids have their
  shift times ``rewind``, so that what was settled too early may change.
"""

from __future__ import annotations

import functools
import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.progressive import grid_at, grid_schedule, level_of_band, matched_shift, step_below
from orchestrator.types import Action, Grid
from stages.planners.scheduled import ScheduledPlanner, always, fresh_noise, refused
from stages.planners.task import Crossing, Task


class SpectralSettings(Settings):
    """Grids of 1, 1/2, 1/4, ... of height and width, the smallest first."""

    mode: Literal["dct", "dct_rewind"] = "dct"
    """What crosses: the latent, or the clean estimate at a higher level."""
    levels: int = Field(3, ge=1, le=6)
    """How many grids there are at most; 1 is the plain run. One that gets no step of its own is left out."""
    delta: float = Field(0.05, gt=0, lt=1)
    """A grid is left when the first details that it lacks have this share of the noise's power."""
    decay: float = Field(2.0, ge=0, le=6)
    """Power of details falls as frequency to the minus this."""
    rewind: float = Field(1.5, ge=1)
    """Of ``dct_rewind``: how many times its matched shift every grid but the first has."""


class SpectralPlanner(ScheduledPlanner):
    """The band of one grid's cosines, on the next."""

    def __init__(self, task: Task, settings: SpectralSettings) -> None:
        super().__init__(task, schedule(settings, task.geometry, task.full_grid, task.num_steps), "spectral")
        self.settings = settings

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        stages, index, sigma = crossing.action.stages, crossing.stage_index, crossing.sigma
        (_, height, width) = target = stages[index + 1].grid
        clean = widened(x0.float(), target) * math.sqrt(height * width / (x0.shape[3] * x0.shape[4]))
        noise = fresh_noise(stages, index + 1, clean, crossing.seed)
        if self.settings.mode == "dct":
            own = (x0 + crossing.velocity).float()
            noise = noise - low_band(noise, stages[index].grid) + widened(own, target)
        return (1 - sigma) * clean + sigma * noise


def widened(x: Tensor, grid: Grid) -> Tensor:
    """[..., H, W] on a larger grid with the same cosines' coefficients, all finer ones being 0: white noise keeps its power."""
    return _along(x, *(_widening(size, full, x.device) for size, full in zip(x.shape[3:], grid[1:], strict=True)))


def low_band(x: Tensor, grid: Grid) -> Tensor:
    """What of ``x`` the cosines of a smaller grid hold."""
    sizes = zip(grid[1:], x.shape[3:], strict=True)
    down = [_widening(size, full, x.device).T for size, full in sizes]
    return widened(_along(x, *down), (x.shape[2], x.shape[3], x.shape[4]))


def _along(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return rows @ x @ columns.T


@functools.lru_cache(maxsize=64)
def _widening(size: int, full: int, device: torch.device) -> Tensor:
    """``[full, size]`` with orthonormal columns."""
    with torch.inference_mode(False):
        return (cosines(full)[:size].T @ cosines(size)).float().to(device)


def cosines(size: int) -> Tensor:
    """The orthonormal DCT-II ``[frequencies, cells]``, float64."""
    cells, frequencies = torch.arange(size, dtype=torch.float64), torch.arange(size, dtype=torch.float64)
    waves = torch.cos(torch.pi / size * frequencies[:, None] * (cells + 0.5)) * math.sqrt(2 / size)
    waves[0] /= math.sqrt(2)
    return waves


def schedule(settings: SpectralSettings, geometry: ModelGeometry, full_grid: Grid, num_steps: int) -> Action:
    """Raises ValueError where no smaller grid gets a step."""
    kept, transitions = _growing(settings, geometry, full_grid, num_steps)
    if settings.levels > 1 and not kept:
        raise ValueError(
            f"with {num_steps} steps at {full_grid[1]} x {full_grid[2]} latent cells no smaller grid gets a step of its own; "
            "take more steps, a larger delta, a larger video, levels 1, or planner full"
        )
    rates = (*kept, 1.0)
    rewinds = settings.rewind if settings.mode == "dct_rewind" else 1.0
    shifts = [
        matched_shift(full_grid, grid_at(geometry, full_grid, rate), geometry.full_shift) * (rewinds if number else 1.0)
        for number, rate in enumerate(rates)
    ]
    return grid_schedule(geometry, full_grid, rates, transitions, shifts, num_steps)


def _growing(
    settings: SpectralSettings, geometry: ModelGeometry, full_grid: Grid, num_steps: int
) -> tuple[list[float], list[int]]:
    """Rates below 1, and the transition out of each, so that the next grid's first step is at or below the band's level."""
    rates = [2.0**-k for k in range(settings.levels - 1, 0, -1)]
    kept, transitions = [], []
    for rate in rates:
        level = level_of_band(full_grid, rate, settings.delta, settings.decay)
        step = min(step_below(level, num_steps, geometry.full_shift) - 1, num_steps - 2)
        grows = grid_at(geometry, full_grid, rate) != grid_at(geometry, full_grid, 2 * rate)
        if grows and step > (transitions[-1] if transitions else 0):
            kept.append(rate)
            transitions.append(step)
    return kept, transitions


actions = always(schedule)


def mistakes(settings: SpectralSettings, request: Request) -> list[str]:
    """``dct`` takes the latent's own noise from the clean estimate and the velocity, which only the whole way gives."""
    found, config = refused(actions)(settings, request), request.config
    if settings.mode == "dct" and settings.levels > 1 and config.extrapolation != 1:
        found.append(
            "under mode dct the latent goes on with its own noise, which a clean estimate that went part of the way "
            "only does not tell: leave out dvg.extrapolation, or take mode dct_rewind"
        )
    return found


METHODS = {
    "spectral": Method(
        "spectral", "planner", "grid", "Spectral progressive diffusion, arXiv 2605.18736",
        "low frequencies first, on grids that hold no others", "reconstructed",
        make=lambda settings, task, budget: SpectralPlanner(task, settings),
        settings=SpectralSettings, mistakes=mistakes, actions=actions,
    )
}  # fmt: skip
