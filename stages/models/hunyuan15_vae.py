"""HunyuanVideo-1.5's video decoder over diffusers' ``AutoencoderKLHunyuanVideo15``, a few latent frames at a time.

The decoder is causal: a frame depends on earlier frames only. So each convolution keeps its last two input frames and the
attention its keys and values, and a clip is decoded in runs of frames with the values of the stock decoder in one piece,
in a fraction of its memory and without tiles. Ranks that decode together have a strip of the picture each: convolutions
fetch their neighbours' rows, attention all keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.decoding import least
from parallel.groups import Group
from parallel.halo import Strips, strips_of
from stages.vae_policy import run_pixels

MAX_CHUNK_PIXELS = 1 << 22
"""Pixels decoded at once (frames x height x width): about 1 GiB per activation of the widest layer in bf16."""
LAYOUT = torch.channels_last_3d
"""Of every convolution: CPUs and GPUs favour it."""


def normed(x: Tensor, gamma: Tensor) -> Tensor:
    """Each cell's channels at unit length, times the square root of their number and ``gamma``."""
    units: Tensor = F.normalize(x.float(), dim=1)
    scale: float = x.shape[1] ** 0.5
    return units.to(x.dtype) * scale * gamma


def ready(x: Tensor, gamma: Tensor | None, tail: Tensor | None) -> Tensor:
    """What a convolution reads of ``x [1, C, T, H, W]``: ``[1, C, T + 2, H + 2, W + 2]``.

    With ``gamma`` it comes after norm and SiLU. Borders are repeated once; ``tail`` holds the last two frames of the run
    before, as the convolution read them. The clip's first frame stands for the two before it.
    """
    if x.is_cuda and x.shape[0] == 1:
        from stages.models import hunyuan15_pad

        return hunyuan15_pad.ready(x, gamma, tail)
    x = x if gamma is None else F.silu(normed(x, gamma))
    x = F.pad(x, (1, 1, 1, 1, 0, 0), mode="replicate")
    before = x[:, :, :1].expand(-1, -1, 2, -1, -1) if tail is None else tail
    return torch.cat([before, x], dim=2).contiguous(memory_format=LAYOUT)


def crossing(x: Tensor, gamma: Tensor | None, tail: Tensor | None, strips: Strips) -> Tensor:
    """:func:`ready` of a strip: its borders are the neighbours' rows, made ready likewise, where it has neighbours."""
    borders = strips.borders(x)
    seen, first = ready(x, gamma, tail), 0 if tail is None else 2
    for slot, cells in borders.slots(seen[:, :, first:]):
        slot.copy_(ready(cells, gamma, None)[:, :, first:].narrow(strips.dim, 1, 1))
    return seen


def grown(h: Tensor, x: Tensor, frames: int, repeats: int) -> Tensor:
    """Channels of ``h`` and of its shortcut ``x`` become height, width and ``frames`` times the frames.

    Of ``h`` as many channels are left as the shortcut has: a clip's first frame is not doubled and drops the second half.
    """
    shortcut = _unpack(x, frames).unsqueeze(-1).expand(-1, -1, -1, -1, -1, repeats)
    out = _unpack(h, frames)[..., : shortcut.shape[-2] * repeats]
    return (out.reshape(shortcut.shape) + shortcut).flatten(-2).permute(0, 4, 1, 2, 3)


def _unpack(x: Tensor, frames: int) -> Tensor:
    """``[B, (f 2 2 c), T, H, W]`` to ``[B, (T f), (H 2), (W 2), c]``."""
    size, (t, h, w) = x.shape[0], x.shape[2:]
    cells = x.permute(0, 2, 3, 4, 1).reshape(size, t, h, w, frames, 2, 2, -1)
    return cells.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(size, t * frames, h * 2, w * 2, -1)


