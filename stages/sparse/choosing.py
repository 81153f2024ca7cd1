"""Rules that say which blocks of keys a block of queries keeps, by scores ``[heads, blocks of queries, blocks of keys]``."""

from __future__ import annotations

import math
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, Field
from torch import Tensor

from parallel.seam import Attention
from stages.sparse.kernel import LEAST_TILE, MOST_TILE
from stages.sparse.pattern import Blocks


def whole_tiles(size: int) -> int:
    """For a setting: a block that a GPU's kernel takes as it is. Raises ValueError for others."""
    if size % MOST_TILE and (size < LEAST_TILE or MOST_TILE % size):
        raise ValueError(f"a block is of 16, 32 or 64 tokens, or of a multiple of 128; {size} is none of these")
    return size


BlockSize = Annotated[int, Field(ge=1), AfterValidator(whole_tiles)]


def sent(x: Tensor, device: torch.device) -> Tensor:
    """``x`` of the host, on ``device``; the host does not wait for what the device has yet to do."""
    x = x.pin_memory() if device.type == "cuda" else x
    return x.to(device, non_blocking=True)


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


def block_sums(q: Tensor, k: Tensor, blocks: Blocks, dense: Attention) -> Tensor:
    """Of dense attention's weights, what all queries of a block give to all keys of another: ``[heads, n, n]`` float32.

    ``q`` and ``k [1, heads, tokens, d]`` may have more tokens after those of ``blocks``, whose keys have their share of weights.
    As exact as the kernel ``dense`` is, which runs :func:`num_passes` times: its values say which of ``d`` blocks a key is in.
    """
    width = q.shape[-1]
    firsts = range(0, num_passes(blocks, width) * width, width)
    return torch.cat([_summed(q, k, blocks, dense, first) for first in firsts], dim=-1)[..., : blocks.num]


def num_passes(blocks: Blocks, head_dim: int) -> int:
    """Of dense attention, for all sums by blocks."""
    return math.ceil(blocks.num / head_dim)


def _summed(q: Tensor, k: Tensor, blocks: Blocks, dense: Attention, first: int) -> Tensor:
    """For as many blocks of keys as a head is wide."""
    width = q.shape[-1]
    number = torch.arange(first, first + width, device=q.device)
    belongs = ((blocks.places // blocks.size).unsqueeze(-1) == number).to(q.dtype)
    belongs = F.pad(belongs, (0, 0, 0, q.shape[2] - blocks.num_tokens)).expand(q.shape[1], -1, -1).unsqueeze(0)
    found = blocks.take(dense(q, k, belongs.contiguous())[:, :, : blocks.num_tokens])[0]
    return torch.unflatten(found, 1, (-1, blocks.size)).sum(2, dtype=torch.float32)


def _marked(scores: Tensor, index: Tensor) -> Tensor:
    return torch.zeros_like(scores, dtype=torch.bool).scatter(-1, index, True)
