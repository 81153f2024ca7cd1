"""Wan's video decoder over diffusers' ``AutoencoderKLWan``, many latent frames at a time.

The stock ``decode`` runs one latent frame after the other and hands the convolutions' last frames on in a cache. The cache
takes chunks of any length after the first frame, and longer chunks give the same values for less overhead.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d, unpatchify
from torch import Tensor, nn

MAX_CHUNK_PIXELS = 1 << 20
"""Pixels decoded at once (frames x height x width), which bounds the memory of the widest layer."""


class WanDecoder:
    """Callable ``latent [1, C, T, H, W] -> video [1, 3, F, 8H, 8W]`` in [-1, 1], float32."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLWan``; its convolutions are laid out channels-last, which CPUs and GPUs favour."""
        self.vae = vae
        self.num_caches = sum(isinstance(module, WanCausalConv3d) for module in vae.decoder.modules())
        shape = (1, vae.config.z_dim, 1, 1, 1)
        self.mean = torch.tensor(vae.config.latents_mean, device=vae.device).view(shape)
        self.inverse_std = 1.0 / torch.tensor(vae.config.latents_std, device=vae.device).view(shape)
        for module in vae.decoder.modules():
            if isinstance(module, nn.Conv3d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
            elif isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def __call__(self, latent: Tensor) -> Tensor:
        z = (latent / self.inverse_std + self.mean).to(self.vae.dtype)
        z = self.vae.post_quant_conv(z).contiguous(memory_format=torch.channels_last_3d)
        cache: list[Tensor | str | None] = [None] * self.num_caches
        chunks = z.split(self._chunk_lengths(z), dim=2)
        frames = [
            self.vae.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=index == 0) for index, chunk in enumerate(chunks)
        ]
        video: Tensor = unpatchify(torch.cat(frames, dim=2), self.vae.config.patch_size or 1)
        return video.float().clamp(-1, 1)

    def _chunk_lengths(self, z: Tensor) -> list[int]:
        """Latent frames per chunk. The first latent frame is one video frame, the others four each, so it goes alone."""
        stride_t, stride = self.vae.config.scale_factor_temporal, self.vae.config.scale_factor_spatial
        pixels = stride_t * stride * stride * z.shape[3] * z.shape[4]
        length, rest = max(1, MAX_CHUNK_PIXELS // pixels), z.shape[2] - 1
        return [1, *[length] * (rest // length), *([rest % length] if rest % length else [])]
