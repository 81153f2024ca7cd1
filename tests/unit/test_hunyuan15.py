"""HunyuanVideo-1.5 on tiny random checkpoints: the adapter equals the stock pipelines, and DVG runs on it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model
from orchestrator.types import VideoShape
from stages.denoise import StepDone, run_stages, start
from stages.models.base import Condition, ImageMode, Loading, Placed, Request, load
from stages.models.hunyuan15 import Hunyuan15Model, load_hunyuan15
from stages.models.hunyuan15_parts import Guider, load_guider
from stages.planners import make_planner
from stages.resize import nested_axes
from stages.sampling import NoiseLevel, initial_noise
from tests.checkpoints import checkpoint

T2V, DISTILLED = "hunyuanvideo-1.5", "hunyuanvideo-1.5-distilled"
I2V, STEP_DISTILLED = "hunyuanvideo-1.5-i2v", "hunyuanvideo-1.5-i2v-step-distilled"
SHAPE = VideoShape(9, 48, 80, 24)
GRID = (3, 3, 5)
GLYPHS = 'a shop sign reads "open", and “late”'


@functools.cache
def tiny(name: str) -> Hunyuan15Model:
    return load_hunyuan15(model(name), checkpoint(name), Loading())


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A smooth picture whose sides are in no simple ratio to the video's."""
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    y, x = np.mgrid[0:90, 0:117]
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


def full_run(tiny: Hunyuan15Model, request: Request, steps: int) -> Tensor:
    planner = make_planner("full", tiny.geometry, request.shape, steps, None, DvgConfig())
    return run_stages(tiny, planner, start(tiny, planner, tiny.encode(request), seed=3), 1)[0].x


@pytest.mark.parametrize("name", [T2V, DISTILLED])
@pytest.mark.parametrize("prompt", ["a", GLYPHS])
def test_a_full_run_from_text_equals_the_stock_pipeline(name: str, prompt: str) -> None:
    guidance = model(name).default_guidance
    expected = stock_latents(stock(name, checkpoint(name)), prompt, "dull", 5, height=SHAPE.height, width=SHAPE.width)
    found = full_run(tiny(name), Request(prompt, SHAPE, guidance, "dull"), 5)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", [I2V, STEP_DISTILLED])
@pytest.mark.parametrize("prompt", ["a", GLYPHS])
def test_a_full_run_from_an_image_equals_the_stock_pipeline(name: str, prompt: str, photo: str) -> None:
    geometry = model(name)
    expected = stock_latents(stock(name, checkpoint(name)), prompt, "dull", 5, image=Image.open(photo))
    size = VideoShape(SHAPE.num_frames, expected.shape[3] * 16, expected.shape[4] * 16, 24)
    found = full_run(tiny(name), Request(prompt, size, geometry.default_guidance, "dull", image=photo), 5)
    assert expected.std() > 0.5
    assert (found - expected).abs().max() < 1e-5


def test_the_guidance_asked_for_decides_over_the_checkpoint() -> None:
    pipeline = stock(DISTILLED, checkpoint(DISTILLED))
    pipeline.guider.guidance_scale = 4.0
    expected = stock_latents(pipeline, "a", "dull", 3, height=SHAPE.height, width=SHAPE.width)
    assert (full_run(tiny(DISTILLED), Request("a", SHAPE, 4.0, "dull"), 3) - expected).abs().max() < 1e-5


def test_without_guidance_there_is_one_branch_and_the_negative_prompt_does_not_count() -> None:
    condition = tiny(T2V).encode(Request("a", SHAPE, 1.0, "dull"))
    assert condition.negative is None
    assert tiny(T2V).encode(Request("a", SHAPE, 1.1, "dull")).negative is not None


def test_branches_are_combined_as_the_shipped_guider_does(tmp_path: Path) -> None:
    from diffusers import ClassifierFreeGuidance

    shipped = ClassifierFreeGuidance(guidance_scale=3.0, guidance_rescale=0.6)
    shipped.save_pretrained(tmp_path / "guider")
    v, plain = torch.randn(2, 1, 32, 2, 3, 4).unbind(0)
    assert torch.allclose(load_guider(tmp_path)(v, plain, 3.0), shipped.forward(v, plain).pred, atol=1e-6)
    assert load_guider(tmp_path / "none") == Guider()
    ClassifierFreeGuidance(guidance_scale=3.0, start=0.2).save_pretrained(tmp_path / "guider")
    with pytest.raises(ValueError, match=r"has start 0\.2: only plain classifier-free guidance"):
        load_guider(tmp_path)


