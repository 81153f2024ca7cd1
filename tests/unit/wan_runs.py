"""Runs of the Wan adapter and of the stock pipelines, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import Grid, VideoShape
from stages.denoise import OnStep, ignore, run_stages, start
from stages.models.base import Request
from stages.models.wan import WanModel
from stages.planners.base import make_planner
from stages.resize import Axes

SHAPE = VideoShape(17, 64, 96)
NUM_STEPS = 6
SEED = 3


def whole(grid: Grid) -> Axes:
    """Axes of the full grid."""
    t, h, w = (tuple(range(size)) for size in grid)
    return t, h, w


def write_image(path: Path, height: int = 70, width: int = 90) -> Path:
    """A picture of another size than the video's, with coarse and fine content."""
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 9) * np.cos(columns / 7), np.sin(columns / 3), np.cos(rows / 2 + columns / 5)]
    Image.fromarray((np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)).save(path)
    return path


def full_run(model: WanModel, request: Request) -> Tensor:
    """Every step on the full grid, by the checkpoint's own solver."""
    return run(model, "full", request, NUM_STEPS)


def run(
    model: WanModel,
    planner: str,
    request: Request,
    num_steps: int,
    config: DvgConfig | None = None,
    on_step: OnStep = ignore,
) -> Tensor:
    """The latent that a planner's run ends with; half the budget for DVG."""
    budget = 0.5 if planner == "dvg" else None
    plan = make_planner(planner, model.geometry, request.shape, num_steps, budget, config or DvgConfig())
    boundary = start(model, plan, model.encode(request), SEED)
    if boundary.decision is None:
        boundary, _ = run_stages(model, plan, boundary, 1, on_step)
    assert boundary.decision is not None
    return run_stages(model, plan, boundary, len(boundary.decision.action.stages), on_step)[0].x


def stock_pipeline(folder: Path, *, image: bool) -> Any:
    pipeline = (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_run(pipeline: Any, request: Request) -> Tensor:
    options: dict[str, Any] = {}
    if request.guidance_low is not None:
        options["guidance_scale_2"] = request.guidance_low
    if request.image is not None:
        options["image"] = Image.open(request.image).convert("RGB")
    latent: Tensor = pipeline(
        prompt=request.prompt,
        negative_prompt=request.negative,
        height=request.shape.height,
        width=request.shape.width,
        num_frames=request.shape.num_frames,
        num_inference_steps=NUM_STEPS,
        guidance_scale=request.guidance,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **options,
    ).frames
    return latent
