"""Wan's repeated block (Wan 2.1, arXiv 2503.20314, sec. 4.2) as one pure function of tensors.

Nothing here depends on the layer or the grid, so one compiled copy serves them all: every weight is an argument, and all
between the matrix products is element-wise or a row's own norm.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from parallel.seam import Attention
from stages.kernels import add_norm, gated_add, linear_gelu, modulated_norm, qk_rope, split_qkv
from stages.models.layers import fuse


class BlockWeights(NamedTuple):
    """One layer. D is the model's width; the layer norm is float32, the rest is the model's dtype."""

    qkv: Tensor
    qkv_bias: Tensor
    norm_q: Tensor
    norm_k: Tensor
    out: Tensor
    out_bias: Tensor
    cross_norm: Tensor
    cross_norm_bias: Tensor
    cross_q: Tensor
    cross_q_bias: Tensor
    cross_norm_q: Tensor
    cross_out: Tensor
    cross_out_bias: Tensor
    ffn_in: Tensor
    ffn_in_bias: Tensor
    ffn_out: Tensor
    ffn_out_bias: Tensor


class CrossMemory(NamedTuple):
    """What one layer's cross-attention looks at, ``[1, heads, rows, head_dim]`` each."""

    keys: Tensor
    values: Tensor
    bias: Tensor | None
    """Added to the logits of the text rows, ``[1, 1, 1, rows]``."""
    image_keys: Tensor | None = None
    image_values: Tensor | None = None


def block(
    w: BlockWeights,
    h: Tensor,
    modulation: Tensor,
    is_first: Tensor | None,
    rope: Tensor,
    memory: CrossMemory,
    heads: int,
    eps: float,
    attention: Attention,
    local: Attention,
) -> Tensor:
    """Tokens ``h [B, N, D]`` through one layer.

    ``modulation [6, D]`` holds shift, scale and gate of self-attention, then of the feed-forward. With ``is_first [N, 1]`` it is
    ``[2, 6, D]``: row 0 is for the tokens where ``is_first`` holds (a clean first frame), row 1 for the others. ``attention``
    may span the ranks of a group; ``local`` is of this rank's tokens, to the prompt.
    """
    found = attend_part(w, h, modulation, is_first, rope, heads, eps, attention)
    return finish_part(w, h, found, modulation, is_first, memory, heads, eps, local)


def attend_part(
    w: BlockWeights,
    h: Tensor,
    modulation: Tensor,
    is_first: Tensor | None,
    rope: Tensor,
    heads: int,
    eps: float,
    attention: Attention,
) -> Tensor:
    """What self-attention finds ``[B, N, D]``, before its gate."""
    shift, scale = (per_token(row, is_first) for row in modulation.unbind(-2)[:2])
    return self_attend(w, modulated_norm(h, scale, shift, eps), rope, heads, eps, attention)


def finish_part(
    w: BlockWeights,
    h: Tensor,
    found: Tensor,
    modulation: Tensor,
    is_first: Tensor | None,
    memory: CrossMemory,
    heads: int,
    eps: float,
    local: Attention,
) -> Tensor:
    """The rest of the layer, given what self-attention found."""
    gate, ffn_shift, ffn_scale, ffn_gate = (per_token(row, is_first) for row in modulation.unbind(-2)[2:])
    h, seen = add_norm(h, found, gate, w.cross_norm, w.cross_norm_bias, eps, plus_one=False)
    h, seen = add_norm(h, cross_attend(w, seen, memory, heads, eps, local), None, ffn_scale, ffn_shift, eps)
    return gated_add(h, feed_forward(w, seen), ffn_gate)


def per_token(rows: Tensor, is_first: Tensor | None) -> Tensor:
    """``[D]`` as it is; ``[2, D]`` to ``[N, D]`` by ``is_first [N, 1]``."""
    return rows if is_first is None else torch.where(is_first, rows[0], rows[1])


def self_attend(w: BlockWeights, h: Tensor, rope: Tensor, heads: int, eps: float, attention: Attention) -> Tensor:
    qkv = F.linear(h, w.qkv, w.qkv_bias)
    q, k = qk_rope(qkv, w.norm_q, w.norm_k, rope, heads, eps)
    v = split_qkv(qkv, heads)[2]
    found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return F.linear(found.transpose(1, 2).flatten(2), w.out, w.out_bias)


def cross_attend(w: BlockWeights, h: Tensor, memory: CrossMemory, heads: int, eps: float, attention: Attention) -> Tensor:
    """Text and image tokens are attended to apart and the results summed (Wan 2.1 image-to-video)."""
    q = F.linear(h, w.cross_q, w.cross_q_bias)
    q = split_heads(F.rms_norm(q, q.shape[-1:], w.cross_norm_q, eps), heads)
    if memory.bias is None:
        found = attention(q, memory.keys, memory.values)
    else:
        found = F.scaled_dot_product_attention(q, memory.keys, memory.values, attn_mask=memory.bias)
    if memory.image_keys is not None and memory.image_values is not None:
        found = found + attention(q, memory.image_keys, memory.image_values)
    return F.linear(found.transpose(1, 2).flatten(2), w.cross_out, w.cross_out_bias)


def feed_forward(w: BlockWeights, h: Tensor) -> Tensor:
    return F.linear(linear_gelu(h, w.ffn_in, w.ffn_in_bias), w.ffn_out, w.ffn_out_bias)


def split_heads(h: Tensor, heads: int) -> Tensor:
    """``[B, N, heads * d]`` to ``[B, heads, N, d]``."""
    return torch.unflatten(h, 2, (heads, -1)).transpose(1, 2)


def block_weights(layer: Any) -> BlockWeights:
    """The weights of a diffusers ``WanTransformerBlock``, q, k and v as one product. The layer's own become views of it."""
    own, cross, (ffn_in, _, ffn_out) = layer.attn1, layer.attn2, layer.ffn.net
    return BlockWeights(
        *fuse((own.to_q, own.to_k, own.to_v)),
        own.norm_q.weight,
        own.norm_k.weight,
        own.to_out[0].weight,
        own.to_out[0].bias,
        layer.norm2.weight,
        layer.norm2.bias,
        cross.to_q.weight,
        cross.to_q.bias,
        cross.norm_q.weight,
        cross.to_out[0].weight,
        cross.to_out[0].bias,
        ffn_in.proj.weight,
        ffn_in.proj.bias,
        ffn_out.weight,
        ffn_out.bias,
    )
