"""The embedded model's autoencoder: its one-pass encode and decode are the stock chunked ones."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from experiments.embedded.scenes import held_out_scenes
from experiments.embedded.train_vae import HARD, SHAPES, freeze_encoder, psnr, quality, training_batches
from experiments.embedded.vae import LATENT_CHANNELS, build, channels_last, decode, encode


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLWan:
    torch.manual_seed(0)
    model = build(8, 8)
    for name, parameter in model.named_parameters():
        if "gamma" in name:
            torch.nn.init.uniform_(parameter, 0.5, 2.0)
    channels_last(model)
    return model.requires_grad_(False)


def clip(num_frames: int) -> Tensor:
    return 2 * torch.rand(2, 3, num_frames, 32, 48, generator=torch.Generator().manual_seed(num_frames)) - 1


@pytest.mark.parametrize("num_frames", [1, 5, 17])
def test_one_pass_encodes_as_the_stock_chunks_do(vae: AutoencoderKLWan, num_frames: int) -> None:
    expected = vae.encode(clip(num_frames)).latent_dist
    mean, logvar = encode(vae, clip(num_frames))
    assert mean.shape == (2, LATENT_CHANNELS, (num_frames - 1) // 4 + 1, 4, 6)
    assert (mean - expected.mean).abs().max() < 1e-5
    assert (logvar - expected.logvar).abs().max() < 1e-5


@pytest.mark.parametrize("num_frames", [1, 2, 5])
def test_one_pass_decodes_as_the_stock_chunks_do(vae: AutoencoderKLWan, num_frames: int) -> None:
    z = torch.randn(2, LATENT_CHANNELS, num_frames, 4, 6, generator=torch.Generator().manual_seed(num_frames))
    assert (decode(vae, z).clamp(-1, 1) - vae.decode(z).sample).abs().max() < 1e-5


def test_gradients_reach_every_weight() -> None:
    model = build(8, 8)
    mean, logvar = encode(model, clip(5))
    (decode(model, mean).square().mean() + logvar.mean()).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


def test_a_frozen_encoder_leaves_the_decoder_to_train() -> None:
    model = build(8, 8)
    freeze_encoder(model)
    trained = {name.split(".")[0] for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained == {"decoder", "post_quant_conv"}


def test_psnr_of_a_known_error() -> None:
    video = torch.zeros(2, 3, 5, 8, 8)
    error = torch.tensor([0.2, 0.02]).view(2, 1, 1, 1, 1)  # a tenth and a hundredth of the range
    assert psnr(video, video + error).tolist() == pytest.approx([20.0, 40.0], abs=1e-4)


def test_training_batches_have_equal_pixels_and_more_of_the_hard_backgrounds() -> None:
    pixels = 41 * 144 * 144
    batches = list(islice(training_batches(3, pixels, keep_easy=0.5), 60))
    for frames, side, packed in batches:
        assert (frames, side) in {shape[:2] for shape in SHAPES}
        assert len(packed) == round(pixels / (frames * side * side))
    backgrounds = torch.cat([packed[:, 0] for _, _, packed in batches])
    hard = torch.isin(backgrounds, torch.tensor(HARD, dtype=backgrounds.dtype)).double().mean()
    assert 0.55 < float(hard) < 0.8


def test_quality_is_a_median_for_each_background_present(vae: AutoencoderKLWan) -> None:
    scenes = held_out_scenes()[:3]
    table = quality(vae, scenes, frames=5, side=16, batch=2)
    assert set(table["median_psnr_db"]) == {scene.background for scene in scenes}
    assert len(table["latents_mean"]) == len(table["latents_std"]) == LATENT_CHANNELS
