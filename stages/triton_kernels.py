# mypy: disable-error-code="no-untyped-def, no-any-return, import-not-found, untyped-decorator, misc"
"""Element-wise work between a block's matrix products as Triton kernels: every tensor is read once and written once.

Imported on a GPU only; ``stages.kernels`` says what each computes, in plain torch. One program per token, so any number of
tokens runs at the same speed and nothing is tuned to the first grid seen.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton


@triton.jit
def _norm(
    h,
    x,
    gate,
    scale,
    shift,
    h_out,
    y_out,
    dim,
    eps,
    BLOCK: tl.constexpr,
    ADDS: tl.constexpr,
    GATED: tl.constexpr,
    NORMS: tl.constexpr,
    ONE: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * dim
    column = tl.arange(0, BLOCK)
    real = column < dim
    v = tl.load(h + row + column, mask=real, other=0.0).to(tl.float32)
    if ADDS:
        u = tl.load(x + row + column, mask=real, other=0.0).to(tl.float32)
        if GATED:
            u *= tl.load(gate + column, mask=real, other=0.0).to(tl.float32)
        rounded = (v + u).to(h_out.dtype.element_ty)
        tl.store(h_out + row + column, rounded, mask=real)
        v = rounded.to(tl.float32)
    if NORMS:
        centred = tl.where(real, v - tl.sum(v, 0) / dim, 0.0)
        unit = centred * tl.rsqrt(tl.sum(centred * centred, 0) / dim + eps)
        a = tl.load(scale + column, mask=real, other=0.0).to(tl.float32)
        b = tl.load(shift + column, mask=real, other=0.0).to(tl.float32)
        if ONE:
            a += 1.0
        tl.store(y_out + row + column, (unit * a + b).to(y_out.dtype.element_ty), mask=real)


@triton_op("dvg::norm", mutates_args=())
def norm(h: Tensor, scale: Tensor, shift: Tensor, eps: float, plus_one: bool) -> Tensor:
    y = torch.empty_like(h)
    _launch(h, h, h, scale, shift, h, y, eps, False, False, True, plus_one)
    return y


@triton_op("dvg::add_norm", mutates_args=())
def add_norm(
    h: Tensor, x: Tensor, gate: Tensor | None, scale: Tensor, shift: Tensor, eps: float, plus_one: bool
) -> tuple[Tensor, Tensor]:
    total, y = torch.empty_like(h), torch.empty_like(h)
    _launch(h, x, h if gate is None else gate, scale, shift, total, y, eps, True, gate is not None, True, plus_one)
    return total, y


@triton_op("dvg::gated_add", mutates_args=())
def gated_add(h: Tensor, x: Tensor, gate: Tensor) -> Tensor:
    total = torch.empty_like(h)
    _launch(h, x, gate, h, h, total, h, 0.0, True, True, False, False)
    return total


def _launch(
    h: Tensor,
    x: Tensor,
    gate: Tensor,
    scale: Tensor,
    shift: Tensor,
    total: Tensor,
    y: Tensor,
    eps: float,
    adds: bool,
    gated: bool,
    norms: bool,
    one: bool,
) -> None:
    dim = h.shape[-1]
    block = triton.next_power_of_2(dim)
    grid = (h.numel() // dim,)
    warps = 4 if block <= 2048 else 8
    wrap_triton(_norm)[grid](
        h, x, gate, scale, shift, total, y, dim, eps, BLOCK=block, ADDS=adds, GATED=gated, NORMS=norms, ONE=one, num_warps=warps
    )


@triton.jit
def _turn(
    x,
    weight,
    cos,
    sin,
    eps,
    dim,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
    ACROSS: tl.constexpr,
):
    """RMS norm of a token's heads ``[HEADS, 2 HALF]``, each or all together, then the rotation of neighbouring pairs."""
    if ACROSS:
        unit = x * tl.rsqrt(tl.sum(tl.sum(x * x, 1), 0) / dim + eps)
    else:
        unit = x * tl.rsqrt(tl.sum(x * x, 1) / WIDTH + eps)[:, None]
    a, b = tl.split(tl.reshape(unit * weight, [HEADS, HALF, 2]))
    return tl.reshape(tl.join(a * cos - b * sin, b * cos + a * sin), [HEADS, WIDTH])


