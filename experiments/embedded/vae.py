"""The embedded model's video autoencoder, and its encode and decode for whole clips.

The stock encoder and decoder run a clip in short chunks that hand frames on in a cache. A chunk may have any length after
the first frame, so two chunks (the first frame, then all others) give the same values for a fraction of the launches.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

LATENT_CHANNELS = 16
PATCH = 2
BASE_DIM, DECODER_BASE_DIM = 24, 40


def build(base_dim: int = BASE_DIM, decoder_base_dim: int = DECODER_BASE_DIM) -> AutoencoderKLWan:
    """4x in time, 8x in space: pixels are folded 2 x 2 first, so the costly top level runs at half the resolution."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        decoder_base_dim=decoder_base_dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 3],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        patch_size=PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        scale_factor_temporal=4,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def encode(vae: AutoencoderKLWan, video: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log variance [B, 16, T, H/8, W/8] of video [B, 3, F, H, W] in [-1, 1]; equal to ``vae.encode``."""
    x, cache = patchify(video, PATCH), _cache(vae.encoder)
    parts = [vae.encoder(part, feat_cache=cache, feat_idx=[0]) for part in _first_and_rest(x)]
    mean, logvar = vae.quant_conv(torch.cat(parts, 2)).chunk(2, 1)
    return mean, logvar.clamp(-30, 20)


def decode(vae: AutoencoderKLWan, z: Tensor) -> Tensor:
    """Video of raw latents (not standardised); equal to ``vae.decode`` before it clamps."""
    parts, cache = _first_and_rest(vae.post_quant_conv(z)), _cache(vae.decoder)
    frames = [vae.decoder(part, feat_cache=cache, feat_idx=[0], first_chunk=i == 0) for i, part in enumerate(parts)]
    return unpatchify(torch.cat(frames, 2), PATCH)


def _first_and_rest(x: Tensor) -> Sequence[Tensor]:
    return [part for part in (x[:, :, :1], x[:, :, 1:]) if part.shape[2]]


def _cache(module: nn.Module) -> list[Tensor | None]:
    return [None] * sum(isinstance(inner, WanCausalConv3d) for inner in module.modules())


def channels_last(vae: AutoencoderKLWan) -> None:
    """Lay out the convolutions' weights as tensor cores and CPUs favour."""
    for module in vae.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
