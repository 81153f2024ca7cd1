"""Measures what each head's attention would lose by each pattern, over a few clips, for ``stages.accelerators.pattern_fits``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor

from experiments.calibrate_cache import sampled_as, shape_of
from orchestrator.arms import Arm
from orchestrator.prompts import Prompt
from orchestrator.types import Grid
from parallel.seam import Attention
from stages.accelerators.attending import Here
from stages.accelerators.pattern_fits import CANDIDATES, PatternFit
from stages.denoise import run_stages, start
from stages.models.base import Model, Request
from stages.planners import make_planner
from stages.sparse.kernel import attend
from stages.sparse.relative import patterned, read

NUM_MEASURED = 4
"""Steps of a clip."""


def measured_steps(num_steps: int, num: int = NUM_MEASURED) -> tuple[int, ...]:
    """The middles of ``num`` equal parts of a clip; all steps where there are fewer."""
    num = min(num, num_steps)
    return tuple((2 * part + 1) * num_steps // (2 * num) for part in range(num))


@dataclass
class PatternProbe:
    """Attends to everything, and at some steps measures what each candidate would have lost."""

    steps: tuple[int, ...]
    block: int
    errors: dict[int, list[Tensor]] = field(default_factory=dict)
    """By layer: of each forward ``[heads, candidates]``."""
    densities: list[Tensor] = field(default_factory=list)
    """``[candidates]``, of each forward's first layer."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        found = dense(q, k, v)
        here.log.add(here, 1.0)
        if here.now.step in self.steps:
            self._measure(q, k, v, here, found)
        return found

    def _measure(self, q: Tensor, k: Tensor, v: Tensor, here: Here, found: Tensor) -> None:
        rows = [self._tried(name, q, k, v, here, found) for name in CANDIDATES]
        whole = _power(found, here)
        errors = torch.stack([lost for lost, _ in rows], dim=1) / whole.mean().clamp_min(1e-12)
        self.errors.setdefault(here.layer, []).append(errors.double().cpu())
        if here.layer == 0:
            self.densities.append(torch.tensor([float(kept) for _, kept in rows], dtype=torch.float64))

    def _tried(self, name: str, q: Tensor, k: Tensor, v: Tensor, here: Here, found: Tensor) -> tuple[Tensor, float | Tensor]:
        """Mean squares ``[heads]`` of what image tokens lose, and the share of pairs kept."""
        num_text = q.shape[2] - here.num_image
        if name == "full":
            return torch.zeros(q.shape[1], device=q.device), 1.0
        if name == "skip":
            return _power(found, here), num_text / q.shape[2]
        pattern = patterned([read(name)] * q.shape[1], here.tokens, self.block, q.device).with_text(num_text)
        return _power(found - attend(q, k, v, pattern), here), pattern.density


def _power(x: Tensor, here: Here) -> Tensor:
    """Mean squares ``[heads]`` over image tokens."""
    return x[0, :, : here.num_image].float().square().mean((1, 2))


def measure(
    model: Model,
    arm: Arm,
    grids: Sequence[Grid],
    prompts: Sequence[Prompt],
    block: int = 128,
    on_clip: Callable[[int], None] = lambda num: None,
) -> PatternFit:
    """A full run of every prompt on every grid, as ``arm`` samples. ``on_clip`` hears how many are done.

    Raises ValueError for a grid or an image that the model does not take.
    """
    probe = PatternProbe(measured_steps(arm.num_steps), block)
    for num, (grid, (place, prompt)) in enumerate(product(grids, enumerate(prompts)), 1):
        watch(probe, model, arm, grid, prompt, place if prompt.seed is None else prompt.seed)
        on_clip(num)
    return PatternFit(
        **sampled_as(model, arm, grids, len(prompts)),
        block=block,
        steps=probe.steps,
        candidates=CANDIDATES,
        costs=tuple(_rounded(torch.stack(probe.densities).mean(0))),
        errors=tuple(
            tuple(tuple(_rounded(head)) for head in torch.stack(probe.errors[layer]).mean(0)) for layer in sorted(probe.errors)
        ),
    )


def _rounded(values: Tensor) -> list[float]:
    return [float(f"{value:.4g}") for value in values.tolist()]


def watch(probe: PatternProbe, model: Model, arm: Arm, grid: Grid, prompt: Prompt, seed: int) -> None:
    """One clip."""
    shape = shape_of(model.geometry, grid, arm.fps)
    made: tuple[Any, ...] = (lambda: probe,)
    planner = make_planner(
        *("full", arm.under_its_shift(model.geometry), shape, arm.num_steps, None, arm.dvg, arm.solver),
        accelerators=made,
    )
    request = Request(prompt.prompt, shape, arm.guidance, arm.negative_prompt, arm.guidance_low, prompt.image)
    run_stages(model, planner, start(model, planner, model.encode(request), seed), 1)
