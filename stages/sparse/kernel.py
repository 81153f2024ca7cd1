"""Attention within a pattern: by a dense mask, exactly, on a CPU; by torch's FlexAttention, block by block, on a GPU."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

from stages.compiling import open_ended
from stages.sparse.pattern import NO_TOKEN, Pattern

LEAST_TILE, MOST_TILE = 64, 128
"""Slots that the kernel takes at once, of queries and of keys. In tiles of 32 torch 2.11 computes wrongly (Hopper)."""
MOST_VARIANTS = 256
"""Of the compiled kernel: by sizes of blocks, widths of heads, types, and whether there is more than one head."""


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """``[1, heads, tokens, d]`` to the same; every query has to see one key at least.

    Text tokens are in the pattern (``Pattern.with_text``). On a GPU blocks of 128 queries and 64 or 128 keys are fast; those that
    are no multiple of 64 are filled up to one, and cost as much.
    """
    kernel = by_blocks if q.is_cuda else by_mask
    return kernel(q, k, v, pattern)


def by_mask(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """The reference: a mask of tokens, memory quadratic in their number."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=pattern.pairs().unsqueeze(0))


def by_blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    run: Callable[..., Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Tensor:
    """Only kept pairs of blocks are computed. ``run`` is FlexAttention; None: compiled. ``options`` go before its own."""
    given = filled_up(pattern)
    out: Tensor = _run(q, k, v, given, run, options)
    return given.queries.put(out.transpose(0, 1))


def attend_with_sums(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """:func:`attend`, and the logarithm of each query's sum of exponentials over keys seen, ``[1, heads, tokens]``."""
    kernel = by_blocks_with_sums if q.is_cuda else by_mask_with_sums
    return kernel(q, k, v, pattern)


def by_mask_with_sums(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> tuple[Tensor, Tensor]:
    """The reference."""
    scores = (q @ k.transpose(2, 3)).float() * q.shape[-1] ** -0.5
    return by_mask(q, k, v, pattern), scores.masked_fill(~pattern.pairs(), -torch.inf).logsumexp(-1)


def by_blocks_with_sums(
    q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, run: Callable[..., Any] | None = None
) -> tuple[Tensor, Tensor]:
    """As :func:`by_blocks`."""
    given = filled_up(pattern)
    out, more = _run(q, k, v, given, run, {}, return_aux=AuxRequest(lse=True))
    put = given.queries.put
    return put(out.transpose(0, 1)), put(more.lse.transpose(0, 1).unsqueeze(-1)).squeeze(-1)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    run: Callable[..., Any] | None,
    options: Mapping[str, Any] | None,
    **more: Any,
) -> Any:
    """Heads go as a batch, whose size the compiled kernel leaves open: ``[heads, 1, slots, d]``."""
    queries, keys = pattern.queries, pattern.keys
    taken = (x.transpose(0, 1) for x in (queries.take(q), keys.take(k), keys.take(v)))
    told = {**kernel_options(queries.size, keys.size, q.dtype), **(options or {})}
    mask = block_mask(pattern, told_apart=run is not None)
    return (run or compiled())(*taken, block_mask=mask, kernel_options=told, **more)


def filled_up(pattern: Pattern) -> Pattern:
    """The same in blocks that are made of the kernel's tiles: empty slots behind each where it has too few."""
    queries, keys = (blocks.filled_up(-blocks.size % LEAST_TILE) for blocks in (pattern.queries, pattern.keys))
    return Pattern(queries, keys, pattern.keep)


def tile(block: int) -> int:
    """Slots of the largest tile, a power of two, that a block of so many is made of; ``MOST_TILE`` at most."""
    return math.gcd(block, MOST_TILE)


def kernel_options(query_block: int, key_block: int, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """For blocks of so many slots. These are whole blocks, so no border is looked for.

    Tiles are the kernel's own choice where blocks are made of its largest ones, else as large as blocks, and memory next to the
    arithmetic, allow. Hopper's engine for copies, which torch looks for itself, saves 7 % of the time.
    """
    options: dict[str, Any] = {"IS_DIVISIBLE": True, "USE_TMA": dtype.itemsize == 2}
    if tile(query_block) < MOST_TILE:
        options["BLOCK_M"] = min(tile(query_block), 32 if dtype == torch.float32 else 64)
    if tile(key_block) < MOST_TILE:
        options["BLOCK_N"] = min(tile(key_block), 64)
    return options


def block_mask(pattern: Pattern, told_apart: bool = True) -> BlockMask:
    """Of slots, heads as a batch. Blocks of keys with an empty slot are looked at key by key, all others are taken whole.

    ``told_apart``: what is kept is told key by key too, for FlexAttention uncompiled, which looks at no lists of blocks.
    """
    queries, keys, keep = pattern.queries, pattern.keys, pattern.keep
    counts, heads = keys.counts.unsqueeze(1), len(pattern.keep)
    some, whole = _listed(keep & (counts > 0) & (counts < keys.size)), _listed(keep & (counts == keys.size))
    is_token = (keys.slots != NO_TOKEN).expand(heads, -1).contiguous()

    def has_token(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_token[batch, key]

    def is_kept(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_token[batch, key] & keep[batch, query // queries.size, key // keys.size]

    return BlockMask.from_kv_blocks(
        *some, *whole,
        BLOCK_SIZE=(queries.size, keys.size),
        mask_mod=is_kept if told_apart else has_token,
        seq_lengths=(queries.slots.shape[1], keys.slots.shape[1]),
        compute_q_blocks=False,  # the lists that only a gradient needs; sorting them takes longer than attention
    )  # fmt: skip


def _listed(keep: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees ``[heads, 1, n]``, and which, those first ``[heads, 1, n, m]``."""
    num = keep.shape[-1]
    place = torch.where(keep, keep.cumsum(-1) - 1, num)
    which = torch.arange(num, dtype=torch.int32, device=keep.device).expand_as(keep)
    listed = torch.zeros(*keep.shape[:-1], num + 1, dtype=torch.int32, device=keep.device).scatter_(-1, place, which)
    return keep.sum(-1, dtype=torch.int32).unsqueeze(1), listed[..., :num].contiguous().unsqueeze(1)


@functools.cache
def compiled() -> Callable[..., Any]:
    """FlexAttention, once for each size of block, whatever the numbers of tokens, blocks and heads (``MOST_VARIANTS``).

    Uncompiled it would make a matrix of all pairs of tokens, so beyond that many it raises.
    """
    return open_ended(flex_attention, MOST_VARIANTS)


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
