"""HunyuanVideo-1.5 on tiny random checkpoints: the adapter equals the stock pipelines, and DVG runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from orchestrator.geometry import model
from orchestrator.types import VideoShape
from stages.models.base import Loading, Request
from stages.models.hunyuan15 import Hunyuan15Model, load_hunyuan15
from stages.models.tiny_hunyuan15 import build
from stages.resize import Axes, nested_axes
from stages.sampling import initial_noise, make_solver

T2V, DISTILLED = "hunyuanvideo-1.5", "hunyuanvideo-1.5-distilled"
I2V, STEP_DISTILLED = "hunyuanvideo-1.5-i2v", "hunyuanvideo-1.5-i2v-step-distilled"
SHAPE = VideoShape(9, 48, 80, 24)
GRID = (3, 3, 5)
GLYPHS = 'a shop sign reads "open", and “late”'


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    built: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in built:
            built[name] = build(name, tmp_path_factory.mktemp(name))
        return built[name]

    return find


@pytest.fixture(scope="module")
def tiny(checkpoint: Any) -> Any:
    loaded: dict[str, Hunyuan15Model] = {}

    def find(name: str) -> Hunyuan15Model:
        if name not in loaded:
            loaded[name] = load_hunyuan15(model(name), checkpoint(name), Loading())
        return loaded[name]

    return find


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A smooth picture whose sides are in no simple ratio to the video's."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    y, x = np.mgrid[0:70, 0:117]
    rgb = np.stack([x * 2, y * 3, 128 + 90 * np.sin(x / 9 + y / 5)], axis=-1)
    Image.fromarray(rgb.astype(np.uint8)).save(path)
    return str(path)


def stock(name: str, folder: Path) -> Any:
    from diffusers import HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline

    kind = HunyuanVideo15Pipeline if model(name).image == "none" else HunyuanVideo15ImageToVideoPipeline
    pipeline: Any = kind.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.target_size = 64  # it takes the video's size from the image's ratio and this; ours is told the size
    return pipeline


def stock_latents(pipeline: Any, prompt: str, negative: str, steps: int, **size: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    frames = pipeline(
        prompt=prompt,
        negative_prompt=negative,
        num_frames=SHAPE.num_frames,
        num_inference_steps=steps,
        generator=generator,
        output_type="latent",
        **size,
    ).frames
    assert isinstance(frames, Tensor)
    return frames


def full_axes(grid: tuple[int, int, int] = GRID) -> Axes:
    return nested_axes((grid,))[0]


def full_run(tiny: Hunyuan15Model, request: Request, steps: int) -> Tensor:
    geometry = tiny.geometry
    grid = geometry.latent_grid(request.shape)
    placed = tiny.place(tiny.encode(request), full_axes(grid), "index")
    x = tiny.start(initial_noise(grid, geometry.latent_channels, seed=3), placed)
    solver = make_solver(geometry.solver, steps, geometry.full_shift, geometry.level_spacing)
    for index, level in enumerate(solver.levels):
        x = solver.step(x, tiny.denoise(x, level, placed), index)
    return x


@pytest.mark.parametrize("name", [T2V, DISTILLED])
@pytest.mark.parametrize("prompt", ["a", GLYPHS])
def test_a_full_run_from_text_equals_the_stock_pipeline(name: str, prompt: str, tiny: Any, checkpoint: Any) -> None:
    guidance = model(name).default_guidance
    expected = stock_latents(stock(name, checkpoint(name)), prompt, "dull", 5, height=SHAPE.height, width=SHAPE.width)
    found = full_run(tiny(name), Request(prompt, SHAPE, guidance, "dull"), 5)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", [I2V, STEP_DISTILLED])
@pytest.mark.parametrize("prompt", ["a", GLYPHS])
def test_a_full_run_from_an_image_equals_the_stock_pipeline(
    name: str, prompt: str, tiny: Any, checkpoint: Any, photo: str
) -> None:
    geometry = model(name)
    expected = stock_latents(stock(name, checkpoint(name)), prompt, "dull", 5, image=Image.open(photo))
    size = VideoShape(SHAPE.num_frames, expected.shape[3] * 16, expected.shape[4] * 16, 24)
    found = full_run(tiny(name), Request(prompt, size, geometry.default_guidance, "dull", image=photo), 5)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-5