def test_only_the_text_of_the_prompt_is_kept_and_only_quoted_words_are_glyphs() -> None:
    tensors = tiny(T2V).encode(Request("a cat", SHAPE, 1.0)).positive.tensors
    assert tensors["text"].shape == (1, len("a cat") + 1, 32)  # the end of the message is one token
    assert tensors["glyphs"].shape == (1, 0, 24)
    glyphs = tiny(T2V).encode(Request(GLYPHS, SHAPE, 1.0)).positive.tensors["glyphs"]
    assert glyphs.shape == (1, len('Text "open". Text "late". ') + 1, 24)


@pytest.mark.parametrize("name", [T2V, STEP_DISTILLED])
def test_in_bfloat16_a_forward_is_as_close_to_float32_as_the_stock_one(name: str, photo: str) -> None:
    image = photo if model(name).image == "required" else None
    condition = tiny(name).encode(Request(GLYPHS, SHAPE, 1.0, image=image))
    placed = tiny(name).place(condition, nested_axes((GRID,))[0], "index")
    x, level = initial_noise(GRID, 32, seed=1), NoiseLevel(0.64, 640.0, 512.0)
    exact = tiny(name).denoise(x, level, placed)
    half = load_hunyuan15(model(name), checkpoint(name), Loading(frozenset({"transformer"}), dtype=torch.bfloat16))
    found = half.denoise(x, level, placed)
    stock_v = _stock_forward(half.parts.transformer.weights, x, level, placed)
    assert found.dtype == torch.float32
    assert (found - exact).abs().mean() < 1.3 * (stock_v - exact).abs().mean()


def _stock_forward(weights: Any, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
    """diffusers' own forward, which takes padded text under a mask."""
    tensors = placed.condition.positive.tensors
    text, glyphs = (torch.nn.functional.pad(tensors[key], (0, 0, 0, 3)) for key in ("text", "glyphs"))
    masks = [(torch.arange(padded.shape[1]) < padded.shape[1] - 3)[None] for padded in (text, glyphs)]
    image = tensors["image"] if "image" in tensors else torch.zeros(1, 4, weights.config.image_embed_dim)
    channels = torch.zeros(1, 33, *x.shape[2:]) if placed.latent is None else placed.latent
    half = torch.bfloat16
    with torch.inference_mode():
        out = weights(
            torch.cat([x, channels], dim=1).to(half),
            torch.tensor([level.timestep]).to(half),
            text.to(half),
            masks[0],
            torch.tensor([level.timestep_next]).to(half) if weights.config.use_meanflow else None,
            glyphs.to(half),
            masks[1],
            image.to(half),
            return_dict=False,
        )[0]
    return out.float()


def test_a_prompt_is_projected_once_and_forgotten_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    transformer = tiny(T2V).parts.transformer
    remember = transformer.remember
    monkeypatch.setattr(transformer, "remember", lambda tensors: made.append(1) or remember(tensors))
    full_run(tiny(T2V), Request("a", SHAPE, 6.0), 4)
    assert len(made) == 2
    assert len(tiny(T2V)._memories) == 0


COARSE = (2, 2, 3)


def test_an_indexed_condition_holds_cells_of_the_full_latent_at_the_first_frame_only(photo: str) -> None:
    condition = tiny(I2V).encode(Request("a", SHAPE, 1.0, image=photo))
    axes = nested_axes((COARSE, GRID))[0]
    latent = tiny(I2V).place(condition, axes, "index").latent
    assert latent.shape == (1, 33, *COARSE)
    for row, y in enumerate(axes[1]):
        for column, x in enumerate(axes[2]):
            assert torch.equal(latent[0, :32, 0, row, column], condition.latent[0, :, 0, y, x])
    assert torch.equal(latent[0, 32, 0], torch.ones(COARSE[1:]))
    assert not latent[:, :, 1:].any()


def test_an_encoded_condition_is_the_latent_of_the_image_made_smaller(photo: str) -> None:
    condition = tiny(I2V).encode(Request("a", SHAPE, 1.0, image=photo))
    axes = nested_axes((COARSE, GRID))[0]
    small = torch.nn.functional.interpolate(condition.image[:, :, 0], (32, 48), mode="bicubic", antialias=True).clamp(-1, 1)
    placed = tiny(I2V).place(condition, axes, "encode")
    assert torch.equal(placed.latent[:, :32, :1], tiny(I2V).parts.image_encoder(small[:, :, None]))
    assert torch.equal(placed.latent[:, 32:], tiny(I2V).place(condition, axes, "index").latent[:, 32:])


@pytest.mark.parametrize("mode", ["index", "encode"])
def test_on_the_full_rows_and_columns_a_condition_is_the_full_latent(mode: ImageMode, photo: str) -> None:
    condition = tiny(I2V).encode(Request("a", SHAPE, 1.0, image=photo))
    for grid in (GRID, (2, *GRID[1:])):
        placed = tiny(I2V).place(condition, nested_axes((grid, GRID))[0], mode)
        assert torch.equal(placed.latent[:, :32, :1], condition.latent)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        (T2V, DvgConfig()),
        (I2V, DvgConfig(image_condition="index")),
        (I2V, DvgConfig(image_condition="encode")),
        (STEP_DISTILLED, DvgConfig(meanflow_clean="zero")),
    ],
)
def test_dvg_runs_from_a_small_grid_to_the_full_one(name: str, config: DvgConfig, photo: str) -> None:
    geometry, shape = model(name), VideoShape(33, 96, 160, 24)
    image = photo if geometry.image == "required" else None
    planner = make_planner("dvg", geometry, shape, 12, 0.5, config)
    condition = tiny(name).encode(Request(GLYPHS, shape, geometry.default_guidance, image=image))
    steps: list[StepDone] = []
    boundary, _ = run_stages(tiny(name), planner, start(tiny(name), planner, condition, seed=3), 1, steps.append)
    boundary, _ = run_stages(tiny(name), planner, boundary, len(boundary.decision.action.stages), steps.append)
    grids = [step.grid for step in steps]
    assert len(grids) == 12
    assert grids[0][1:] == (3, 5)
    assert grids[-1] == boundary.x.shape[2:] == (9, 6, 10)
    assert boundary.x.isfinite().all()


