"""Attention within a pattern: by a dense mask, exactly, on a CPU; by torch's FlexAttention, block by block, on a GPU."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from stages.sparse.pattern import NO_TOKEN, Pattern


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """``[1, heads, tokens, d]`` to the same; every query has to see one key at least.

    Text tokens are in the pattern (``Pattern.with_text``).
    """
    kernel = by_blocks if q.is_cuda else by_mask
    return kernel(q, k, v, pattern)


def by_mask(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """The reference: a mask of tokens, memory quadratic in their number."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.pairs().unsqueeze(0))


def by_blocks(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, run: Callable[..., Any] | None = None) -> Tensor:
    """Only kept pairs of blocks are computed. ``run`` is FlexAttention; None: compiled."""
    taken = pattern.queries.take(q), pattern.keys.take(k), pattern.keys.take(v)
    out: Tensor = (run or compiled())(*taken, block_mask=block_mask(pattern))
    return pattern.queries.put(out)


def block_mask(pattern: Pattern) -> BlockMask:
    """Of slots. Blocks of keys with an empty slot are looked at key by key, all others are taken whole."""
    queries, keys, keep = pattern.queries, pattern.keys, pattern.keep
    partly = (keys.counts < keys.size).unsqueeze(1)
    some, whole = _listed(keep & partly), _listed(keep & ~partly)
    is_token = (keys.slots != NO_TOKEN).expand(len(keep), -1)

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_token[head, key] & keep[head, query // queries.size, key // keys.size]

    return BlockMask.from_kv_blocks(
        *some, *whole,
        BLOCK_SIZE=(queries.size, keys.size),
        mask_mod=seen,
        seq_lengths=(queries.slots.shape[1], keys.slots.shape[1]),
    )  # fmt: skip


def _listed(keep: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees ``[1, heads, n]``, and which, those first ``[1, heads, n, m]``."""
    order = torch.argsort((~keep).to(torch.uint8), dim=-1, stable=True)
    return keep.sum(-1, dtype=torch.int32).unsqueeze(0), order.to(torch.int32).unsqueeze(0)


@functools.cache
def compiled() -> Callable[..., Any]:
    """Once for all grids: numbers of tokens and blocks are left open."""
    return torch.compile(flex_attention, dynamic=True)


def recall(q: Tensor, k: Tensor, pattern: Pattern, num_rows: int = 64) -> Tensor:
    """Of the weights that dense attention gives, what falls on kept pairs: a mean over ``num_rows`` queries and all heads.

    The queries are spread evenly over ``[1, heads, tokens, d]``. A number on the device.
    """
    rows = spread_rows(q.shape[2], num_rows, q.device)
    weights = torch.softmax((q[0, :, rows] @ k[0].transpose(1, 2)).float() * q.shape[-1] ** -0.5, dim=-1)
    return (weights * pattern.seen_by(rows)).sum(-1).mean()


def spread_rows(num_tokens: int, num_rows: int, device: torch.device) -> Tensor:
    """The middles of ``num_rows`` equal parts of the tokens; all tokens where there are fewer."""
    num = min(num_rows, num_tokens)
    return (torch.arange(num, device=device) * 2 + 1) * num_tokens // (2 * num)
