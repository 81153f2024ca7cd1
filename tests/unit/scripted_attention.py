"""Queries and keys that say which blocks matter, and where a method that attends is told it is."""

from __future__ import annotations

import math
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
LEVEL = NoiseLevel(0.5, 500.0, 450.0)


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def method(name: str, **settings: Any) -> Any:
    """Of one stage."""
    found = find(name, "accelerator")
    return found.make(read_settings(found, settings), GEOMETRY)


def noise(grid: Grid, heads: int = 2, head_dim: int = 8, num_text: int = 0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, with large scores."""
    num = math.prod(grid) + num_text
    q, k, v = torch.randn(3, 1, heads, num, head_dim, generator=torch.Generator().manual_seed(seed))
    return 2 * q, 2 * k, v


def stage(number: int = 0, num_stages: int = 1, num_steps: int = 10) -> StageEvent:
    """One of several, each with so many steps."""
    steps = range(number * num_steps, (number + 1) * num_steps)
    return StageEvent((1, 1, 1), steps, num_stages * num_steps, number, number < num_stages - 1)


def here(
    grid: Grid,
    event: StageEvent | None = None,
    step: int = 5,
    layer: int = 3,
    heads: range = range(2),
    log: Log | None = None,
    branch: int = 0,
) -> Here:
    now = Now(step, LEVEL, branch, event or stage())
    return Here(now, layer, 7, heads, grid, math.prod(grid), log or Log(7))


def within(q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> Tensor:
    """Attention under ``seen [heads, tokens, tokens]``, as it is defined."""
    scores = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(~seen, -torch.inf)
    return torch.softmax(scores, dim=-1) @ v
