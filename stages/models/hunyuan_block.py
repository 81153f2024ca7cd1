"""The repeated blocks of HunyuanVideo's transformer (arXiv 2412.03603) as pure functions of their weights.

One function serves all layers of a kind, text-to-video and image-to-video, on all grids, so it is compiled once. ``h`` holds
image tokens, ``c`` text tokens, ``[1, tokens, D]``. With token replacement (HunyuanVideo-I2V) the tokens of the clean first
frame are modulated as at timestep 0: ``emb`` then has a second row for them, and ``first`` marks them.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.compiling import linear_gelu
from stages.models.base import Attention

EPS = 1e-6


class StreamWeights(NamedTuple):
    """One stream, image or text, of a dual-stream block. Weights are ``[out, in]``, biases ``[out]``."""

    modulate_w: Tensor
    modulate_b: Tensor
    qkv_w: Tensor
    qkv_b: Tensor
    norm_q: Tensor
    norm_k: Tensor
    out_w: Tensor
    out_b: Tensor
    up_w: Tensor
    up_b: Tensor
    down_w: Tensor
    down_b: Tensor


class DualWeights(NamedTuple):
    """A dual-stream block: image and text meet in attention only."""

    image: StreamWeights
    text: StreamWeights


class SingleWeights(NamedTuple):
    """A single-stream block: attention and feed-forward side by side, their outputs one sum."""

    modulate_w: Tensor
    modulate_b: Tensor
    qkv_w: Tensor
    qkv_b: Tensor
    norm_q: Tensor
    norm_k: Tensor
    up_w: Tensor
    up_b: Tensor
    out_attention_w: Tensor
    out_mlp_w: Tensor
    out_b: Tensor


class Rope(NamedTuple):
    """Rotary tables ``[tokens, 1, head_dim]`` float32; ``sin`` is negated at the even places of each pair."""

    cos: Tensor
    sin: Tensor

    def of_image(self, num: int) -> Rope:
        """The first ``num`` tokens' rows."""
        return Rope(self.cos[:num], self.sin[:num])


def dual_block(
    w: DualWeights, h: Tensor, c: Tensor, emb: Tensor, rope: Rope, first: Tensor | None, *, head_dim: int, attention: Attention
) -> tuple[Tensor, Tensor]:
    """``emb`` ``[1 or 2, D]`` after its SiLU; ``rope`` and ``first`` ``[image tokens, 1]`` have a row for each image token."""
    of_h = modulations(emb, w.image.modulate_w, w.image.modulate_b, 6, first)
    of_c = modulations(emb[:1], w.text.modulate_w, w.text.modulate_b, 6, None)
    q, k, v = _project(w.image, modulated_norm(h, *of_h[:2]), head_dim)
    text_q, text_k, text_v = _project(w.text, modulated_norm(c, *of_c[:2]), head_dim)
    q = torch.cat([rotate(q, rope).to(v.dtype), text_q.to(v.dtype)], dim=1)
    k = torch.cat([rotate(k, rope).to(v.dtype), text_k.to(v.dtype)], dim=1)
    found = attend(q, k, torch.cat([v, text_v], dim=1), attention)
    num = h.shape[1]
    return _finish(w.image, h, found[:, :num], of_h[2:]), _finish(w.text, c, found[:, num:], of_c[2:])


def single_block(
    w: SingleWeights, h: Tensor, emb: Tensor, rope: Rope, first: Tensor | None, *, head_dim: int, attention: Attention
) -> Tensor:
    """``h`` holds image and text tokens; ``rope`` and ``first`` have a row for each."""
    shift, scale, gate = modulations(emb, w.modulate_w, w.modulate_b, 3, first)
    x = modulated_norm(h, shift, scale)
    q, k, v = _project(w, x, head_dim)
    found = attend(rotate(q, rope).to(v.dtype), rotate(k, rope).to(v.dtype), v, attention)
    mlp = F.linear(linear_gelu(x, w.up_w, w.up_b), w.out_mlp_w, w.out_b)
    return h + gate * torch.addmm(mlp.flatten(0, 1), found.flatten(0, 1), w.out_attention_w.t()).view_as(h)


def modulations(emb: Tensor, weight: Tensor, bias: Tensor, num: int, first: Tensor | None) -> tuple[Tensor, ...]:
    """``num`` modulations ``[D]``, or ``[tokens, D]`` where the first frame has its own."""
    rows = torch.unflatten(F.linear(emb, weight, bias), -1, (num, -1))
    if first is None:
        return rows[0].unbind(0)
    return tuple(torch.where(first, clean, noisy) for noisy, clean in zip(rows[0], rows[1], strict=True))


def modulated_norm(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm and its modulation in float32."""
    return (F.layer_norm(h.float(), h.shape[-1:], eps=EPS) * (1 + scale.float()) + shift.float()).to(h.dtype)


def rotate(q: Tensor, rope: Rope) -> Tensor:
    """Each pair (a, b) of channels becomes (a cos - b sin, b cos + a sin), in float32; ``q`` ``[1, tokens, heads, head_dim]``."""
    swapped = torch.unflatten(q, -1, (-1, 2)).flip(-1).flatten(-2)
    return q * rope.cos + swapped * rope.sin


def attend(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """Attention of ``[1, tokens, heads, head_dim]``, as ``[1, tokens, D]``."""
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _project(w: StreamWeights | SingleWeights, h: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of unit length, float32, and values, ``[1, tokens, heads, head_dim]``."""
    q, k, v = torch.unflatten(F.linear(h, w.qkv_w, w.qkv_b), -1, (3, -1, head_dim)).unbind(2)
    return _unit(q, w.norm_q), _unit(k, w.norm_k), v


def _finish(w: StreamWeights, h: Tensor, found: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    """Attention's residual, then the feed-forward with its own."""
    gate, shift, scale, mlp_gate = modulation
    h = h + gate * F.linear(found, w.out_w, w.out_b)
    up = linear_gelu(modulated_norm(h, shift, scale), w.up_w, w.up_b)
    return h + mlp_gate * F.linear(up, w.down_w, w.down_b)


def _unit(q: Tensor, weight: Tensor) -> Tensor:
    """RMS norm over the channels of a head, in float32."""
    return F.rms_norm(q.float(), q.shape[-1:], weight.float(), EPS)
