"""Image conditions of the Wan models: what they are on the full grid, and on the smaller grids of DVG's stages."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import VideoShape
from stages.models.base import Condition, ImageMode, Request, load
from stages.models.first_frame import resized
from stages.models.wan import WanModel
from stages.models.wan_decoder import WanEncoder
from stages.resize import Axes, nested_axes
from stages.sampling import NoiseLevel
from tests.tiny import checkpoint
from tests.unit.wan_runs import SHAPE, run, stock_pipeline, whole, write_image

BESIDE = ["wan2.1-i2v-14b", "wan2.2-i2v-a14b"]
"""Models that take the image as channels beside the noise."""
HELD = "wan2.2-ti2v-5b"
"""Holds the image in its first frame."""
ALL = [*BESIDE, HELD]
LEVEL = NoiseLevel(0.5, 500.0, 0.0)


@functools.cache
def loaded(name: str) -> WanModel:
    model = load(name, str(checkpoint(name)))
    assert isinstance(model, WanModel)
    return model


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_image(tmp_path_factory.mktemp("image") / "first.png"))


def encoded(name: str, image: str, shape: VideoShape = SHAPE) -> Condition:
    return loaded(name).encode(Request("a red circle", shape, 1.0, image=image))


def small(name: str) -> Axes:
    """A stage of 3 frames of the five, on about half the rows and columns, nested in the full grid."""
    t, h, w = loaded(name).geometry.latent_grid(SHAPE)
    return nested_axes(((3, h // 4 * 2, w // 4 * 2), (t, h, w)))[0]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["index", "encode"])
def test_on_the_full_grid_both_modes_give_the_latent_itself(name: str, mode: ImageMode, image: str) -> None:
    condition = encoded(name, image)
    placed = loaded(name).place(condition, whole(loaded(name).geometry.latent_grid(SHAPE)), mode)
    found = placed.pinned if name == HELD else placed.latent
    assert found is not None
    assert condition.latent is not None
    assert torch.equal(found[:, -condition.latent.shape[1] :], condition.latent)


@pytest.mark.parametrize("name", BESIDE)
@pytest.mark.parametrize("mode", ["index", "encode"])
def test_the_mask_marks_the_first_frame_alone_on_any_grid(name: str, mode: ImageMode, image: str) -> None:
    axes = small(name)
    placed = loaded(name).place(encoded(name, image), axes, mode)
    assert placed.latent is not None
    assert placed.pinned is None
    assert placed.latent.shape == (1, 20, 3, len(axes[1]), len(axes[2]))
    assert (placed.latent[:, :4, 0] == 1).all()
    assert (placed.latent[:, :4, 1:] == 0).all()


@pytest.mark.parametrize("name", ALL)
def test_index_mode_takes_the_cells_of_the_full_latent(name: str, image: str) -> None:
    condition, axes = encoded(name, image), small(name)
    placed = loaded(name).place(condition, axes, "index")
    found = placed.pinned if name == HELD else placed.latent
    assert found is not None
    assert condition.latent is not None
    for row, i in enumerate(axes[1]):
        for column, j in enumerate(axes[2]):
            cell = found[:, -condition.latent.shape[1] :, -1, row, column]
            assert torch.equal(cell, condition.latent[:, :, 0 if name == HELD else axes[0][-1], i, j])


@pytest.mark.parametrize("name", ALL)
def test_encode_mode_is_a_shorter_video_of_the_image_made_smaller(name: str, image: str) -> None:
    """An image of one colour looks the same at any size: its encoding is that of the same image at a stage's own size."""
    model, axes = loaded(name), small(name)
    flat = Path(image).parent / "flat.png"
    Image.new("RGB", (90, 70), (200, 60, 20)).save(flat)
    stride = model.geometry.vae_stride
    shape = VideoShape(4 * (len(axes[0]) - 1) + 1, len(axes[1]) * stride[1], len(axes[2]) * stride[2])
    condition = encoded(name, str(flat))
    assert condition.image is not None
    expected = model._encode_frame(condition.image[..., : shape.height, : shape.width], shape.num_frames)
    placed = model.place(condition, axes, "encode")
    found = placed.pinned if name == HELD else placed.latent
    assert found is not None
    assert (found[:, -expected.shape[1] :] - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", BESIDE)
def test_at_full_height_and_width_encode_mode_is_the_shorter_video_without_encoding_again(
    name: str, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, condition = loaded(name), encoded(name, image)
    assert condition.image is not None
    _, height, width = model.geometry.latent_grid(SHAPE)
    axes = nested_axes(((2, height, width), model.geometry.latent_grid(SHAPE)))[0]
    expected = model._encode_frame(condition.image, 5)
    monkeypatch.setattr(model, "_encode_frame", None)
    found = model.place(condition, axes, "encode").latent
    assert found is not None
    assert (found[:, -expected.shape[1] :] - expected).abs().max() < 1e-5
    indexed = model.place(condition, axes, "index").latent
    assert not torch.allclose(found, indexed, atol=1e-3)  # type: ignore[arg-type]


def test_a_smaller_first_frame_keeps_its_layout_and_has_no_finer_pattern_left() -> None:
    frame = torch.full((1, 3, 1, 64, 96), -1.0)
    frame[..., 48:] = 1
    frame[:, 1] = torch.arange(96).remainder(2).mul(2.0).sub(1)  # stripes of one pixel
    found = resized(frame, 40, 60)
    assert (found[:, 0, ..., :27] + 1).abs().max() < 1e-3
    assert (found[:, 0, ..., 33:] - 1).abs().max() < 1e-3
    assert found[:, 1, ..., 2:-2].abs().max() < 0.2


@pytest.mark.parametrize("max_pixels", [1, 8 * 64 * 96, 1 << 30])
@pytest.mark.parametrize("name", ["wan2.1-i2v-14b", HELD])
def test_encoding_equals_the_stock_encoder_at_every_chunk_length(
    name: str, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.wan_decoder.MAX_CHUNK_PIXELS", max_pixels)
    vae: Any = stock_pipeline(checkpoint(name), image=True).vae.requires_grad_(False)
    video = torch.rand(1, 3, 21, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = (torch.tensor(rows).view(1, -1, 1, 1, 1) for rows in (vae.config.latents_mean, vae.config.latents_std))
    expected = (vae.encode(video).latent_dist.mode() - mean) / std
    assert (WanEncoder(vae)(video) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("mode", ["index", "encode"])
def test_dvg_runs_from_an_image_to_frames(name: str, mode: ImageMode, image: str) -> None:
    model = loaded(name)
    request = Request("a red circle", SHAPE, 3.0, image=image)
    latent = run(model, "dvg", request, 12, DvgConfig(image_condition=mode, tolerance=0.2))
    assert latent.shape == (1, model.geometry.latent_channels, *model.geometry.latent_grid(SHAPE))
    assert sum(len(frames) for frames in model.decode(latent)) == SHAPE.num_frames
    if name == HELD:
        assert torch.equal(latent[:, :, :1], encoded(name, image).latent)  # type: ignore[arg-type]


def test_a_held_frame_has_no_velocity_and_the_others_do(image: str) -> None:
    model = loaded(HELD)
    placed = model.place(encoded(HELD, image), small(HELD), "index")
    assert placed.pinned is not None
    x = model.start(torch.randn(1, 48, 3, *placed.pinned.shape[3:], generator=torch.Generator().manual_seed(0)), placed)
    v = model.denoise(x, LEVEL, placed)
    assert torch.equal(x[:, :, :1], placed.pinned)
    assert (v[:, :, 0] == 0).all()
    assert (v[:, :, 1:].abs().amax(dim=(1, 3, 4)) > 0.1).all()


def test_the_same_weights_make_video_from_text_alone(image: str) -> None:
    model = loaded(HELD)
    condition = model.encode(Request("a red circle", SHAPE, 1.0))
    placed = model.place(condition, small(HELD), "index")
    assert condition.latent is None
    assert placed.pinned is None
    assert placed.latent is None


def test_a_model_from_images_asks_for_one() -> None:
    with pytest.raises(ValueError, match=r"wan2\.1-i2v-14b makes video from an image"):
        loaded("wan2.1-i2v-14b").encode(Request("a red circle", SHAPE, 1.0))


def test_a_model_from_text_refuses_an_image(image: str) -> None:
    with pytest.raises(ValueError, match=r"wan2\.1-1\.3b take no image"):
        loaded("wan2.1-1.3b").encode(Request("a red circle", SHAPE, 1.0, image=image))


def test_an_image_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n")
    for name in ("torn.png", "missing.png"):
        with pytest.raises(ValueError, match=name):
            encoded(HELD, str(tmp_path / name))


def test_weights_from_text_are_refused_for_a_model_from_images() -> None:
    with pytest.raises(ValueError, match=r"WanPipeline; wan2.1-i2v-14b is loaded from a WanImageToVideoPipeline"):
        load("wan2.1-i2v-14b", str(checkpoint("wan2.1-14b")))


def test_a_condition_reaches_another_process_whole(image: str) -> None:
    model, condition = loaded("wan2.1-i2v-14b"), encoded("wan2.1-i2v-14b", image)
    again = Condition.unpack(condition.pack())
    axes = small("wan2.1-i2v-14b")
    x = torch.randn(1, 16, 3, len(axes[1]), len(axes[2]), generator=torch.Generator().manual_seed(0))
    first, second = (model.denoise(x, LEVEL, model.place(c, axes, "encode")) for c in (condition, again))
    assert torch.equal(first, second)
