"""DVG: a sketch on a small grid, then the schedule that its content asks for (arXiv 2605.21042)."""

from __future__ import annotations

import torch
from torch import Tensor

from orchestrator.actions import DvgConfig, action_list, decide, first_stage
from orchestrator.geometry import ModelGeometry
from orchestrator.types import Action, Decision, Stage, VideoShape
from stages.demand import Pixels, brightness, measure
from stages.noise import coordinate_noise, derive_seed
from stages.resize import Axes, nested_axes, resize, smooth


class DvgPlanner:
    """One video's plan at one budget. Raises InfeasibleBudget at construction, before any work is done."""

    def __init__(self, geometry: ModelGeometry, shape: VideoShape, num_steps: int, budget: float, config: DvgConfig) -> None:
        self.num_steps, self.config = num_steps, config
        self.actions = action_list(geometry, shape, num_steps, budget, config)
        self._first = first_stage(geometry, shape, num_steps, budget, config)

    def first(self) -> Stage:
        return self._first

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        """The action for a sketch's clean latent [1, C, T, H, W] (eqs. 3 to 10)."""
        only = self.actions[0]
        if len(only.stages) == 1:
            return Decision(only, "one stage: the full grid at every step")
        if x0 is None:
            raise ValueError("dvg decides on the clean latent of the sketch, and was given none")
        return decide(self.actions, measure(self._seen(x0, pixels), self.config), self.config)

    def _seen(self, x0: Tensor, pixels: Pixels | None) -> Tensor:
        """What the demands are measured on."""
        if self.config.demand_space == "latent":
            return x0
        if pixels is None:
            raise ValueError("demand_space is pixels, and nothing was given to decode the sketch with")
        return brightness(pixels(x0))

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        """Resize, smooth on entering stage 2, and re-noise to the level ``sigma`` of the new schedule (eqs. 11 to 14)."""
        axes = nested_axes(tuple(stage.grid for stage in action.stages))
        target = axes[stage_index + 1]
        y = resize(x0.float(), axes[stage_index], target, self.config.resize)
        if stage_index == 0:
            y = smooth(y, self.config.smoothing, self.config.smoothing_padding)
        return (1 - sigma) * y + sigma * self._noise(y, target, stage_index, seed)

    def _noise(self, y: Tensor, target: Axes, stage_index: int, seed: int) -> Tensor:
        noise_seed = derive_seed(seed) if self.config.noise_seed is None else self.config.noise_seed
        if self.config.renoise == "coordinate":
            return coordinate_noise(target, y.shape[1], noise_seed, y.device, self.config.noise_hash)
        generator = torch.Generator().manual_seed(derive_seed(noise_seed + stage_index))
        return torch.randn(y.shape, generator=generator).to(y.device)
