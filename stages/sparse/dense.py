"""Dense attention that tells each query's sum of weights too, as the fast kernels on a GPU find it anyway."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.backends.cuda import SDPAParams

from stages.sparse.kernel import MOST_TILE, attend_with_sums
from stages.sparse.pattern import Pattern, in_a_row

LEAST_WIDTH = 8
"""Numbers of a head, of which torch's flash kernel takes multiples; called as it is here nobody pads them for it."""


def dense_with_sums(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """``[1, heads, tokens, d]`` to the same, and the logarithm of each query's sum of exponentials, float32 without ``d``.

    On a GPU by cuDNN's kernel, or torch's flash, where one of them takes the tensors, in bfloat16 or float16; else by the kernel
    of patterns, over all pairs. On a CPU by the reference.
    """
    kernel = _fused(q, k, v) if q.is_cuda else _by_pattern
    out, sums, *_ = kernel(q, k, v)
    return out, sums.reshape(q.shape[:3])


def _fused(q: Tensor, k: Tensor, v: Tensor) -> Callable[..., Any]:
    """The fastest of the kernels that take these tensors: torch asks for their shapes and types, not for values."""
    asked = SDPAParams(q, k, v, None, 0.0, False, False)
    if torch.backends.cuda.can_use_cudnn_attention(asked):
        return _cudnn
    if q.shape[-1] % LEAST_WIDTH == 0 and torch.backends.cuda.can_use_flash_attention(asked):
        return _flash
    return _by_pattern


def _cudnn(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True)


def _flash(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)


def _by_pattern(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    blocks = in_a_row(q.shape[2], MOST_TILE, q.device)
    everything = torch.ones(q.shape[1], blocks.num, blocks.num, dtype=torch.bool, device=q.device)
    return attend_with_sums(q, k, v, Pattern(blocks, blocks, everything))
