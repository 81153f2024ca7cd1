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

LEAST_TILE, MOST_TILE = 16, 128
"""Slots that the kernel takes at once, of queries and of keys."""
MOST_VARIANTS = 256
"""Of the compiled kernel: by sizes of blocks, widths of heads, types, and whether there is more than one head."""
Lists = tuple[Tensor, Tensor, Tensor, Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
    """``[1, heads, tokens, d]`` to the same; every query has to see one key at least.

    Text tokens are in the pattern (``Pattern.with_text``). On a GPU blocks of 128 queries and 64 or 128 keys are fast, those of
    other multiples of 16 slower; the rest are filled up to such a one.
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
    return _run(q, k, v, pattern, run, options or {}, False)[0]


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
    out, sums = _run(q, k, v, pattern, run, {}, True)
    return out, sums.squeeze(-1)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    run: Callable[..., Any] | None,
    options: Mapping[str, Any],
    with_sums: bool,
) -> tuple[Tensor, ...]:
    """Heads go as a batch, whose size the compiled kernel leaves open: ``[heads, 1, slots, d]``."""
    given = filled_up(pattern)
    queries, keys = given.queries, given.keys
    taken = (x.transpose(0, 1) for x in (queries.take(q), keys.take(k), keys.take(v)))
    told = {**kernel_options(queries.size, keys.size, q.dtype), **options}
    if run is None:
        found = compiled()(*taken, *lists_of(given), _is_token(given), (queries.size, keys.size), told, with_sums)
    else:
        found = run(*taken, block_mask=block_mask(given), kernel_options=told, return_aux=AuxRequest(lse=with_sums))
    out, more = found
    parts = (out, more.lse.unsqueeze(-1)) if with_sums else (out,)
    return tuple(queries.put(part.transpose(0, 1)) for part in parts)


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
    is_large = min(tile(query_block), tile(key_block)) >= 64
    options: dict[str, Any] = {"IS_DIVISIBLE": True, "USE_TMA": is_large and dtype.itemsize == 2}
    if tile(query_block) < MOST_TILE:
        options["BLOCK_M"] = min(tile(query_block), 32 if dtype == torch.float32 else 64)
    if tile(key_block) < MOST_TILE:
        options["BLOCK_N"] = min(tile(key_block), 64)
    return options


def block_mask(pattern: Pattern) -> BlockMask:
    """Of slots, heads as a batch; for FlexAttention uncompiled, which looks at no lists of blocks but only at pairs of slots."""
    queries, keys, keep, is_token = pattern.queries, pattern.keys, pattern.keep, _is_token(pattern)

    def is_kept(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_token[batch, key] & keep[batch, query // queries.size, key // keys.size]

    lengths = queries.slots.shape[1], keys.slots.shape[1]
    return _masked(lists_of(pattern), (queries.size, keys.size), lengths, is_kept)


def _masked(lists: Lists, sizes: tuple[int, int], lengths: tuple[int, int], is_seen: Callable[..., Tensor]) -> BlockMask:
    nothing = [None] * 4  # the lists that only a gradient needs; making them takes longer than attention
    return BlockMask(lengths, *lists, *nothing, BLOCK_SIZE=sizes, mask_mod=is_seen)  # type: ignore[arg-type]


def _is_token(pattern: Pattern) -> Tensor:
    """Whether there is a token in each slot of keys, ``[heads, slots]``."""
    return (pattern.keys.slots != NO_TOKEN).expand(len(pattern.keep), -1).contiguous()


def lists_of(pattern: Pattern) -> Lists:
    """Blocks of keys with an empty slot, looked at key by key, and all others, which are taken whole: how many, and which."""
    keys, keep = pattern.keys, pattern.keep
    counts = keys.counts.unsqueeze(1)
    return *_listed(keep & (counts > 0) & (counts < keys.size)), *_listed(keep & (counts == keys.size))


def _listed(keep: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of keys each block of queries sees ``[heads, 1, n]``, and which, those first ``[heads, 1, n, m]``."""
    num = keep.shape[-1]
    place = torch.where(keep, keep.cumsum(-1) - 1, num)
    which = torch.arange(num, dtype=torch.int32, device=keep.device).expand_as(keep)
    listed = torch.zeros(*keep.shape[:-1], num + 1, dtype=torch.int32, device=keep.device).scatter_(-1, place, which)
    return keep.sum(-1, dtype=torch.int32).unsqueeze(1), listed[..., :num].contiguous().unsqueeze(1)


def _within(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    num_some: Tensor,
    some: Tensor,
    num_whole: Tensor,
    whole: Tensor,
    is_token: Tensor,
    sizes: tuple[int, int],
    options: Mapping[str, Any],
    with_sums: bool,
) -> Any:
    """FlexAttention in what is to be compiled."""

    def has_token(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_token[batch, key]

    mask = _masked((num_some, some, num_whole, whole), sizes, (q.shape[2], k.shape[2]), has_token)
    aux = AuxRequest(lse=True) if with_sums else AuxRequest()
    return flex_attention(q, k, v, block_mask=mask, kernel_options=options, return_aux=aux)


@functools.cache
def compiled() -> Callable[..., Any]:
    """:func:`_within`, once for each size of block, whatever the numbers of tokens, blocks and heads (``MOST_VARIANTS``).

    Uncompiled it would make a matrix of all pairs of tokens, so beyond that many it raises.
    """
    return open_ended(_within, MOST_VARIANTS)


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
