"""HunyuanVideo's video autoencoder over diffusers' ``AutoencoderKLHunyuanVideo``, frames as they are ready.

Equal to the stock ``decode`` up to rounding: overlapping runs of latent frames, blended where they meet. The middle block's
attention is done frame by frame, as no frame sees a later one, instead of under a mask of all pixels by all pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDEST = 6
"""Tensors of the widest layer that live at once while the decoder runs, for the estimate of memory."""


class FrameCausalMiddle(nn.Module):
    """A ``HunyuanVideoMidBlock3D`` whose attention needs no mask."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets, self.attentions = block.resnets, block.attentions

    def forward(self, h: Tensor) -> Tensor:
        h = self.resnets[0](h)
        for attn, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            h = resnet(h if attn is None else h + self._attend(attn, h))
        return h

    def _attend(self, attn: Any, h: Tensor) -> Tensor:
        """One head over the pixels of a frame and of all frames before it; ``h`` ``[1, C, T, H, W]``."""
        num_frames, num_pixels = h.shape[2], h.shape[3] * h.shape[4]
        rows = attn.group_norm(h.flatten(2)).transpose(1, 2)
        q, k, v = (linear(rows).unsqueeze(1) for linear in (attn.to_q, attn.to_k, attn.to_v))
        ends = [(frame + 1) * num_pixels for frame in range(num_frames)]
        seen = [F.scaled_dot_product_attention(q[:, :, e - num_pixels : e], k[:, :, :e], v[:, :, :e]) for e in ends]
        out: Tensor = attn.to_out[0](torch.cat(seen, dim=2).squeeze(1))
        return out.transpose(1, 2).view_as(h)


class HunyuanEncoder:
    """Callable ``frame [1, 3, 1, H, W] in [-1, 1] -> latent [1, C, 1, H / 8, W / 8]`` float32: the mode, nothing drawn."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLHunyuanVideo``, whose encoder's middle block is exchanged."""
        self.vae = vae
        vae.encoder.mid_block = FrameCausalMiddle(vae.encoder.mid_block)

    def __call__(self, frame: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(frame.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        latent *= self.vae.config.scaling_factor
        return latent


class HunyuanDecoder:
    """Latents, normalised as the transformer sees them, to video."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLHunyuanVideo``, whose decoder's middle block is exchanged."""
        self.vae = vae
        vae.decoder.mid_block = FrameCausalMiddle(vae.decoder.mid_block)

    def runs(self, latent: Tensor) -> Iterator[Tensor]:
        """Video ``[1, 3, f, 8H, 8W]`` float32 in [-1, 1], a run of frames at a time; 4 (T - 1) + 1 frames in all."""
        vae = self.vae
        z = latent.to(vae.device, vae.dtype) / vae.config.scaling_factor
        stride_t = vae.temporal_compression_ratio
        length, step = vae.tile_sample_min_num_frames // stride_t, vae.tile_sample_stride_num_frames // stride_t
        tiled = needs_tiles(vae, z)
        if z.shape[2] <= length:
            yield _levels(self._decode(z, tiled))
            return
        before: Tensor | None = None
        for start in range(0, z.shape[2], step):
            now = self._decode(z[:, :, start : start + length + 1], tiled)
            if before is not None:
                now = vae.blend_t(before, now[:, :, 1:], (length - step) * stride_t)
            num = step * stride_t + (before is None)
            if now.shape[2]:
                yield _levels(now[:, :, :num])
            before = now

    def __call__(self, latent: Tensor) -> Tensor:
        """The whole video ``[1, 3, F, 8H, 8W]`` float32 in [-1, 1]."""
        return torch.cat(list(self.runs(latent)), dim=2)

    def _decode(self, z: Tensor, tiled: bool) -> Tensor:
        if tiled:
            tile: Tensor = self.vae.tiled_decode(z, return_dict=False)[0]
            return tile
        video: Tensor = self.vae.decoder(self.vae.post_quant_conv(z))
        return video


def needs_tiles(vae: Any, z: Tensor) -> bool:
    """Whether a run of frames of latents ``z`` is too large to decode whole in the free memory of a GPU."""
    if z.device.type != "cuda":
        return False
    num_pixels = vae.tile_sample_min_num_frames * z.shape[3] * z.shape[4] * vae.spatial_compression_ratio**2
    needed: int = WIDEST * num_pixels * vae.config.block_out_channels[1] * z.element_size()
    free, _ = torch.cuda.mem_get_info(z.device)
    unused = torch.cuda.memory_reserved(z.device) - torch.cuda.memory_allocated(z.device)
    return needed > free + unused


def _levels(video: Tensor) -> Tensor:
    return video.float().clamp(-1, 1)