@triton.jit
def _qk(
    image,
    text,
    stride_i,
    stride_t,
    norm_qi,
    norm_ki,
    norm_qt,
    norm_kt,
    rope,
    q_out,
    k_out,
    v_out,
    num_i,
    num_t,
    heads,
    eps,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    ACROSS: tl.constexpr,
    COPY_V: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    batch, token = row // (num_i + num_t), row % (num_i + num_t)
    is_text = token >= num_i
    if is_text:
        source, norm_q, norm_k = text + (batch * num_t + token - num_i) * stride_t, norm_qt, norm_kt
    else:
        source, norm_q, norm_k = image + (batch * num_i + token) * stride_i, norm_qi, norm_ki
    HALF: tl.constexpr = WIDTH // 2
    column = tl.arange(0, WIDTH)
    still = tl.where(column % 2 == 0, 1.0, 0.0)
    angles = tl.load(rope + token * WIDTH + column, mask=column < tl.where(is_text, 0, WIDTH), other=still)
    cos, sin = tl.split(tl.reshape(angles, [HALF, 2]))
    head = tl.arange(0, HEADS)[:, None]
    place = head * WIDTH + column[None, :]
    real = (head < heads) & (column[None, :] < WIDTH)
    dim = heads * WIDTH
    if ACROSS:
        weight_q = tl.load(norm_q + place, mask=real, other=0.0).to(tl.float32)
        weight_k = tl.load(norm_k + place, mask=real, other=0.0).to(tl.float32)
    else:
        weight_q = tl.load(norm_q + column).to(tl.float32)[None, :]
        weight_k = tl.load(norm_k + column).to(tl.float32)[None, :]
    q = tl.load(source + place, mask=real, other=0.0).to(tl.float32)
    k = tl.load(source + dim + place, mask=real, other=0.0).to(tl.float32)
    q = _turn(q, weight_q, cos[None, :], sin[None, :], eps, dim, WIDTH, HEADS, HALF, ACROSS)
    k = _turn(k, weight_k, cos[None, :], sin[None, :], eps, dim, WIDTH, HEADS, HALF, ACROSS)
    tl.store(q_out + row * dim + place, q.to(q_out.dtype.element_ty), mask=real)
    tl.store(k_out + row * dim + place, k.to(k_out.dtype.element_ty), mask=real)
    if COPY_V:
        tl.store(v_out + row * dim + place, tl.load(source + 2 * dim + place, mask=real), mask=real)


@triton_op("dvg::qk_rope", mutates_args=())
def qk_rope(qkv: Tensor, norm_q: Tensor, norm_k: Tensor, rope: Tensor, heads: int, eps: float) -> tuple[Tensor, Tensor]:
    batch, num, _ = qkv.shape
    width = rope.shape[1] * 2
    q, k = (qkv.new_empty(batch, num, heads, width) for _ in range(2))
    across = norm_q.shape[0] != width
    _launch_qk(qkv, qkv, (norm_q, norm_k, norm_q, norm_k), rope, (q, k, q), num, 0, heads, width, eps, across, False)
    return q, k


@triton_op("dvg::joint_qkv", mutates_args=())
def joint_qkv(
    image: Tensor,
    text: Tensor,
    norm_qi: Tensor,
    norm_ki: Tensor,
    norm_qt: Tensor,
    norm_kt: Tensor,
    rope: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_i, _ = image.shape
    num_t, width = text.shape[1], rope.shape[1] * 2
    q, k, v = (image.new_empty(batch, num_i + num_t, heads, width) for _ in range(3))
    norms = norm_qi, norm_ki, norm_qt, norm_kt
    _launch_qk(image, text, norms, rope, (q, k, v), num_i, num_t, heads, width, eps, False, True)
    return q, k, v


def _launch_qk(
    image: Tensor,
    text: Tensor,
    norms: tuple[Tensor, ...],
    rope: Tensor,
    outs: tuple[Tensor, ...],
    num_i: int,
    num_t: int,
    heads: int,
    width: int,
    eps: float,
    across: bool,
    copy_v: bool,
) -> None:
    grid = (image.shape[0] * (num_i + num_t),)
    wrap_triton(_qk)[grid](
        image,
        text,
        image.stride(1),
        text.stride(1),
        *norms,
        rope,
        *outs,
        num_i,
        num_t,
        heads,
        eps,
        HEADS=triton.next_power_of_2(heads),
        WIDTH=width,
        ACROSS=across,
        COPY_V=copy_v,
        num_warps=8,
    )
