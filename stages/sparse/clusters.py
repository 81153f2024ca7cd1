"""Tokens in clusters, head by head, and clusters in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.sparse.kernel import spread_rows
from stages.sparse.pattern import NO_TOKEN, Blocks

ONES = 8
"""As many as keep rows of numbers aligned."""
PARTS = 3
"""In bfloat16, which together are a number of float32: products of matrices round to fewer digits than that."""
MOST_DISTANCES = 1 << 27
"""Of tokens to centres, held at once."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """``labels`` ``[heads, tokens]`` int64, and the means of each cluster's tokens ``centres [heads, num, d]`` float32.

    A cluster without tokens keeps the centre it had.
    """

    labels: Tensor
    centres: Tensor

    @property
    def counts(self) -> Tensor:
        """Tokens of each, ``[heads, num]`` int64."""
        ones = torch.ones_like(self.labels)
        return ones.new_zeros(self.centres.shape[:2]).scatter_add_(1, self.labels, ones)


def first_centres(x: Tensor, num: int) -> Tensor:
    """``num`` of the tokens ``[heads, tokens, d]``, spread evenly, as centres to begin with."""
    return x[:, spread_rows(x.shape[1], num, x.device)].float()


def clustered(x: Tensor, centres: Tensor, iterations: int) -> Clusters:
    """k-means by squared distance, so many rounds from ``centres``, of ``[heads, tokens, d]``. The host waits for nothing.

    Some heads after the other, where the distances of all would not fit. Sums are products of matrices, the same at every run.
    """
    num_at_once = max(1, MOST_DISTANCES // (x.shape[1] * centres.shape[1]))
    parts = zip(torch.split(x, num_at_once), torch.split(centres, num_at_once), strict=True)
    found = [_clustered(*part, iterations) for part in parts]
    labels, means = zip(*found, strict=True)
    return Clusters(torch.cat(labels), torch.cat(means))


def _clustered(x: Tensor, centres: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    x = with_ones(x)
    labels = nearest(x, centres)
    for index in range(iterations):
        labels = nearest(x, centres) if index else labels
        centres = _means(x, labels, centres)
    return labels, centres


def with_ones(x: Tensor) -> Tensor:
    """``x [heads, tokens, d]`` and :data:`ONES` more numbers of 1: by them products of matrices add what a centre is told for
    itself, and count tokens, without another pass over all distances."""
    return F.pad(x, (0, ONES), value=1)


def nearest(x: Tensor, centres: Tensor) -> Tensor:
    """Of each token of ``with_ones(x)``: ``[heads, tokens]``; the first where two are as near."""
    told, rest = [centres.to(x.dtype)], -0.5 * centres.square().sum(-1, keepdim=True)
    for _ in range(PARTS):
        told.append(rest.bfloat16().to(x.dtype))
        rest = rest - told[-1]
    told.append(torch.zeros_like(rest, dtype=x.dtype).expand(-1, -1, ONES - PARTS))
    return _product(x, torch.cat(told, dim=-1).transpose(1, 2)).argmax(-1)


def _means(x: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    numbers = torch.arange(centres.shape[1], device=x.device)
    sums = _product((labels.unsqueeze(1) == numbers.unsqueeze(1)).to(x.dtype), x)
    counts = sums[..., -1:]
    return torch.where(counts > 0, sums[..., :-ONES] / counts.clamp(min=1), centres)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """In float32, of matrices of half the width too."""
    return torch.bmm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()


def in_blocks(labels: Tensor, counts: Tensor, size: int) -> tuple[Blocks, Tensor]:
    """Tokens cluster by cluster, each in blocks of its own, and whose each block is ``[heads, blocks]``.

    ``labels [heads, tokens]``, ``counts [heads, clusters]``. The last block of a cluster may have gaps. As many blocks as any
    clusters of these numbers may need, for the host not to wait: those left over, at the end, have no token, and are nobody's
    (the number of clusters).
    """
    num_tokens, num = labels.shape[1], counts.shape[1]
    ends = ((counts + size - 1) // size).cumsum(1)
    starts = F.pad(ends, (1, 0))[:, :-1] * size
    order = labels.argsort(dim=1, stable=True)
    sorted_labels = labels.gather(1, order)
    rank = torch.arange(num_tokens, device=labels.device) - (counts.cumsum(1) - counts).gather(1, sorted_labels)
    num_blocks = (num_tokens + min(num, num_tokens) * (size - 1)) // size
    slots = labels.new_full((len(labels), num_blocks * size), NO_TOKEN)
    slots.scatter_(1, starts.gather(1, sorted_labels) + rank, order)
    blocks = torch.arange(num_blocks, device=labels.device).expand(len(labels), -1).contiguous()
    return Blocks(slots, size, num_tokens), torch.searchsorted(ends, blocks, right=True)
