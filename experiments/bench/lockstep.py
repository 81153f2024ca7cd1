"""Many clips of one plan at once: the engine's stages over a batched network, for studies of thousands of videos.

Decisions, resizes and noise are the product's own, clip by clip; only the loop around the network is written again, and a test
holds it to the engine's latents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from experiments.embedded import text, transformer
from experiments.embedded import vae as autoencoder
from experiments.embedded.sampling import Sampler
from orchestrator.types import Action, Decision, Stage
from stages.models.base import ImageMode
from stages.models.first_frame import pick, resized
from stages.planners.passage import first_noise
from stages.planners.task import Planner, Task
from stages.resize import Axes, nested_axes
from stages.sampling import clean_estimate

PIXELS_PER_CELL = 8


@dataclass(frozen=True, eq=False)
class Clips:
    """What to make: one prompt, one seed and perhaps one first frame [3, H, W] in [-1, 1] each."""

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Conditions:
    """Encoded clips: text rows and their biases [B, ..], first frames [B, 3, 1, H, W] and their latents [B, C, 1, H, W]."""

    rows: Tensor
    bias: Tensor
    images: Tensor | None
    latents: Tensor | None

    def take(self, where: Sequence[int]) -> Conditions:
        picked = list(where)
        images, latents = (None if part is None else part[picked] for part in (self.images, self.latents))
        return Conditions(self.rows[picked], self.bias[picked], images, latents)


@dataclass(frozen=True, eq=False)
class Played:
    """Clean latents [B, C, T, H, W] on the full grid, each clip's decision, and the clean latents that were measured."""

    latents: Tensor
    decisions: tuple[Decision, ...]
    sketches: Tensor | None


class Lockstep:
    """wan-mini from a folder, in float32."""

    def __init__(self, folder: Path, device: str, guidance: float) -> None:
        self.sampler = Sampler.from_folder(folder, device, exact=True)
        self.device, self.guidance = device, guidance
        self.nothing = self._text([""])

    @torch.inference_mode()
    def play(self, planner: Planner, clips: Clips) -> Played:
        """Every clip to its clean latent."""
        task, first, conditions = planner.task, planner.first(), self._encode(clips)
        axes = nested_axes((first.grid, task.full_grid))[0]
        channels = task.geometry.latent_channels
        x = torch.cat([first_noise(axes, task.full_grid, channels, seed, task.config) for seed in clips.seeds]).to(self.device)
        if first.steps == task.num_steps:
            return Played(self._leg(task, first, axes, x, conditions, (0, task.num_steps), True), self._alike(planner, x), None)
        x0 = self._leg(task, first, axes, x, conditions, (0, first.steps + 1), False)
        decisions = tuple(planner.decide(x0[i : i + 1], self.pixels) for i in range(len(x0)))
        groups: dict[Action, list[int]] = defaultdict(list)
        for i, decision in enumerate(decisions):
            groups[decision.action].append(i)
        latents = x0.new_empty((len(x0), channels, *task.full_grid))
        for action, where in groups.items():
            seeds = [clips.seeds[i] for i in where]
            latents[where] = self._refine(planner, action, x0[where], conditions.take(where), seeds)
        return Played(latents, decisions, x0)

    def _alike(self, planner: Planner, x: Tensor) -> tuple[Decision, ...]:
        return (planner.decide(None),) * len(x)

    def _refine(self, planner: Planner, action: Action, x: Tensor, conditions: Conditions, seeds: Sequence[int]) -> Tensor:
        task, stages = planner.task, action.stages
        axes = nested_axes(tuple(stage.grid for stage in stages))
        begin = stages[0].steps + 1
        for index, stage in enumerate(stages[1:], 1):
            sigma, last = task.solver(stage).levels[begin].sigma, index == len(stages) - 1
            x = torch.cat([planner.carry(x[i : i + 1], action, index - 1, sigma, seed) for i, seed in enumerate(seeds)])
            end = sum(s.steps for s in stages[: index + 1]) + (0 if last else 1)
            x = self._leg(task, stage, axes[index], x, conditions, (begin, end), last)
            begin = end
        return x

    def _leg(
        self, task: Task, stage: Stage, axes: Axes, x: Tensor, conditions: Conditions, steps: tuple[int, int], last: bool
    ) -> Tensor:
        """One stage: to the clean latent, or to the clean estimate before its last step."""
        solver, (begin, end) = task.solver(stage), steps
        pin = self._pin(conditions, axes, task.config.image_condition)
        x = pin(x)
        for step in range(begin, end if last else end - 1):
            x = pin(solver.step(x, self._velocity(x, solver.levels[step].timestep, conditions), step))
        if last:
            return x
        level = solver.levels[end - 1]
        v = self._velocity(x, level.timestep, conditions)
        return pin(clean_estimate(x, v, level.sigma, task.config.extrapolation))

    def _velocity(self, x: Tensor, timestep: float, conditions: Conditions) -> Tensor:
        sigma = torch.full((len(x),), timestep / 1000, device=self.device)
        first = None if conditions.latents is None else torch.zeros_like(sigma)
        v = transformer.velocity(self.sampler.model, x, sigma, conditions.rows, conditions.bias, first_sigma=first)
        if self.guidance == 1:
            return v
        rows, bias = (part.expand(len(x), *part.shape[1:]) for part in self.nothing)
        plain = transformer.velocity(self.sampler.model, x, sigma, rows, bias, first_sigma=first)
        return plain + self.guidance * (v - plain)

    def _pin(self, conditions: Conditions, axes: Axes, mode: ImageMode) -> Callable[[Tensor], Tensor]:
        if conditions.latents is None or conditions.images is None:
            return lambda x: x
        height, width = len(axes[1]), len(axes[2])
        if conditions.latents.shape[3:] == (height, width):
            first = conditions.latents
        elif mode == "index":
            first = pick(conditions.latents, axes)
        else:
            first = self.sampler.encode(resized(conditions.images, height * PIXELS_PER_CELL, width * PIXELS_PER_CELL))
        return lambda x: torch.cat([first, x[:, :, 1:]], 2)

    def _encode(self, clips: Clips) -> Conditions:
        images = None if clips.images is None else clips.images.to(self.device)[:, :, None]
        return Conditions(*self._text(clips.prompts), images, None if images is None else self.sampler.encode(images))

    def _text(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return text.encode(self.sampler.encoder, text.token_ids(self.sampler.tokenizer, prompts).to(self.device))

    def pixels(self, latents: Tensor) -> Tensor:
        """Video [B, 3, F, H, W] in [-1, 1]."""
        return autoencoder.decode(self.sampler.vae, self.sampler.raw(latents)).clamp(-1, 1)

    def videos(self, latents: Tensor) -> NDArray[np.uint8]:
        """uint8 [B, F, H, W, 3]."""
        return self.sampler.videos(latents)
