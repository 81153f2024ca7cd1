"""HunyuanVideo's video autoencoder over diffusers' ``AutoencoderKLHunyuanVideo``, frames as they are ready.

Equal to the stock ``decode`` up to rounding: overlapping runs of latent frames, blended where they meet, in well under half
of its memory. Norms and convolutions take a few frames at a time, as what lies between them is larger than their output, and
the middle block's attention goes frame by frame instead of under a mask of all pixels by all pixels: no frame sees a later one.
Ranks that decode together take turns at the runs, and one of them blends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from orchestrator.types import Grid
from parallel.decoding import in_turns, least
from parallel.groups import Group
from stages import vae_policy
from stages.memory import free_bytes

CHUNK_PIXELS = 1 << 21
"""Pixels that a convolution makes at once (frames x height x width); its input, two frames more, is 2 GB at the widest layer."""

Frames = Callable[[int, int], Tensor]
"""Frames from a start up to a stop, ``[1, C, stop - start, H, W]``."""


class LeanDecoder(nn.Module):
    """A ``HunyuanVideoDecoder3D`` that holds few tensors at once."""

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        self.decoder = decoder
        self.middle = FrameCausalMiddle(decoder.mid_block)

    def forward(self, z: Tensor, half: bool = False) -> Tensor:
        """``half``: height and width as the first block sees them, which grows in time only (VGDFR's release)."""
        decoder = self.decoder
        h = self.middle(convolve(decoder.conv_in, z.shape[2], _frames_of(z)))
        for index, block in enumerate(decoder.up_blocks):
            for resnet in block.resnets:
                h = residual(resnet, h)
            for layer in block.upsamplers or ():
                factor_t, *factors = layer.upsample_factor
                h = upsample(layer, h, (factor_t, 1, 1) if half and index == 0 else (factor_t, *factors))
        return normed_convolve(decoder.conv_norm_out, decoder.conv_out, h)


class FrameCausalMiddle(nn.Module):
    """A ``HunyuanVideoMidBlock3D`` whose attention needs no mask."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets, self.attentions = block.resnets, block.attentions

    def forward(self, h: Tensor) -> Tensor:
        h = residual(self.resnets[0], h)
        for attn, resnet in zip(self.attentions, list(self.resnets)[1:], strict=True):
            h = residual(resnet, h if attn is None else h + self._attend(attn, h))
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


def residual(block: Any, x: Tensor) -> Tensor:
    """A ``HunyuanVideoResnetBlockCausal3D``."""
    h = normed_convolve(block.norm1, block.conv1, x)
    h = normed_convolve(block.norm2, block.conv2, h)
    return h.add_(x if block.conv_shortcut is None else block.conv_shortcut.conv(x))


def normed_convolve(norm: nn.GroupNorm, layer: Any, x: Tensor) -> Tensor:
    """Group norm over all of ``x``, SiLU and a causal convolution; the normed tensor is never whole."""
    scale, shift = affine(norm, x)

    def frames(start: int, stop: int) -> Tensor:
        return F.silu(torch.addcmul(shift, x[:, :, start:stop], scale), inplace=True).to(x.dtype)

    return convolve(layer, x.shape[2], frames)


def affine(norm: nn.GroupNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and shift ``[1, C, 1, 1, 1]`` float32 that the norm comes to on ``x``, from the moments of its frames."""
    moments = [torch.var_mean(f.reshape(norm.num_groups, -1).float(), 1, correction=0) for f in x.unbind(2)]
    variances, means = (torch.stack(rows) for rows in zip(*moments, strict=True))
    variance, mean = variances.mean(0) + means.var(0, correction=0), means.mean(0)
    per_group = x.shape[1] // norm.num_groups
    scale = (variance + norm.eps).rsqrt().repeat_interleave(per_group) * norm.weight.float()
    shift = norm.bias.float() - mean.repeat_interleave(per_group) * scale
    return scale.view(1, -1, 1, 1, 1), shift.view(1, -1, 1, 1, 1)


def upsample(layer: Any, x: Tensor, factor: Grid) -> Tensor:
    """A ``HunyuanVideoUpsampleCausal3D``: every frame but the first may become two, all grow by nearest neighbour."""
    factor_t, *factors = factor
    num_frames = 1 + (x.shape[2] - 1) * factor_t

    def frames(start: int, stop: int) -> Tensor:
        first, last = ((frame + factor_t - 1) // factor_t for frame in (start, stop - 1))
        repeated = x[:, :, first : last + 1].repeat_interleave(factor_t, dim=2)
        # The first frame of all stands once, so frame f of x is at (f - 1) * factor_t + 1 and after.
        skipped = start - ((first - 1) * factor_t + 1)
        chosen = repeated[:, :, skipped : skipped + stop - start]
        return chosen.repeat_interleave(factors[0], dim=3).repeat_interleave(factors[1], dim=4)

    return convolve(layer.conv, num_frames, frames)


def convolve(layer: Any, num_frames: int, frames: Frames) -> Tensor:
    """A ``HunyuanVideoCausalConv3d`` of the input that ``frames`` gives, ``num_frames`` long, a few frames at a time."""
    conv: nn.Conv3d = layer.conv
    before, border = conv.kernel_size[0] - 1, conv.kernel_size[1] // 2
    sample = frames(0, 1)
    length = max(1, CHUNK_PIXELS // (sample.shape[3] * sample.shape[4]))
    out = sample.new_empty(1, conv.out_channels, num_frames, *sample.shape[3:])
    for start in range(0, num_frames, length):
        stop, first = min(start + length, num_frames), max(start - before, 0)
        padding = (border, border, border, border, before - (start - first), 0)
        out[:, :, start:stop] = conv(F.pad(frames(first, stop), padding, mode="replicate"))
    return out


def _frames_of(x: Tensor) -> Frames:
    return lambda start, stop: x[:, :, start:stop]


class HunyuanEncoder:
    """Callable ``video [1, 3, F, H, W] in [-1, 1] -> latent [1, C, T, H / 8, W / 8]`` float32: the mode, nothing drawn."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLHunyuanVideo``, whose encoder's middle block is exchanged."""
        self.vae = vae
        vae.encoder.mid_block = FrameCausalMiddle(vae.encoder.mid_block)

    def __call__(self, video: Tensor) -> Tensor:
        latent: Tensor = self.vae.encode(video.to(self.vae.device, self.vae.dtype)).latent_dist.mode().float()
        latent *= self.vae.config.scaling_factor
        return latent

    def half(self, video: Tensor) -> Tensor:
        """Of video at half its height and width ``[1, 3, F, H / 2, W / 2]``: the last block shrinks it in time only."""
        last = [block for block in self.vae.encoder.down_blocks if block.downsamplers][-1]
        convs = [layer.conv.conv for layer in last.downsamplers]
        strides = [conv.stride for conv in convs]
        try:
            for conv, stride in zip(convs, strides, strict=True):
                conv.stride = (stride[0], 1, 1)
            return self(video)
        finally:
            for conv, stride in zip(convs, strides, strict=True):
                conv.stride = stride


class HunyuanDecoder:
    """Latents, normalised as the transformer sees them, to video."""

    def __init__(self, vae: Any) -> None:
        """``vae`` is an ``AutoencoderKLHunyuanVideo``, whose decoder is exchanged."""
        self.vae = vae
        self.group: Group | None = None
        """The ranks that decode together, with the same latent each."""
        vae.decoder = LeanDecoder(vae.decoder)

    def runs(self, latent: Tensor, half: bool = False) -> Iterator[Tensor]:
        """Video ``[1, 3, f, 8H, 8W]`` float32 in [-1, 1], a run of frames at a time; 4 (T - 1) + 1 frames in all.

        ``half``: of half that height and width, in a quarter of the time.

        On a group rank 0 yields them and the others nothing, but they are to be drained too.
        """
        vae = self.vae
        z = latent.to(vae.device, vae.dtype) / vae.config.scaling_factor
        stride_t = vae.temporal_compression_ratio
        length, step = vae.tile_sample_min_num_frames // stride_t, vae.tile_sample_stride_num_frames // stride_t
        if z.shape[2] <= length:
            yield from map(_levels, self._decoded([z], half))
            return
        before: Tensor | None = None
        for now in self._decoded([z[:, :, start : start + length + 1] for start in range(0, z.shape[2], step)], half):
            if before is not None:
                now = vae.blend_t(before, now[:, :, 1:], (length - step) * stride_t)
            num = step * stride_t + (before is None)
            if now.shape[2]:
                yield _levels(now[:, :, :num])
            before = now

    def _decoded(self, pieces: list[Tensor], half: bool) -> Iterator[Tensor]:
        """The video of each piece of a latent, in order: of one rank, or made by all of a group in turns for rank 0."""
        tiled = not half and least(self.group, int(not needs_tiles(self.vae, pieces[0]))) == 0
        shapes = [self._video_shape(piece, half) for piece in pieces]
        return in_turns(self.group, shapes, lambda index: self._decode(pieces[index], tiled, half), pieces[0])

    def _video_shape(self, z: Tensor, half: bool) -> tuple[int, ...]:
        num_frames = 1 + (z.shape[2] - 1) * self.vae.temporal_compression_ratio
        height, width = (size * self.vae.spatial_compression_ratio // (1 + half) for size in z.shape[3:])
        return z.shape[0], 3, num_frames, height, width

    def _decode(self, z: Tensor, tiled: bool, half: bool) -> Tensor:
        if tiled:
            tile: Tensor = self.vae.tiled_decode(z, return_dict=False)[0]
            return tile
        video: Tensor = self.vae.decoder(self.vae.post_quant_conv(z), half)
        return video


def needs_tiles(vae: Any, z: Tensor) -> bool:
    """Whether a run of frames ``z`` is too large to decode whole in the free memory of a GPU."""
    if z.device.type != "cuda":
        return False
    num_frames = 1 + (z.shape[2] - 1) * vae.temporal_compression_ratio
    num_pixels = num_frames * z.shape[3] * z.shape[4] * vae.spatial_compression_ratio**2
    return vae_policy.needs_tiles("hunyuan", num_pixels, free_bytes(z.device))


def _levels(video: Tensor) -> Tensor:
    return video.float().clamp(-1, 1)
