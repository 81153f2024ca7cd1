"""Tiny HunyuanVideo checkpoints, and runs of the adapter and of the stock pipelines on them, for the tests."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline
from PIL import Image

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models.base import Lora, Placed, Request, load
from stages.models.hunyuan import HunyuanModel
from stages.planners import make_planner
from stages.resize import Axes
from tests.checkpoints import checkpoint

T2V, I2V = "hunyuanvideo", "hunyuanvideo-i2v"
SHAPE = VideoShape(17, 96, 128)
PROMPT = "a red circle moves left"
NUM_STEPS, SEED, GUIDANCE = 5, 3, 6.0


@functools.cache
def tiny(name: str, *lora: Lora) -> HunyuanModel:
    loaded = load(name, str(checkpoint(name)), lora=lora)
    assert isinstance(loaded, HunyuanModel)
    return loaded


@functools.cache
def stock(name: str) -> Any:
    pipeline = (HunyuanVideoImageToVideoPipeline if name == I2V else HunyuanVideoPipeline).from_pretrained(checkpoint(name))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@functools.cache
def photo() -> str:
    """A picture of another size than the video's, with coarse and fine content."""
    rows, columns = np.mgrid[:70, :117]
    waves = [np.sin(rows / 9) * np.cos(columns / 7), np.sin(columns / 3), np.cos(rows / 2 + columns / 5)]
    path = Path(tempfile.mkdtemp(prefix="photo-")) / "first.png"
    Image.fromarray((np.stack(waves, axis=-1) * 120 + 128).astype(np.uint8)).save(path)
    return str(path)


def request(name: str, prompt: str = PROMPT, guidance: float = GUIDANCE, negative: str = "") -> Request:
    return Request(prompt, SHAPE, guidance, negative, image=photo() if name == I2V else None)


def run(
    model: HunyuanModel,
    asked: Request,
    planner: str = "full",
    budget: float | None = None,
    num_steps: int = NUM_STEPS,
    **config: Any,
) -> torch.Tensor:
    """The final latent, by the engine."""
    plan = make_planner(planner, model.geometry, asked.shape, num_steps, budget, DvgConfig(**config))
    boundary = start(model, plan, model.encode(asked), SEED)
    while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
        boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
    return boundary.x


def stock_run(name: str, asked: Request) -> torch.Tensor:
    options = {} if asked.image is None else {"image": Image.open(asked.image).convert("RGB")}
    latent: torch.Tensor = stock(name)(
        prompt=asked.prompt,
        height=asked.shape.height,
        width=asked.shape.width,
        num_frames=asked.shape.num_frames,
        num_inference_steps=NUM_STEPS,
        guidance_scale=asked.guidance,
        generator=torch.Generator().manual_seed(SEED),
        output_type="latent",
        **options,
    ).frames
    return latent


def whole(model: HunyuanModel) -> Axes:
    t, h, w = (tuple(range(size)) for size in model.geometry.latent_grid(SHAPE))
    return t, h, w


def on_whole(model: HunyuanModel, asked: Request) -> Placed:
    return model.place(model.encode(asked), whole(model), "index")
