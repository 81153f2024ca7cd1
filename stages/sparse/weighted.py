"""Attention in which some keys count more than once: a number is added to the logits of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from stages.compiling import open_ended
from stages.sparse.kernel import MOST_VARIANTS


def weighted(q: Tensor, k: Tensor, v: Tensor, log_weights: Tensor) -> Tensor:
    """``[1, heads, tokens, d]`` to the same; ``log_weights`` float32, one for each key.

    A key of weight n is seen as n equal keys, with equal values, are.
    """
    kernel = by_scores if q.is_cuda else by_bias
    return kernel(q, k, v, log_weights)


def by_bias(q: Tensor, k: Tensor, v: Tensor, log_weights: Tensor) -> Tensor:
    """The reference: torch's own attention with a bias."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=log_weights.to(q.dtype).view(1, 1, 1, -1))


def by_scores(q: Tensor, k: Tensor, v: Tensor, log_weights: Tensor, run: Callable[..., Any] | None = None) -> Tensor:
    """By FlexAttention, ``run``; None: compiled, once for all numbers of tokens and, as a batch, of heads."""

    def raised(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return score + log_weights[key]

    out: Tensor = (run or _compiled())(*(x.transpose(0, 1) for x in (q, k, v)), score_mod=raised)
    return out.transpose(0, 1)


@functools.cache
def _compiled() -> Callable[..., Any]:
    return open_ended(flex_attention, MOST_VARIANTS)
