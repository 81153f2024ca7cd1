"""Runs of the Wan adapter and of the stock pipelines, for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline
from PIL import Image

from orchestrator.types import Grid, VideoShape
from stages.models.base import Placed, Request
from stages.models.wan import WanModel
from stages.resize import Axes
from stages.sampling import NoiseLevel, initial_noise, make_solver

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


def full_run(model: WanModel, request: Request, levels: list[NoiseLevel] | None = None) -> torch.Tensor:
    """Every step on the full grid, by the checkpoint's own solver; ``levels`` collects what the network was told."""
    geometry = model.geometry
    grid = geometry.latent_grid(request.shape)
    solver = make_solver(geometry.solver, NUM_STEPS, geometry.full_shift, geometry.level_spacing)
    placed = model.place(model.encode(request), whole(grid), "index")
    x = model.start(initial_noise(grid, geometry.latent_channels, SEED), placed)
    for index, level in enumerate(solver.levels):
        x = placed.pin(solver.step(x, model.denoise(x, level, placed), index))
        if levels is not None:
            levels.append(level)
    return x


def stock_pipeline(folder: Path, *, image: bool) -> Any:
    pipeline = (WanImageToVideoPipeline if image else WanPipeline).from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_run(pipeline: Any, request: Request) -> torch.Tensor:
    options: dict[str, Any] = {}
    if request.guidance_low is not None:
        options["guidance_scale_2"] = request.guidance_low
    if request.image is not None:
        options["image"] = Image.open(request.image).convert("RGB")
    latent: torch.Tensor = pipeline(
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


def on(model: WanModel, latent: torch.Tensor, request: Request) -> Placed:
    """The request on the whole grid of ``latent``."""
    grid = (latent.shape[2], latent.shape[3], latent.shape[4])
    return model.place(model.encode(request), whole(grid), "index")
