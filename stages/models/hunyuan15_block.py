"""The repeated block of HunyuanVideo-1.5 as a pure function over a bundle of weights, so that one compiled program serves all.

Joint attention over [image, text] tokens, each stream with weights of its own (arXiv 2511.18870, section 3). All elementwise
work is in float32 between bf16 products, written so that a compiler fuses it with its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stages.models.base import Attention

EPS = 1e-6
"""Of every norm in this model."""


class StreamWeights(NamedTuple):
    """One stream's weights in one block. ``qkv`` is ``[3 D, D]``, ``norm_q`` and ``norm_k`` are ``[head_dim]``."""

    qkv: Tensor
    qkv_bias: Tensor
    norm_q: Tensor
    norm_k: Tensor
    out: Tensor
    out_bias: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class Rope(NamedTuple):
    """Rotary tables ``[tokens, 1, head_dim]`` float32; ``sin`` is negated at the even places of each pair."""

    cos: Tensor
    sin: Tensor


def block(
    image: StreamWeights, text: StreamWeights, modulation: Tensor, h: Tensor, c: Tensor, rope: Rope, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Image tokens ``h [B, N, D]`` and text tokens ``c [B, n, D]`` after one block.

    ``modulation [2, 6, D]`` holds, per stream, shift, scale and gate of the attention, then of the feed-forward.
    """
    shifts, scales, gates, up_shifts, up_scales, up_gates = modulation.unbind(1)
    q, k, v = _qkv(image, _modulated(h, shifts[0], scales[0]))
    text_q, text_k, text_v = _qkv(text, _modulated(c, shifts[1], scales[1]))
    found = attention(
        _joined(_rotated(_normed(q, image.norm_q), rope), _normed(text_q, text.norm_q), v.dtype),
        _joined(_rotated(_normed(k, image.norm_k), rope), _normed(text_k, text.norm_k), v.dtype),
        _joined(v, text_v, v.dtype),
    )
    found = found.transpose(1, 2).flatten(2)
    found_h, found_c = found[:, : h.shape[1]], found[:, h.shape[1] :]
    h = torch.addcmul(h, F.linear(found_h, image.out, image.out_bias), gates[0])
    c = torch.addcmul(c, F.linear(found_c, text.out, text.out_bias), gates[1])
    h = torch.addcmul(h, _feed_forward(image, _modulated(h, up_shifts[0], up_scales[0])), up_gates[0])
    c = torch.addcmul(c, _feed_forward(text, _modulated(c, up_shifts[1], up_scales[1])), up_gates[1])
    return h, c


def _modulated(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm in float32; the modulation is its affine part."""
    return F.layer_norm(h.float(), (h.shape[-1],), 1 + scale.float(), shift.float(), EPS).to(h.dtype)


def _qkv(weights: StreamWeights, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``[B, N, heads, head_dim]`` each."""
    heads = F.linear(h, weights.qkv, weights.qkv_bias).view(*h.shape[:2], 3, -1, weights.norm_q.shape[0])
    q, k, v = heads.unbind(2)
    return q, k, v


def _normed(x: Tensor, weight: Tensor) -> Tensor:
    """Root-mean-square norm of each head, float32."""
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * weight.float()


def _rotated(x: Tensor, rope: Rope) -> Tensor:
    """Each pair (a, b) of a head becomes (a cos - b sin, b cos + a sin)."""
    swapped = x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return x * rope.cos + swapped * rope.sin


def _joined(image: Tensor, text: Tensor, dtype: torch.dtype) -> Tensor:
    """Tokens of both streams as ``[B, heads, N + n, head_dim]``."""
    return torch.cat([image.to(dtype), text.to(dtype)], dim=1).transpose(1, 2)


def _feed_forward(weights: StreamWeights, h: Tensor) -> Tensor:
    return F.linear(F.gelu(F.linear(h, weights.up, weights.up_bias), approximate="tanh"), weights.down, weights.down_bias)


def bundle(module: Any) -> tuple[StreamWeights, StreamWeights]:
    """The image's and the text's weights of a ``HunyuanVideo15TransformerBlock``; its q, k and v become views of one product."""
    attn = module.attn
    image = (attn.to_q, attn.to_k, attn.to_v), attn.norm_q, attn.norm_k, attn.to_out[0], module.ff
    text = (
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        attn.norm_added_q,
        attn.norm_added_k,
        attn.to_add_out,
        module.ff_context,
    )
    return _bundle(*image), _bundle(*text)


def _bundle(qkv: Sequence[nn.Linear], norm_q: Any, norm_k: Any, out: nn.Linear, feed_forward: Any) -> StreamWeights:
    up, down = feed_forward.net[0].proj, feed_forward.net[2]
    ends = (out.weight, out.bias, up.weight, up.bias, down.weight, down.bias)
    return StreamWeights(*fuse(qkv), norm_q.weight.detach(), norm_k.weight.detach(), *(w.detach() for w in ends))


def fuse(linears: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """The weights of several layers as one product. The layers become views of it, so nothing is held twice."""
    weight = torch.cat([linear.weight.data for linear in linears])
    bias = torch.cat([linear.bias.data for linear in linears])
    for linear, w, b in zip(linears, weight.chunk(len(linears)), bias.chunk(len(linears)), strict=True):
        linear.weight.data, linear.bias.data = w, b
    return weight, bias
