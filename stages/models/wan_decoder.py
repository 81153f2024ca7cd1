"""Wan's video VAE over diffusers' ``AutoencoderKLWan``, many latent frames at a time (Wan 2.1 and 2.2).

The stock VAE takes one latent frame after the other and hands the convolutions' last frames on in a cache. The cache takes
chunks of any length after the first frame, and longer chunks give the same values for less overhead. Ranks that decode
together have a strip of the picture each: convolutions fetch their neighbours' rows, attention all keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d, patchify, unpatchify
from torch import Tensor, nn

from parallel.decoding import least
from parallel.groups import Group
from parallel.halo import WIDTH, Borders, Halo, Strips, strips_of
from stages.vae_policy import run_pixels

MAX_CHUNK_PIXELS = 1 << 20
"""Pixels coded at once (frames x height x width), which bounds the memory of the widest layer."""


class WanDecoder:
    """Latents ``[1, C, T, H, W]``, normalised as the transformer sees them, to video."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLWan``; its convolutions are laid out channels-last, which CPUs and GPUs favour."""
        self.vae = vae
        self.group: Group | None = None
        """The ranks that decode together, with the same latent each."""
        self.mean, self.std = _statistics(vae)
        self.num_caches = _prepare(vae.decoder)
        self._halo = Halo()
        _cross_strips(vae.decoder, self._halo)

    def runs(self, latent: Tensor) -> Iterator[Tensor]:
        """Video ``[1, 3, f, H', W']`` float32 in [-1, 1]: what is yielded is bounded in memory, what is kept is one cache.

        On a group rank 0 yields it and the others nothing, but they are to be drained too.
        """
        z = (latent.to(self.vae.device) * self.std + self.mean).to(self.vae.dtype)
        strips = strips_of(self.group, *z.shape[3:])
        z = self.vae.post_quant_conv(z if strips is None else strips.cut(z)).contiguous(memory_format=torch.channels_last_3d)
        cache: list[Tensor | str | None] = [None] * self.num_caches
        for index, chunk in enumerate(z.split(self._chunk_lengths(z, strips), dim=2)):
            with self._halo.over(strips):
                frames = self.vae.decoder(chunk, feat_cache=cache, feat_idx=[0], first_chunk=index == 0)
            video: Tensor | None = unpatchify(frames, self.vae.config.patch_size or 1)
            if strips is not None and video is not None:
                video = strips.joined(video)
            if video is not None:
                yield video.float().clamp(-1, 1)

    def _chunk_lengths(self, z: Tensor, strips: Strips | None) -> list[int]:
        """Latent frames per chunk. The first latent frame is one video frame, the others four each, so it goes alone."""
        stride_t, stride = self.vae.config.scale_factor_temporal, self.vae.config.scale_factor_spatial
        num_cells = z.shape[3] * z.shape[4] if strips is None else strips.num_cells
        most = least(self.group, run_pixels("wan", z.device, MAX_CHUNK_PIXELS))
        return _lengths(z.shape[2] - 1, stride_t * stride * stride * num_cells, most)


class _Convolution(nn.Module):
    """A ``WanCausalConv3d`` or a ``Conv2d`` that reads one cell to each side, zeros beyond the picture."""

    def __init__(self, layer: nn.Conv2d | nn.Conv3d, halo: Halo) -> None:
        super().__init__()
        self.layer, self.halo = layer, halo

    def forward(self, x: Tensor, cache: Tensor | None = None) -> Tensor:
        """``x [..., h, w]``; ``cache`` holds the one or two frames before it."""
        strips, layer = self.halo.strips, self.layer
        if strips is None:
            whole: Tensor = layer(x) if cache is None else layer(x, cache)
            return whole
        x = x if cache is None else torch.cat([cache, x], dim=2)
        borders = strips.borders(x)
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(_bordered(x, borders, 0), layer.weight, layer.bias)
        missing = 2 if cache is None else 2 - cache.shape[2]
        return F.conv3d(_bordered(x, borders, missing), layer.weight, layer.bias)


def _bordered(x: Tensor, borders: Borders, missing: int) -> Tensor:
    """``x`` with a cell more to each side, its neighbours' or zeros, after ``missing`` frames of zeros."""
    seen = F.pad(x, (1, 1, 1, 1, missing, 0))
    for slot, cells in borders.slots(seen[:, :, missing:]):
        slot.copy_(F.pad(cells, (0, 0, 1, 1) if borders.dim == WIDTH else (1, 1, 0, 0)))
    return seen


class _Attention(nn.Module):
    """A ``WanAttentionBlock``: each cell sees all cells of its frame, whichever strips they are in."""

    def __init__(self, block: Any, halo: Halo) -> None:
        super().__init__()
        self.block, self.halo = block, halo

    def forward(self, x: Tensor) -> Tensor:
        strips, block = self.halo.strips, self.block
        if strips is None:
            whole: Tensor = block(x)
            return whole
        frames = x[0].transpose(0, 1)
        q, k, v = block.to_qkv(block.norm(frames)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        k, v = strips.gather_cells(torch.cat([k, v], dim=-1)).chunk(2, dim=-1)
        found = F.scaled_dot_product_attention(q.unsqueeze(1), k.unsqueeze(1), v.unsqueeze(1)).squeeze(1)
        out: Tensor = block.proj(found.transpose(1, 2).reshape(frames.shape)).transpose(0, 1).unsqueeze(0)
        return out + x


def _cross_strips(decoder: nn.Module, halo: Halo) -> None:
    """Exchange the layers that read across cells for ones that do so across strips."""
    for module in list(decoder.modules()):
        for name, layer in list(module.named_children()):
            if isinstance(layer, WanAttentionBlock):
                setattr(module, name, _Attention(layer, halo))
            elif isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.kernel_size[-2:] == (3, 3):
                setattr(module, name, _Convolution(layer, halo))


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
