"""The Wan adapter does the stock pipeline's work, only cheaper per step."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import WanTransformer3DModel

from orchestrator.dvg_config import DvgConfig
from orchestrator.types import VideoShape
from stages.models.base import Branch, Condition, Placed, Request, load
from stages.models.wan import WanModel
from stages.models.wan_transformer import WanTransformer
from stages.sampling import NoiseLevel, initial_noise
from tests.tiny import TEXT_DIM, checkpoint
from tests.unit.wan_runs import SHAPE, full_run, run, stock_pipeline, stock_run

LEVEL = NoiseLevel(0.64, 640.0, 0.0)
LONG = "a red circle moves left over the blue square and " * 80


@pytest.fixture(scope="module")
def tiny() -> WanModel:
    loaded = load("wan-mini", str(checkpoint()))
    assert isinstance(loaded, WanModel)
    return loaded


@pytest.fixture(scope="module")
def stock() -> Any:
    return stock_pipeline(checkpoint(), image=False)


def text(tokens: torch.Tensor, num_pads: int) -> Branch:
    return Branch({"text": tokens}, num_pads)


@pytest.mark.parametrize(
    ("prompt", "negative", "guidance"),
    [("a  red circle &amp; a zebra", "", 3.0), ("", "", 2.0), (LONG, "", 2.0)],
    ids=["cleaned", "empty", "longer than the text window"],
)
def test_any_prompt_is_encoded_as_the_stock_pipeline_does(
    tiny: WanModel, stock: Any, prompt: str, negative: str, guidance: float
) -> None:
    request = Request(prompt, VideoShape(5, 64, 64), guidance, negative)
    assert (full_run(tiny, request) - stock_run(stock, request)).abs().max() < 1e-5


def test_guidance_and_the_negative_prompt_change_the_result_only_together(tiny: WanModel) -> None:
    plain = full_run(tiny, Request("a red circle", SHAPE, 1.0))
    assert torch.equal(full_run(tiny, Request("a red circle", SHAPE, 1.0, "slow green square")), plain)
    unnamed = full_run(tiny, Request("a red circle", SHAPE, 3.0))
    assert not torch.allclose(unnamed, plain, atol=1e-3)
    assert not torch.allclose(full_run(tiny, Request("a red circle", SHAPE, 3.0, "slow green square")), unnamed, atol=1e-3)


@pytest.mark.parametrize("grid", [(1, 2, 2), (4, 8, 6), (5, 8, 12)])
@pytest.mark.parametrize("num_pads", [0, 1, 505])
def test_one_forward_equals_the_stock_transformer(tiny: WanModel, grid: tuple[int, int, int], num_pads: int) -> None:
    lean = tiny.parts.experts[0]
    x, tokens = initial_noise(grid, 16, seed=1), torch.randn(1, 7, TEXT_DIM)
    padded = torch.cat([tokens, torch.zeros(1, num_pads, TEXT_DIM)], dim=1)
    with torch.inference_mode():
        expected = lean.weights(x, torch.tensor([640.0]), padded, return_dict=False)[0]
        found = lean(x, 640.0, text(tokens, num_pads))
    assert (found - expected).abs().max() < 1e-5


def test_a_clean_first_frame_equals_the_stock_transformer_with_a_timestep_per_token(tiny: WanModel) -> None:
    lean, grid = tiny.parts.experts[0], (3, 4, 6)
    x, tokens = initial_noise(grid, 16, seed=1), torch.randn(1, 7, TEXT_DIM)
    timesteps = torch.full((1, 3, 6), 640.0)
    timesteps[:, 0] = 0
    with torch.inference_mode():
        expected = lean.weights(x, timesteps.flatten(1), tokens, return_dict=False)[0]
        found = lean(x, 640.0, text(tokens, 0), clean_first=True)
    assert (found - expected).abs().max() < 1e-5


def test_in_bfloat16_a_forward_is_as_close_to_float32_as_the_stock_one() -> None:
    folder, x, tokens = checkpoint() / "transformer", initial_noise((3, 4, 6), 16, seed=1), torch.randn(1, 9, TEXT_DIM)
    exact = WanTransformer3DModel.from_pretrained(folder)
    rough = WanTransformer3DModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    half = tokens.bfloat16()
    with torch.inference_mode():
        expected = exact(x, torch.tensor([640.0]), tokens, return_dict=False)[0]
        stock = rough(x.bfloat16(), torch.tensor([640.0]), half, return_dict=False)[0]
        found = WanTransformer(rough)(x, 640.0, text(half, 0))
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 1.3 * (stock - expected).abs().mean()


def test_the_network_is_told_the_timesteps_of_the_stages_own_schedules(tiny: WanModel) -> None:
    told: list[float] = []
    lean = tiny.parts.experts[0]
    hook = lean.weights.condition_embedder.timesteps_proj.register_forward_pre_hook(lambda _, args: told.append(args[0].item()))
    levels: list[float] = []
    config = DvgConfig(shifts=(2.0, 3.0, 4.0, 5.0))
    run(tiny, "dvg", Request("a red circle", SHAPE, 1.0), 12, config, lambda step: levels.append(step.sigma))
    hook.remove()
    assert told == pytest.approx([1000 * sigma for sigma in levels], rel=1e-6)
    assert len(told) == 12


def test_text_keys_and_values_are_made_once_per_prompt(tiny: WanModel, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = tiny.parts.experts[0]
    made: list[int] = []
    make = lean._make_memory
    monkeypatch.setattr(lean, "_make_memory", lambda branch: made.append(branch.num_pads) or make(branch))
    full_run(tiny, Request("a red circle", SHAPE, 3.0, "slow"))
    assert made == [508, 510]
    assert len(lean._memories) == 0, "forgotten with the prompt it belongs to"


@pytest.mark.parametrize("name", ["wan-mini", "wan2.1-1.3b", "wan2.1-14b", "wan2.2-a14b", "wan2.2-ti2v-5b"])
def test_dvg_runs_from_text_to_frames(name: str) -> None:
    model = load(name, str(checkpoint(name)))
    assert isinstance(model, WanModel)
    latent = run(model, "dvg", Request("a red circle", SHAPE, 3.0), 12, DvgConfig(tolerance=0.2))
    assert latent.shape == (1, model.geometry.latent_channels, *model.geometry.latent_grid(SHAPE))
    assert latent.std() > 0.1
    assert sum(len(frames) for frames in model.decode(latent)) == SHAPE.num_frames


@pytest.mark.parametrize("name", ["wan-mini", "wan2.1-1.3b", "wan2.2-ti2v-5b"])
@pytest.mark.parametrize("max_pixels", [1, 4 * 64 * 96 * 3, 1 << 30])
def test_decoding_equals_the_stock_decoder_at_every_chunk_length(
    name: str, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stages.models.wan_decoder.MAX_CHUNK_PIXELS", max_pixels)
    model, vae = load(name, str(checkpoint(name)), parts=frozenset({"vae"})), stock_pipeline(checkpoint(name), image=False).vae
    stride = model.geometry.vae_stride[1]
    latent = initial_noise((6, 64 // stride, 96 // stride), vae.config.z_dim, seed=1)
    mean, std = (torch.tensor(rows).view(1, -1, 1, 1, 1) for rows in (vae.config.latents_mean, vae.config.latents_std))
    with torch.inference_mode():
        expected = vae.decode(latent * std + mean, return_dict=False)[0]
    found = model.pixels(latent)
    assert found.shape == (1, 3, 21, 64, 96)
    assert (found - expected).abs().max() < 1e-5


def test_frames_come_in_runs_rounded_to_the_nearest_level(tiny: WanModel) -> None:
    latent = initial_noise((3, 8, 8), 16, seed=1)
    runs = list(tiny.decode(latent))
    assert len(runs) > 1
    frames = np.concatenate(runs)
    assert frames.shape == (9, 64, 64, 3)
    assert frames.dtype == np.uint8
    video = tiny.pixels(latent)[0].permute(1, 2, 3, 0)
    assert np.abs(frames - (video.numpy() + 1) * 127.5).max() <= 0.5 + 1e-3


def test_a_grid_that_the_patch_does_not_divide_is_refused(tiny: WanModel) -> None:
    placed = Placed(Condition(text(torch.randn(1, 2, TEXT_DIM), 510), None, 1.0))
    with pytest.raises(ValueError, match="not a multiple of the patch"):
        tiny.denoise(initial_noise((2, 9, 8), 16, seed=1), LEVEL, placed)


def test_work_for_a_part_that_was_not_loaded_is_refused() -> None:
    only_text = load("wan-mini", str(checkpoint()), parts=frozenset({"text"}))
    latent = initial_noise((2, 8, 8), 16, seed=1)
    with pytest.raises(RuntimeError, match="without its 'vae' part"):
        only_text.decode(latent)
    with pytest.raises(RuntimeError, match="without its 'transformer' part"):
        only_text.denoise(latent, LEVEL, Placed(only_text.encode(Request("a", SHAPE, 1.0))))


def test_weights_of_other_sizes_are_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint(), tmp_path / "other")
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scale_factor_spatial": 8', '"scale_factor_spatial": 16'))
    with pytest.raises(ValueError, match=r"scale_factor_spatial 16; wan-mini needs 8"):
        load("wan-mini", str(folder))
    with pytest.raises(ValueError, match=r"in_channels 16; wan2\.2-ti2v-5b needs 48"):
        load("wan2.2-ti2v-5b", str(checkpoint("wan2.1-1.3b")))
