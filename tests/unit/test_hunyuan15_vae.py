"""HunyuanVideo-1.5's decoder in runs of frames gives the stock decoder's video, whatever the length of a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo15

from orchestrator.geometry import model
from stages.models import hunyuan15_vae
from stages.models.base import Loading
from stages.models.hunyuan15 import Hunyuan15Model, load_hunyuan15
from stages.sampling import initial_noise
from tests.checkpoints import checkpoint

NAME = "hunyuanvideo-1.5"
GRID = (5, 2, 3)
FRAME = 4 * 32 * 48
"""Pixels of one latent frame of ``GRID``."""


@pytest.fixture(scope="module")
def tiny() -> Hunyuan15Model:
    return load_hunyuan15(model(NAME), checkpoint(NAME), Loading(frozenset({"vae"})))


@pytest.fixture(scope="module")
def stock() -> Any:
    return AutoencoderKLHunyuanVideo15.from_pretrained(checkpoint(NAME) / "vae", dtype=torch.float32)


@pytest.mark.parametrize("frames_at_once", [1, 2, 3, 5])
def test_decoding_equals_the_stock_decoder_at_every_chunk_length(
    frames_at_once: int, tiny: Hunyuan15Model, stock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hunyuan15_vae, "MAX_CHUNK_PIXELS", frames_at_once * FRAME)
    latent = initial_noise(GRID, 32, seed=1)
    with torch.inference_mode():
        expected = stock.decode(latent / stock.config.scaling_factor, return_dict=False)[0]
    found = tiny.pixels(latent)
    assert found.shape == (1, 3, 17, 32, 48)
    assert (expected.abs() < 1).float().mean() > 0.9, "little is clamped, so that nearly everything is compared"
    assert (found - expected.clamp(-1, 1)).abs().max() < 1e-5


def test_frames_arrive_in_runs_and_rounded_to_the_nearest_level(tiny: Hunyuan15Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunyuan15_vae, "MAX_CHUNK_PIXELS", 2 * FRAME)
    latent = initial_noise(GRID, 32, seed=1)
    runs = list(tiny.decode(latent))
    assert [len(run) for run in runs] == [9, 8]
    assert all(run.dtype == np.uint8 and run.shape[1:] == (32, 48, 3) for run in runs)
    video = tiny.pixels(latent)[0].permute(1, 2, 3, 0).numpy()
    assert np.abs(np.concatenate(runs) - (video + 1) * 127.5).max() <= 0.5 + 1e-3


def test_only_the_decoder_is_kept_to_decode(tiny: Hunyuan15Model) -> None:
    assert tiny.parts.image_encoder is None
    with pytest.raises(RuntimeError, match="without its 'transformer' part"):
        tiny._part(tiny.parts.transformer, "transformer")
