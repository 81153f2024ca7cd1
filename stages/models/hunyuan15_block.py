"""The repeated block of HunyuanVideo-1.5 as a pure function over a bundle of weights, so that one compiled program serves all.

Joint attention over [image, text] tokens, each stream with weights of its own (arXiv 2511.18870, section 3). All elementwise
work is in float32 between bf16 products, written so that a compiler fuses it with its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from parallel.seam import Attention
from stages.kernels import add_norm, gated_add, joint_qkv, linear_gelu, modulated_norm
from stages.models.layers import fuse

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


def block(
    image: StreamWeights, text: StreamWeights, modulation: Tensor, h: Tensor, c: Tensor, rope: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """Image tokens ``h [B, N, D]`` and text tokens ``c [B, n, D]`` after one block.

    ``modulation [2, 6, D]`` holds, per stream, shift, scale and gate of the attention, then of the feed-forward; ``rope
    [N, head_dim / 2, 2]`` cosines and sines.
    """
    found = attend_part(image, text, modulation, h, c, rope, attention)
    return finish_part(image, text, modulation, h, c, *found)


def attend_part(
    image: StreamWeights, text: StreamWeights, modulation: Tensor, h: Tensor, c: Tensor, rope: Tensor, attention: Attention
) -> tuple[Tensor, Tensor]:
    """What attention finds for image ``[B, N, D]`` and text ``[B, n, D]``, before its gate."""
    of_h, of_c = modulation.unbind(0)
    num, heads = h.shape[1], h.shape[-1] // image.norm_q.shape[0]
    norms = (image.norm_q, image.norm_k), (text.norm_q, text.norm_k)
    q, k, v = joint_qkv(_qkv(image, h, of_h), _qkv(text, c, of_c), *norms, rope, heads, EPS)
    found = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2).flatten(2)
    return F.linear(found[:, :num], image.out, image.out_bias), F.linear(found[:, num:], text.out, text.out_bias)


def finish_part(
    image: StreamWeights, text: StreamWeights, modulation: Tensor, h: Tensor, c: Tensor, found: Tensor, found_c: Tensor
) -> tuple[Tensor, Tensor]:
    """The rest of the block, given what attention found."""
    of_h, of_c = modulation.unbind(0)
    return _finished(image, h, found, of_h), _finished(text, c, found_c, of_c)


def _qkv(weights: StreamWeights, h: Tensor, modulation: Tensor) -> Tensor:
    """``[B, N, 3 D]``."""
    shift, scale = modulation[0], modulation[1]
    return F.linear(modulated_norm(h, scale, shift, EPS), weights.qkv, weights.qkv_bias)


def _finished(weights: StreamWeights, h: Tensor, found: Tensor, modulation: Tensor) -> Tensor:
    """Attention's residual, then the feed-forward with its own."""
    _, _, gate, shift, scale, up_gate = modulation.unbind(0)
    h, x = add_norm(h, found, gate, scale, shift, EPS)
    return gated_add(h, F.linear(linear_gelu(x, weights.up, weights.up_bias), weights.down, weights.down_bias), up_gate)


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
    own = (norm_q.weight, norm_k.weight, out.weight, out.bias, up.weight, up.bias, down.weight, down.bias)
    return StreamWeights(*fuse(qkv), *own)
