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

from parallel.seam import Attention
from stages.kernels import add_norm, gated_add, joint_qkv, linear_gelu, modulated_norm, qk_rope, split_qkv

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


def dual_block(
    w: DualWeights, h: Tensor, c: Tensor, emb: Tensor, rope: Tensor, first: Tensor | None, *, head_dim: int, attention: Attention
) -> tuple[Tensor, Tensor]:
    """``emb [1 or 2, D]`` after its SiLU; ``rope [N, head_dim / 2, 2]`` and ``first [N, 1]`` have a row per image token."""
    found = attend_dual(w, h, c, emb, rope, first, head_dim=head_dim, attention=attention)
    return finish_dual(w, h, c, *found, emb, first)


def attend_dual(
    w: DualWeights, h: Tensor, c: Tensor, emb: Tensor, rope: Tensor, first: Tensor | None, *, head_dim: int, attention: Attention
) -> tuple[Tensor, Tensor]:
    """What attention finds for image and for text, before its gate."""
    of_h, of_c = _dual_modulations(w, emb, first)
    qkv, text = _project(w.image, h, of_h), _project(w.text, c, of_c)
    norms = (w.image.norm_q, w.image.norm_k), (w.text.norm_q, w.text.norm_k)
    found = attend(*joint_qkv(qkv, text, *norms, rope, h.shape[-1] // head_dim, EPS), attention)
    num = h.shape[1]
    return F.linear(found[:, :num], w.image.out_w, w.image.out_b), F.linear(found[:, num:], w.text.out_w, w.text.out_b)


def finish_dual(
    w: DualWeights, h: Tensor, c: Tensor, found: Tensor, found_c: Tensor, emb: Tensor, first: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The rest of the block, given what attention found."""
    of_h, of_c = _dual_modulations(w, emb, first)
    return _finish(w.image, h, found, of_h[2:]), _finish(w.text, c, found_c, of_c[2:])


def _dual_modulations(w: DualWeights, emb: Tensor, first: Tensor | None) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    of_h = modulations(emb, w.image.modulate_w, w.image.modulate_b, 6, first)
    return of_h, modulations(emb[:1], w.text.modulate_w, w.text.modulate_b, 6, None)


def single_block(
    w: SingleWeights, h: Tensor, emb: Tensor, rope: Tensor, first: Tensor | None, *, head_dim: int, attention: Attention
) -> Tensor:
    """``h`` holds image and text tokens; ``rope`` and ``first`` have a row for each."""
    shift, scale, gate = modulations(emb, w.modulate_w, w.modulate_b, 3, first)
    heads = h.shape[-1] // head_dim
    x = modulated_norm(h, scale, shift, EPS)
    qkv = F.linear(x, w.qkv_w, w.qkv_b)
    found = attend(*qk_rope(qkv, w.norm_q, w.norm_k, rope, heads, EPS), split_qkv(qkv, heads)[2], attention)
    mlp = F.linear(linear_gelu(x, w.up_w, w.up_b), w.out_mlp_w, w.out_b)
    return gated_add(h, torch.addmm(mlp.flatten(0, 1), found.flatten(0, 1), w.out_attention_w.t()).view_as(h), gate)


def attend_single(
    w: SingleWeights, h: Tensor, emb: Tensor, rope: Tensor, first: Tensor | None, *, head_dim: int, attention: Attention
) -> Tensor:
    """What attention adds to the sum of a single-stream block, before the gate."""
    shift, scale, _ = modulations(emb, w.modulate_w, w.modulate_b, 3, first)
    heads = h.shape[-1] // head_dim
    qkv = F.linear(modulated_norm(h, scale, shift, EPS), w.qkv_w, w.qkv_b)
    found = attend(*qk_rope(qkv, w.norm_q, w.norm_k, rope, heads, EPS), split_qkv(qkv, heads)[2], attention)
    return F.linear(found, w.out_attention_w)


def finish_single(w: SingleWeights, h: Tensor, found: Tensor, emb: Tensor, first: Tensor | None) -> Tensor:
    """The rest of the block, given that."""
    shift, scale, gate = modulations(emb, w.modulate_w, w.modulate_b, 3, first)
    up = linear_gelu(modulated_norm(h, scale, shift, EPS), w.up_w, w.up_b)
    return gated_add(h, F.linear(up, w.out_mlp_w, w.out_b) + found, gate)


def modulations(emb: Tensor, weight: Tensor, bias: Tensor, num: int, first: Tensor | None) -> tuple[Tensor, ...]:
    """``num`` modulations ``[D]``, or ``[tokens, D]`` where the first frame has its own."""
    rows = torch.unflatten(F.linear(emb, weight, bias), -1, (num, -1))
    if first is None:
        return rows[0].unbind(0)
    return tuple(torch.where(first, clean, noisy) for noisy, clean in zip(rows[0], rows[1], strict=True))


def attend(q: Tensor, k: Tensor, v: Tensor, attention: Attention) -> Tensor:
    """Attention of ``[1, tokens, heads, head_dim]``, as ``[1, tokens, D]``."""
    return attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)


def _project(w: StreamWeights, h: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    """Queries, keys and values of a stream side by side ``[1, tokens, 3 D]``."""
    shift, scale = modulation[:2]
    return F.linear(modulated_norm(h, scale, shift, EPS), w.qkv_w, w.qkv_b)


def _finish(w: StreamWeights, h: Tensor, found: Tensor, modulation: tuple[Tensor, ...]) -> Tensor:
    """Attention's residual, then the feed-forward with its own."""
    gate, shift, scale, mlp_gate = modulation
    h, x = add_norm(h, found, gate, scale, shift, EPS)
    return gated_add(h, F.linear(linear_gelu(x, w.up_w, w.up_b), w.down_w, w.down_b), mlp_gate)
