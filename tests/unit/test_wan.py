"""The Wan adapter is the stock pipeline, only cheaper per step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel

from orchestrator.actions import DvgConfig
from orchestrator.types import VideoShape
from stages.denoise import run_stages, start
from stages.models import wan_decoder
from stages.models.base import Condition, TextEmbedding, load
from stages.models.wan import WanModel
from stages.models.wan_transformer import WanTransformer
from stages.planners.base import make_planner
from stages.sampling import initial_noise
from tests.tiny import GEOMETRY, TEXT_DIM, checkpoint

SHAPE = VideoShape(17, 64, 96)
LONG = "a red circle moves left over the blue square and " * 80


@pytest.fixture(scope="module")
def tiny() -> WanModel:
    loaded = load("wan-mini", str(checkpoint()))
    assert isinstance(loaded, WanModel)
    return loaded


@pytest.fixture(scope="module")
def stock() -> Any:
    pipeline = WanPipeline.from_pretrained(checkpoint())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def full_run(model: WanModel, prompt: str, negative: str, guidance: float) -> torch.Tensor:
    planner = make_planner("full", GEOMETRY, SHAPE, 8, None, DvgConfig())
    boundary = start(model, planner, model.encode_text(prompt, negative, guidance), seed=3)
    return run_stages(model, planner, boundary, 1)[0].x


@pytest.mark.parametrize(
    "prompt,negative,guidance",
    [
        ("a red circle moves left", "", 1.0),
        ("a red circle moves left", "slow green square", 4.0),
        ("a  red circle &amp; a zebra", "", 3.0),
        ("", "", 2.0),
        (LONG, "", 2.0),
    ],
    ids=["plain", "guided", "cleaned", "empty", "longer than the text window"],
)
def test_a_full_run_equals_the_stock_pipeline(tiny: WanModel, stock: Any, prompt: str, negative: str, guidance: float) -> None:
    expected = stock(
        prompt,
        negative_prompt=negative,
        height=SHAPE.height,
        width=SHAPE.width,
        num_frames=SHAPE.num_frames,
        num_inference_steps=8,
        guidance_scale=guidance,
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).frames
    assert (full_run(tiny, prompt, negative, guidance) - expected).abs().max() < 1e-5


def test_guidance_and_the_negative_prompt_change_the_result_only_together(tiny: WanModel) -> None:
    plain = full_run(tiny, "a red circle", "", 1.0)
    assert torch.equal(full_run(tiny, "a red circle", "slow green square", 1.0), plain)
    assert not torch.allclose(full_run(tiny, "a red circle", "", 3.0), plain, atol=1e-3)
    guided = full_run(tiny, "a red circle", "slow green square", 3.0)
    assert not torch.allclose(guided, full_run(tiny, "a red circle", "", 3.0), atol=1e-3)


@pytest.mark.parametrize("grid", [(1, 2, 2), (4, 8, 6), (5, 8, 12)])
@pytest.mark.parametrize("num_pads", [0, 1, 505])
def test_one_forward_equals_the_stock_transformer(tiny: WanModel, grid: tuple[int, int, int], num_pads: int) -> None:
    lean = tiny._part(tiny.transformer, "transformer")
    x, tokens = initial_noise(grid, 16, seed=1), torch.randn(1, 7, TEXT_DIM)
    padded = torch.cat([tokens, torch.zeros(1, num_pads, TEXT_DIM)], dim=1)
    with torch.inference_mode():
        expected = lean.weights(x, torch.tensor([640.0]), padded, return_dict=False)[0]
        found = lean(x, 0.64, lean.remember(TextEmbedding(tokens, num_pads)))
    assert (found - expected).abs().max() < 1e-5


def test_in_bfloat16_a_forward_is_as_close_to_float32_as_the_stock_one() -> None:
    folder, x, tokens = checkpoint() / "transformer", initial_noise((3, 4, 6), 16, seed=1), torch.randn(1, 9, TEXT_DIM)
    exact = WanTransformer3DModel.from_pretrained(folder)
    rough = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    half = tokens.bfloat16()
    with torch.inference_mode():
        expected = exact(x, torch.tensor([640.0]), tokens, return_dict=False)[0]
        stock = rough(x.bfloat16(), torch.tensor([640.0]), half, return_dict=False)[0]
        lean = WanTransformer(rough)
        found = lean(x, 0.64, lean.remember(TextEmbedding(half, 0)))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 1.3 * (stock - expected).abs().mean()


def test_the_network_is_told_a_thousand_times_sigma(tiny: WanModel) -> None:
    told: list[float] = []
    lean = tiny._part(tiny.transformer, "transformer")
    hook = lean.weights.condition_embedder.timesteps_proj.register_forward_pre_hook(lambda _, args: told.append(args[0].item()))
    planner = make_planner("dvg", GEOMETRY, SHAPE, 12, 0.5, DvgConfig(shifts=(2.0, 3.0, 4.0, 5.0)))
    levels: list[float] = []
    boundary = start(tiny, planner, tiny.encode_text("a red circle", "", 1.0), seed=3)
    run_stages(tiny, planner, boundary, 4, lambda step: levels.append(step.sigma))
    hook.remove()
    assert told == pytest.approx([1000 * sigma for sigma in levels], rel=1e-7)
    assert len(told) == 12


def test_text_keys_and_values_are_made_once_per_prompt(tiny: WanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = tiny._part(tiny.transformer, "transformer")
    made: list[TextEmbedding] = []
    remember = lean.remember
    monkeypatch.setattr(lean, "remember", lambda text: made.append(text) or remember(text))
    full_run(tiny, "a red circle", "slow", 3.0)
    assert [text.num_pads for text in made] == [508, 510]
    made.clear()
    assert len(tiny._memories) == 0, "forgotten with the prompt it belongs to"


@pytest.mark.parametrize("max_pixels", [1, 4 * 64 * 96 * 3, 1 << 30])
def test_decoding_equals_the_stock_decoder_at_every_chunk_length(
    tiny: WanModel, stock: Any, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wan_decoder, "MAX_CHUNK_PIXELS", max_pixels)
    latent, config = initial_noise((6, 8, 12), 16, seed=1), stock.vae.config
    mean, std = (torch.tensor(value).view(1, 16, 1, 1, 1) for value in (config.latents_mean, config.latents_std))
    with torch.inference_mode():
        expected = stock.vae.decode(latent * std + mean, return_dict=False)[0]
        found = tiny._part(tiny.decoder, "vae")(latent)
    assert found.shape == (1, 3, 21, 64, 96)
    assert (found - expected).abs().max() < 1e-5


def test_frames_are_rounded_to_the_nearest_level(tiny: WanModel) -> None:
    latent = initial_noise((2, 8, 8), 16, seed=1)
    frames = tiny.decode(latent)
    assert frames.shape == (5, 64, 64, 3)
    assert frames.dtype == np.uint8
    video = tiny._part(tiny.decoder, "vae")(latent)[0].permute(1, 2, 3, 0)
    assert np.abs(frames - (video.numpy() + 1) * 127.5).max() <= 0.5 + 1e-3


def test_a_grid_that_the_patch_does_not_divide_is_refused(tiny: WanModel) -> None:
    condition = Condition(TextEmbedding(torch.randn(1, 2, TEXT_DIM), 510), None, 1.0)
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        tiny.denoise(initial_noise((2, 9, 8), 16, seed=1), 0.5, condition)


def test_work_for_a_part_that_was_not_loaded_is_refused() -> None:
    only_text = load("wan-mini", str(checkpoint()), parts=frozenset({"text"}))
    with pytest.raises(RuntimeError, match="without its 'vae' part"):
        only_text.decode(initial_noise((2, 8, 8), 16, seed=1))
    with pytest.raises(RuntimeError, match="without its 'transformer' part"):
        only_text.denoise(initial_noise((2, 8, 8), 16, seed=1), 0.5, only_text.encode_text("a", "", 1.0))


def test_models_and_weights_that_cannot_run_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="planned but not run; choose one of wan-mini"):
        load("hunyuanvideo", None)
    with pytest.raises(ValueError, match="needs weights"):
        load("wan2.1-1.3b", None)
    with pytest.raises(ValueError, match=r"no model at .*model_index\.json"):
        load("wan-mini", str(tmp_path))


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "other")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scale_factor_spatial": 8', '"scale_factor_spatial": 16'))
    with pytest.raises(ValueError, match=r"vae_stride is \(4, 16, 16\), not \(4, 8, 8\)"):
        load("wan-mini", str(folder))


def test_image_to_video_weights_are_refused() -> None:
    weights = WanTransformer3DModel(
        num_attention_heads=1, attention_head_dim=12, ffn_dim=8, num_layers=1, text_dim=8, freq_dim=8, image_dim=8
    )
    with pytest.raises(ValueError, match="only text-to-video"):
        WanTransformer(weights)
