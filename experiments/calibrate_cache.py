"""Measures how a model's signals and outputs change from step to step over whole clips, for ``stages.accelerators.fitting``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

from orchestrator.arms import Arm
from orchestrator.model_geometry import ModelGeometry
from orchestrator.prompts import Prompt
from orchestrator.types import Grid, VideoShape
from stages.accelerators.fitting import SIGNALS, CacheFit, fit_signal, warmup_of
from stages.accelerators.probe import Change, Probe
from stages.denoise import run_stages, start
from stages.models.base import Model, Request
from stages.planners import make_planner

PROMPTS = (
    "a large red circle stays still on a plain background",
    "a small yellow triangle travels fast to the left on a plain background",
    "a medium blue square drifts slowly to the right on a smooth gradient",
    "a huge green cross bounces on a background of bricks, the camera zooms in",
    "a tiny orange circle orbits in front of a striped wall",
    "a large purple square travels fast down on a background of grainy noise, the camera pans slowly left",
)
"""Where none are given. The embedded model knows their words, and so does any other."""


def shape_of(geometry: ModelGeometry, grid: Grid, fps: int) -> VideoShape:
    """The video of a latent grid."""
    stride_t, stride_h, stride_w = geometry.vae_stride
    return VideoShape((grid[0] - 1) * stride_t + 1, grid[1] * stride_h, grid[2] * stride_w, fps)


def measure(
    model: Model, arm: Arm, grids: Sequence[Grid], prompts: Sequence[Prompt], on_clip: Callable[[int], None] = lambda num: None
) -> CacheFit:
    """A full run of every prompt on every grid, as ``arm`` samples. ``on_clip`` hears how many are done.

    Raises ValueError for a grid or an image that the model does not take, and for too few steps to fit a polynomial.
    """
    changes: list[Change] = []
    for num, (grid, (place, prompt)) in enumerate(product(grids, enumerate(prompts)), 1):
        seed = place if prompt.seed is None else prompt.seed
        changes += watched(model, arm, shape_of(model.geometry, grid, arm.fps), prompt, seed)
        on_clip(num)
    warmup = warmup_of(arm.num_steps)
    told = [change for change in changes if warmup <= change.step < arm.num_steps - 1]  # the others are always computed
    return CacheFit(
        **sampled_as(model, arm, grids, len(prompts)),
        warmup=warmup,
        signals={name: fit_signal([c.signals[name] for c in told], [c.output for c in told]) for name in SIGNALS},
        ratios=mean_ratios(changes, arm.num_steps),
    )


def sampled_as(model: Model, arm: Arm, grids: Sequence[Grid], num_prompts: int) -> dict[str, Any]:
    """What every fit says of the runs that it rests on."""
    return {
        "model": arm.model,
        "revision": arm.revision,
        "grids": tuple(grids),
        "num_steps": arm.num_steps,
        "solver": arm.solver or model.geometry.solver,
        "shift": arm.under_its_shift(model.geometry).full_shift,
        "guidance": arm.guidance,
        "num_clips": len(grids) * num_prompts,
    }


def watched(model: Model, arm: Arm, shape: VideoShape, prompt: Prompt, seed: int) -> list[Change]:
    """The changes of one clip."""
    probe = Probe()
    planner = make_planner(
        *("full", arm.under_its_shift(model.geometry), shape, arm.num_steps, None, arm.dvg, arm.solver),
        accelerators=(lambda: probe,),
    )
    request = Request(prompt.prompt, shape, arm.guidance, arm.negative_prompt, arm.guidance_low, prompt.image)
    run_stages(model, planner, start(model, planner, model.encode(request), seed), 1)
    return probe.changes


def mean_ratios(changes: Sequence[Change], num_steps: int) -> tuple[tuple[float, ...], ...]:
    """By branch and step; 1 for a step without one before it."""

    def mean(branch: int, step: int) -> float:
        own = [change.ratio for change in changes if (change.branch, change.step) == (branch, step)]
        return sum(own) / len(own) if own else 1.0

    branches = sorted({change.branch for change in changes})
    return tuple(tuple(mean(branch, step) for step in range(num_steps)) for branch in branches)
