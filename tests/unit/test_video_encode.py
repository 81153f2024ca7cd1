"""Video to latents by each family's adapter, and HunyuanVideo's autoencoder at half height and width (VGDFR's release)."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLHunyuanVideo
from torch import Tensor

from stages.models.base import load
from tests.checkpoints import checkpoint

FAMILIES = ("wan-mini", "wan2.2-ti2v-5b", "hunyuanvideo", "hunyuanvideo-1.5")
HALF = ("hunyuanvideo",)


@functools.cache
def coder(name: str) -> Any:
    return load(name, str(checkpoint(name)), parts=frozenset({"encoder", "vae"}))


@functools.cache
def stock() -> Any:
    return AutoencoderKLHunyuanVideo.from_pretrained(checkpoint("hunyuanvideo") / "vae").requires_grad_(False)


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_previewed_can_be_encoded_again_on_the_same_grid(name: str) -> None:
    own = coder(name)
    stride_t, stride_h, stride_w = own.geometry.vae_stride
    z = noise(1, own.geometry.latent_channels, 3, 4, 6)
    video = own.preview(z)
    share = 2 if name in HALF else 1
    assert video.shape == (1, 3, 2 * stride_t + 1, 4 * stride_h // share, 6 * stride_w // share)
    again = own.latent_of(video)
    assert (again.shape, again.dtype) == (z.shape, torch.float32)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_encoder_alone_is_loaded_when_it_is_asked_for(name: str) -> None:
    own = load(name, str(checkpoint(name)), parts=frozenset({"transformer"}))
    with pytest.raises(RuntimeError, match="without its 'encoder' part"):
        own.latent_of(noise(1, 3, 5, 64, 64))


@pytest.mark.parametrize("num_latents", [3, 7])
def test_half_the_size_is_the_stock_autoencoder_with_one_upsampling_less(num_latents: int) -> None:
    own, vae = coder("hunyuanvideo"), stock()
    z = noise(1, own.geometry.latent_channels, num_latents, 6, 8)
    layer = vae.decoder.up_blocks[0].upsamplers[0]
    factor, ratio = layer.upsample_factor, vae.spatial_compression_ratio
    layer.upsample_factor, vae.spatial_compression_ratio = (factor[0], 1, 1), ratio // 2
    try:
        expected = vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1)
    finally:
        layer.upsample_factor, vae.spatial_compression_ratio = factor, ratio
    torch.testing.assert_close(own.preview(z), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_frames", [9, 25])
def test_half_the_size_is_encoded_by_the_stock_autoencoder_with_one_downsampling_less(num_frames: int) -> None:
    own, vae = coder("hunyuanvideo"), stock()
    video = noise(1, 3, num_frames, 32, 48).clamp(-1, 1)
    conv = vae.encoder.down_blocks[2].downsamplers[0].conv.conv
    stride = conv.stride
    conv.stride = (stride[0], 1, 1)
    try:
        expected = vae.encode(video).latent_dist.mode() * vae.config.scaling_factor
    finally:
        conv.stride = stride
    torch.testing.assert_close(own.latent_of(video), expected, atol=2e-5, rtol=0)


def test_half_the_size_leaves_the_autoencoder_as_it_was() -> None:
    own, vae = coder("hunyuanvideo"), stock()
    own.latent_of(own.preview(noise(1, own.geometry.latent_channels, 2, 6, 8)))
    z = noise(1, own.geometry.latent_channels, 2, 6, 8)
    torch.testing.assert_close(own.pixels(z), vae.decode(z / vae.config.scaling_factor).sample.clamp(-1, 1), atol=2e-5, rtol=0)
    frame = noise(1, 3, 1, 32, 48).clamp(-1, 1)
    expected = vae.encode(frame).latent_dist.mode() * vae.config.scaling_factor
    torch.testing.assert_close(own.parts.encoder(frame), expected, atol=2e-5, rtol=0)
