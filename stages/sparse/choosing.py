"""Rules that say which blocks of keys a block of queries keeps, by scores ``[heads, blocks of queries, blocks of keys]``."""

from __future__ import annotations

import torch
from torch import Tensor

from stages.sparse.pattern import Blocks

MOST_SCORES = 1 << 26
"""Weights of single tokens that are held at once, of one head, while they are summed by blocks: 256 MiB."""


def pooled(q: Tensor, k: Tensor, blocks: Blocks) -> Tensor:
    """Attention among the mean queries and keys of blocks, each row a softmax; of ``[1, heads, tokens, d]``."""
    scores = blocks.mean(q) @ blocks.mean(k).transpose(1, 2)
    return torch.softmax(scores * q.shape[-1] ** -0.5, dim=-1)


def largest(scores: Tensor, num: int) -> Tensor:
    """Which of ``[..., n]`` are the ``num`` largest of their row."""
    return _marked(scores, scores.topk(num, dim=-1).indices)


def reaching(scores: Tensor, mass: float) -> Tensor:
    """Which of ``[..., n]`` are in the fewest of their row that together come to ``mass``; none for 0."""
    ordered, order = scores.sort(dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, order, before < mass)


def block_sums(q: Tensor, k: Tensor, blocks: Blocks, most: int = MOST_SCORES) -> Tensor:
    """Of dense attention's weights, what all queries of a block give to all keys of another: ``[heads, n, n]`` float32.

    Exact, some rows of blocks after the other, so that ``most`` weights are held at once, or those of one row of blocks.
    """
    queries, keys = blocks.take(q)[0] * q.shape[-1] ** -0.5, blocks.take(k)[0]
    is_empty = (blocks.slots < 0).expand(len(queries), -1)
    step = max(1, most // (keys.shape[1] * blocks.size)) * blocks.size
    found = [_summed(*head, blocks.size, step) for head in zip(queries, keys, is_empty, strict=True)]
    return torch.stack(found)


def _summed(q: Tensor, k: Tensor, is_empty: Tensor, size: int, step: int) -> Tensor:
    """Of one head: ``[slots, d]`` to ``[n, n]``."""
    rows = []
    for queries, gaps in zip(torch.split(q, step), torch.split(is_empty, step), strict=True):
        weights = torch.softmax((queries @ k.T).float().masked_fill_(is_empty, -torch.inf), dim=-1)
        sums = torch.unflatten(weights, 1, (-1, size)).sum(-1).masked_fill_(gaps.unsqueeze(1), 0)
        rows.append(torch.unflatten(sums, 0, (-1, size)).sum(1))
    return torch.cat(rows)


def _marked(scores: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True)
