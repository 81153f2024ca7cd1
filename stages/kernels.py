"""The element-wise pieces of a transformer block, each in one pass over memory: Triton on a GPU, plain torch elsewhere.

They take bf16 or fp16 activations ``[B, N, D]``, compute in float32 and round once. Modulations are ``[D]``.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

Norms = tuple[Tensor, Tensor]
"""Weights of the norms of queries and keys."""


def _fused(h: Tensor, *rows: Tensor) -> bool:
    """Whether the Triton kernels take these: on a GPU, 16-bit, one modulation for all tokens, of which there are some."""
    return h.is_cuda and h.element_size() == 2 and h.shape[1] > 0 and all(row.ndim == 1 for row in rows)


def _turns(qkv: Tensor, rope: Tensor) -> bool:
    """Whether the Triton kernel takes heads of this width: powers of two."""
    half: int = rope.shape[1]
    return _fused(qkv) and not rope.is_complex() and half & (half - 1) == 0


def modulated_norm(h: Tensor, scale: Tensor, shift: Tensor, eps: float, plus_one: bool = True) -> Tensor:
    """Layer norm, times ``scale`` (or ``1 + scale``), plus ``shift``; they may also be ``[N, D]``."""
    if _fused(h, scale, shift):
        from stages import triton_kernels

        fused: Tensor = triton_kernels.norm(h.contiguous(), scale, shift, eps, plus_one)
        return fused
    factor = scale.float() + 1 if plus_one else scale.float()
    if scale.ndim == 1:
        return F.layer_norm(h.float(), h.shape[-1:], factor, shift.float(), eps).to(h.dtype)
    return torch.addcmul(shift.float(), F.layer_norm(h.float(), h.shape[-1:], eps=eps), factor).to(h.dtype)


def gated_add(h: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    """``h + x * gate``, summed in float32."""
    if _fused(h, gate):
        from stages import triton_kernels

        fused: Tensor = triton_kernels.gated_add(h, x, gate)
        return fused
    return torch.addcmul(h.float(), x.float(), gate.float()).to(h.dtype)


def add_norm(
    h: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, plus_one: bool = True
) -> tuple[Tensor, Tensor]:
    """The residual sum ``h + x * gate`` (gate None: 1) and its :func:`modulated_norm`."""
    rows = (scale, shift) if gate is None else (gate, scale, shift)
    if _fused(h, *rows):
        from stages import triton_kernels

        fused: tuple[Tensor, Tensor] = triton_kernels.add_norm(h, x, gate, scale, shift, eps, plus_one)
        return fused
    h = h + x if gate is None else gated_add(h, x, gate)
    return h, modulated_norm(h, scale, shift, eps, plus_one)


def qk_rope(qkv: Tensor, norm_q: Tensor, norm_k: Tensor, rope: Tensor, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    """Queries and keys ``[B, N, heads, d]``, normed and rotated, of ``qkv [B, N, 3 D]``.

    The RMS norm is over each head (weights ``[d]``) or all together (``[D]``). ``rope [N, d / 2, 2]`` holds cosines and sines.
    """
    if _turns(qkv, rope):
        from stages import triton_kernels

        fused: tuple[Tensor, Tensor] = triton_kernels.qk_rope(qkv, norm_q, norm_k, rope, heads, eps)
        return fused
    q, k, _ = split_qkv(qkv, heads)
    return rotated(normed(q, norm_q, eps), rope).to(qkv.dtype), rotated(normed(k, norm_k, eps), rope).to(qkv.dtype)


def joint_qkv(
    image: Tensor,
    text: Tensor,
    image_norms: tuple[Tensor, Tensor],
    text_norms: tuple[Tensor, Tensor],
    rope: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values ``[B, N + n, heads, d]`` of image tokens, which are rotated, followed by text tokens."""
    if _turns(image, rope):
        from stages import triton_kernels

        fused: tuple[Tensor, Tensor, Tensor] = triton_kernels.joint_qkv(image, text, *image_norms, *text_norms, rope, heads, eps)
        return fused
    q, k = qk_rope(image, *image_norms, rope, heads, eps)
    text_q, text_k, text_v = split_qkv(text, heads)
    text_q, text_k = (normed(x, norm, eps).to(q.dtype) for x, norm in zip((text_q, text_k), text_norms, strict=True))
    v = split_qkv(image, heads)[2]
    return torch.cat([q, text_q], dim=1), torch.cat([k, text_k], dim=1), torch.cat([v, text_v], dim=1)


def split_qkv(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views ``[B, N, heads, d]``."""
    q, k, v = torch.unflatten(qkv, -1, (3, heads, -1)).unbind(2)
    return q, k, v


def normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMS norm in float32 of ``x [B, N, heads, d]``: over each head, or over all where ``weight`` is as long."""
    if weight.shape[0] == x.shape[-1]:
        return F.rms_norm(x.float(), x.shape[-1:], weight.float(), eps)
    return torch.unflatten(F.rms_norm(x.float().flatten(2), weight.shape, weight.float(), eps), -1, x.shape[2:])


def rotated(x: Tensor, rope: Tensor) -> Tensor:
    """Each neighbouring pair (a, b) of float32 ``x [B, N, heads, d]`` becomes (a cos - b sin, b cos + a sin).

    ``rope`` may also be complex ``[N, d / 2]``, which is the fastest form on a CPU.
    """
    if rope.is_complex():
        pairs = torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)).contiguous())
        return torch.view_as_real(pairs * rope.unsqueeze(1)).flatten(-2)
    cos, sin = rope.unsqueeze(1).unbind(-1)
    a, b = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``gelu(x W^T + b)``, tanh form. On a GPU the GELU is part of the product, which spares two passes."""
    if _fused(x):
        out: Tensor = torch._addmm_activation(bias, x.flatten(0, 1), weight.t(), use_gelu=True)
        return out.view(*x.shape[:2], -1)
    return F.gelu(F.linear(x, weight, bias), approximate="tanh")