class Hunyuan15Decoder:
    """Latents as the transformer sees them to video."""

    def __init__(self, vae: Any) -> None:
        """``vae`` holds a decoder; its weights are laid out anew."""
        self.decoder = vae.decoder
        self.group: Group | None = None
        """The ranks that decode together, with the same latent each."""
        self.scaling_factor: float = vae.config.scaling_factor
        self.stride: tuple[int, int] = (vae.config.temporal_compression_ratio, vae.config.spatial_compression_ratio)
        self.dtype: torch.dtype = vae.dtype
        for layer in self.decoder.modules():
            if isinstance(layer, nn.Conv3d):
                layer.weight.data = layer.weight.data.contiguous(memory_format=LAYOUT)

    def runs(self, latent: Tensor) -> Iterator[Tensor]:
        """Video ``[1, 3, f, 16 H, 16 W]`` float32 in [-1, 1] of ``latent [1, C, T, H, W]``, to be drawn in order.

        The first run has 4 n + 1 frames, the others 4 n, for n latent frames each. On a group rank 0 yields them and the
        others nothing, but they are to be drained too.
        """
        strips = strips_of(self.group, *latent.shape[3:])
        z = latent if strips is None else strips.cut(latent)
        z = (z / self.scaling_factor).to(self.dtype).contiguous(memory_format=LAYOUT)
        memory = _Memory(strips)
        for index, chunk in enumerate(torch.split(z, self._chunk_lengths(z, strips), dim=2)):
            video: Tensor | None = self._decode(chunk, memory, first=index == 0)
            if strips is not None and video is not None:
                video = strips.joined(video)
            if video is not None:
                yield video.float().clamp(-1, 1)

    def _chunk_lengths(self, z: Tensor, strips: Strips | None) -> list[int]:
        """The first latent frame makes one frame of video only, so it goes with the following run."""
        stride_t, stride = self.stride
        num_cells = z.shape[3] * z.shape[4] if strips is None else strips.num_cells
        most = least(self.group, run_pixels("hunyuan15", z.device, MAX_CHUNK_PIXELS))
        length = max(1, most // (stride_t * stride * stride * num_cells))
        rest = z.shape[2] - 1
        lengths = [length] * (rest // length) + [rest % length] * (rest % length > 0)
        return [1 + lengths[0], *lengths[1:]] if lengths else [1]

    def _decode(self, z: Tensor, memory: _Memory, first: bool) -> Tensor:
        decoder = self.decoder
        h = memory.convolve(decoder.conv_in, z) + z.repeat_interleave(decoder.repeat, dim=1)
        h = memory.residual(decoder.mid_block.resnets[0], h)
        for attend, resnet in zip(decoder.mid_block.attentions, decoder.mid_block.resnets[1:], strict=True):
            h = memory.residual(resnet, memory.attend(attend, h))
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                h = memory.residual(resnet, h)
            for upsample in block.upsamplers or ():
                h = memory.upsample(upsample, h, first)
        return memory.convolve(decoder.conv_out, h, decoder.norm_out)


class _Memory:
    """What a clip's later frames need of its earlier ones, per layer; and where the cells beside a strip are."""

    def __init__(self, strips: Strips | None) -> None:
        self.strips = strips
        self.tails: dict[nn.Module, Tensor] = {}
        self.keys: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def convolve(self, layer: Any, x: Tensor, norm: Any = None) -> Tensor:
        """A convolution that is causal over time, after ``norm`` and SiLU where there is one."""
        gamma, tail = None if norm is None else norm.gamma, self.tails.get(layer)
        seen = ready(x, gamma, tail) if self.strips is None else crossing(x, gamma, tail, self.strips)
        self.tails[layer] = seen[:, :, -2:].clone()
        out: Tensor = layer.conv(seen)
        return out

    def residual(self, resnet: Any, x: Tensor) -> Tensor:
        h = self.convolve(resnet.conv2, self.convolve(resnet.conv1, x, resnet.norm1), resnet.norm2)
        return h.add_(x if resnet.conv_shortcut is None else resnet.conv_shortcut(x))

    def attend(self, layer: Any, x: Tensor) -> Tensor:
        """Each frame attends to itself and to all before it. Frame by frame this needs no mask and half the products."""
        frames, cells = x.shape[2], x.shape[3] * x.shape[4]
        h = normed(x, layer.norm.gamma)
        q, k, v = (project(h).flatten(2).transpose(1, 2).unsqueeze(1) for project in (layer.to_q, layer.to_k, layer.to_v))
        if self.strips is not None:
            k, v = _everywhere(k, v, frames, self.strips)
        in_frame = k.shape[2] // frames
        if layer in self.keys:
            k, v = (torch.cat([before, now], dim=2) for before, now in zip(self.keys[layer], (k, v), strict=True))
        self.keys[layer] = k, v
        seen = range(k.shape[2] - in_frame * (frames - 1), k.shape[2] + 1, in_frame)
        rounds = zip(q.split(cells, dim=2), seen, strict=True)
        found = [F.scaled_dot_product_attention(now, k[:, :, :n], v[:, :, :n]) for now, n in rounds]
        rows = torch.cat(found, dim=2).transpose(2, 3).reshape(x.shape)
        out: Tensor = layer.proj_out(rows) + x
        return out

    def upsample(self, layer: Any, x: Tensor, first: bool) -> Tensor:
        """Channels become height and width and, in two of the four layers, time: all frames but the clip's first are doubled."""
        h = self.convolve(layer.conv, x)
        if not layer.add_temporal_upsample:
            return grown(h, x, 1, layer.repeats)
        if not first:
            return grown(h, x, 2, layer.repeats)
        head = grown(h[:, :, :1], x[:, :, :1], 1, layer.repeats // 2)
        return head if x.shape[2] == 1 else torch.cat([head, grown(h[:, :, 1:], x[:, :, 1:], 2, layer.repeats)], dim=2)


def _everywhere(k: Tensor, v: Tensor, frames: int, strips: Strips) -> tuple[Tensor, Tensor]:
    """Keys and values ``[1, 1, frames x cells, C]`` of all strips, frame by frame."""
    rows = torch.cat([k, v], dim=-1).reshape(frames, -1, 2 * k.shape[3])
    keys, values = strips.gather_cells(rows).flatten(0, 1)[None, None].chunk(2, dim=-1)
    return keys, values


class Hunyuan15ImageEncoder:
    """Callable ``pixels [1, 3, F, H, W] in [-1, 1] -> latent [1, C, T, H / 16, W / 16]``, as the transformer sees it.

    One frame is encoded whole. Video, where every cell attends to all before it, in overlapping tiles as stock.
    """

    def __init__(self, vae: Any) -> None:
        """``vae`` holds an encoder."""
        self.vae = vae

    def __call__(self, pixels: Tensor) -> Tensor:
        self.vae.use_tiling = pixels.shape[2] > 1
        latent: Tensor = self.vae.encode(pixels.to(self.vae.device, self.vae.dtype)).latent_dist.mode()
        scale: float = self.vae.config.scaling_factor
        return (latent * scale).float()
