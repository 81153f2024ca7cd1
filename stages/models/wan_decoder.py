"""Wan's video VAE over diffusers' ``AutoencoderKLWan``, many latent frames at a time (Wan 2.1 and 2.2).

The stock VAE takes one latent frame after the other and hands the convolutions' last frames on in a cache. The cache takes
chunks of any length after the first frame, and longer chunks give the same values for less overhead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

from stages.vae_policy import run_pixels

MAX_CHUNK_PIXELS = 1 << 20
"""Pixels coded at once (frames x height x width), which bounds the memory of the widest layer."""


class WanDecoder:
    """Latents ``[1, C, T, H, W]``, normalised as the transformer sees them, to video."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLWan``; its convolutions are laid out channels-last, which CPUs and GPUs favour."""
        self.vae = vae
        self.mean, self.std = _statistics(vae)
        self.num_caches = _prepare(vae.decoder)

    def runs(self, latent: Tensor) -> Iterator[Tensor]:
        """Video ``[1, 3, f, H', W']`` float32 in [-1, 1]: what is yielded is bounded in memory, what is kept is one cache."""
        z = (latent.to(self.vae.device) * self.std + self.mean).to(self.vae.dtype)
        z = self.vae.post_quant_conv(z).contiguous(memory_format=torch.channels_last_3d)
        cache: list[Tensor | str | None] = [None] * self.num_caches
        for index, chunk in enumerate(z.split(self._chunk_lengths(z), dim=2)):
            frames = self.vae.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
            yield unpatchify(frames, self.vae.config.patch_size or 1).float().clamp(-1, 1)

    def _chunk_lengths(self, z: Tensor) -> list[int]:
        """Latent frames per chunk. The first latent frame is one video frame, the others four each, so it goes alone."""
        stride_t, stride = self.vae.config.scale_factor_temporal, self.vae.config.scale_factor_spatial
        most = run_pixels("wan", z.device, MAX_CHUNK_PIXELS)
        return _lengths(z.shape[2] - 1, stride_t * stride * stride * z.shape[3] * z.shape[4], most)


class WanEncoder:
    """Callable ``video [1, 3, F, H, W] in [-1, 1] -> latent [1, C, T, H', W']``, float32 and normalised."""

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self.mean, self.std = _statistics(vae)
        self.num_caches = _prepare(vae.encoder)

    def __call__(self, video: Tensor) -> Tensor:
        x = patchify(video.to(self.vae.device, self.vae.dtype), self.vae.config.patch_size or 1)
        stride_t = self.vae.config.scale_factor_temporal
        lengths = _lengths((video.shape[2] - 1) // stride_t, stride_t * video.shape[3] * video.shape[4], MAX_CHUNK_PIXELS)
        chunks = x.contiguous(memory_format=torch.channels_last_3d).split([1, *(n * stride_t for n in lengths[1:])], dim=2)
        cache: list[Tensor | None] = [None] * self.num_caches
        moments = torch.cat([self.vae.encoder(chunk, feat_cache=cache, feat_idx=[0]) for chunk in chunks], dim=2)
        mean: Tensor = self.vae.quant_conv(moments).chunk(2, dim=1)[0]
        return (mean.float() - self.mean) / self.std


def _statistics(vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation per latent channel, ``[1, C, 1, 1, 1]``."""
    shape = (1, vae.config.z_dim, 1, 1, 1)
    mean, std = (torch.tensor(rows, device=vae.device).view(shape) for rows in (vae.config.latents_mean, vae.config.latents_std))
    return mean, std


def _prepare(half: nn.Module) -> int:
    """Lay the convolutions out; returns how many of them keep frames in the cache."""
    for module in half.modules():
        if isinstance(module, nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
        elif isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return sum(isinstance(module, WanCausalConv3d) for module in half.modules())


def _lengths(rest: int, pixels: int, most: int) -> list[int]:
    """Latent frames per chunk: one alone, then the ``rest`` of them; each covers ``pixels``."""
    length = max(1, most // pixels)
    return [1, *[length] * (rest // length), *([rest % length] if rest % length else [])]
