"""One layer's attention as a method is asked for it, on small random queries, keys and values."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from orchestrator.geometry import model
from orchestrator.methods import find, read_settings
from orchestrator.types import Grid
from stages.accelerators.attending import Here, Log
from stages.accelerators.base import Now, StageEvent
from stages.sampling import NoiseLevel

GEOMETRY = model("wan-mini")
HEADS = 2


def made(name: str, **settings: Any) -> Any:
    method = find(name, "accelerator")
    return method.make(read_settings(method, settings), GEOMETRY)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


@functools.cache
def qkv(num_tokens: int, seed: int = 1, heads: int = HEADS) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, heads, num_tokens, 8, generator=torch.Generator().manual_seed(seed))
    return q, k, v


def here(
    tokens: Grid, log: Log, step: int = 0, layer: int = 0, branch: int = 0, steps: range = range(10), heads: range = range(HEADS)
) -> Here:
    """Of a clip of 10 steps, on a grid of so many tokens; ``steps`` are its stage's."""
    event = StageEvent((tokens[0], tokens[1] * 2, tokens[2] * 2), steps, 10, 0, crosses=False)
    level = NoiseLevel(1 - step / 10, 1000.0 - 100 * step, 900.0 - 100 * step)
    return Here(Now(step, level, branch, event), layer, log.num_layers, heads, tokens, tokens[0] * tokens[1] * tokens[2], log)


def masked(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention over the pairs ``seen [heads or 1, tokens, tokens]``, by the definition."""
    scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