def test_a_condition_survives_the_trip_to_another_process(photo: str) -> None:
    condition = tiny(I2V).encode(Request(GLYPHS, SHAPE, 6.0, "dull", image=photo))
    again = Condition.unpack(condition.pack())
    x, level, axes = initial_noise(GRID, 32, seed=1), NoiseLevel(0.64, 640.0, 512.0), nested_axes((GRID,))[0]
    runs = [tiny(I2V).denoise(x, level, tiny(I2V).place(each, axes, "index")) for each in (condition, again)]
    assert torch.equal(*runs)


def test_an_image_that_is_missing_or_not_wanted_is_named(photo: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"hunyuanvideo-1\.5-i2v makes video from an image"):
        tiny(I2V).encode(Request("a", SHAPE, 1.0))
    with pytest.raises(ValueError, match=r"hunyuanvideo-1\.5 take no image"):
        tiny(T2V).encode(Request("a", SHAPE, 1.0, image=photo))
    with pytest.raises(ValueError, match="does not exist"):
        tiny(I2V).encode(Request("a", SHAPE, 1.0, image=str(tmp_path / "none.png")))


@pytest.mark.parametrize(
    ("asked", "given", "why"),
    [
        (T2V, I2V, "HunyuanVideo15Pipeline"),
        (I2V, STEP_DISTILLED, "use_meanflow True; .* needs False"),
        (STEP_DISTILLED, I2V, "use_meanflow False; .* needs True"),
        ("hunyuanvideo-1.5-720p", T2V, "target_size 640; .* needs 960"),
    ],
)
def test_weights_of_another_variant_are_refused(asked: str, given: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        load(asked, str(checkpoint(given)), parts=frozenset({"transformer"}))


def test_work_for_a_part_that_was_not_loaded_is_refused() -> None:
    nothing = load_hunyuan15(model(T2V), checkpoint(T2V), Loading(frozenset()))
    with pytest.raises(RuntimeError, match="without its 'text' part"):
        nothing.encode(Request("a", SHAPE, 1.0))
    with pytest.raises(RuntimeError, match="without its 'vae' part"):
        nothing.pixels(initial_noise(GRID, 32, seed=1))
