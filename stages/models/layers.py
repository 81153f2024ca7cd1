"""What the lean forwards of several families do alike with diffusers' weights and with a latent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from orchestrator.types import Grid
from parallel.groups import Group
from parallel.layout import Layout
from parallel.sharding import Sharded, shard
from stages.models.base import Positions
from stages.token_sets import TokenSet

Bundle = TypeVar("Bundle", bound=tuple[object, ...])
"""The weights of one layer."""
Tables = tuple[Tensor, ...]
"""One for each layer; layers that rotate alike have the same one."""


def kept(layers: Iterable[Bundle], group: Group | None) -> tuple[Bundle, ...] | Sharded[Bundle]:
    """The weights of all layers, or with a group this rank's share of them: gone through in the same way."""
    return tuple(layers) if group is None else shard(layers, group)


def require_all(layers: tuple[Bundle, ...] | Sharded[Bundle], layout: Layout | None) -> None:
    """Raises ValueError where layers are spread over ranks that are not all in ``layout``."""
    if isinstance(layers, Sharded):
        layers.require(layout)


def deciding(layers: tuple[Bundle, ...] | Sharded[Bundle], layout: Layout | None) -> Group | None:
    """The ranks that must leave out the same forwards: those that share the tokens, or all that gather layers together."""
    if layout is None:
        return None
    return layout.whole if isinstance(layers, Sharded) else layout.sequence


def branches_apart(layers: tuple[Bundle, ...] | Sharded[Bundle], layout: Layout | None) -> bool:
    """Whether some of the ranks that :func:`deciding` gives do the other branch of guidance."""
    return layout is not None and isinstance(layers, Sharded) and layout.num_branches > 1


def every(layers: tuple[Bundle, ...] | Sharded[Bundle]) -> tuple[Bundle, ...]:
    """All layers, for those who take them out of turn. Raises ValueError where they are spread over ranks."""
    if isinstance(layers, Sharded):
        raise ValueError("the layers are spread over ranks, which gather them in turn: only whole forwards can be left out")
    return layers


def attended(dim: int, tokens: int, hidden: int, cross: bool = False) -> float:
    """Share of a block's operations that self-attention takes, its four linear layers included.

    ``hidden`` is the feed-forward's width; with ``cross`` two linear layers for attention to the prompt are among the rest.
    """
    attention = 8 * dim * dim + 4 * tokens * dim
    return attention / (attention + 4 * dim * hidden + (4 * dim * dim if cross else 0))


def per_layer(
    num_layers: int,
    grid: Grid,
    positions: Positions | None,
    table: Callable[[Grid], Tensor],
    mine: Callable[[Tensor], Tensor],
    mixed: TokenSet | None = None,
) -> Tables:
    """Each layer's rotations: ``mine`` (this rank's rows) of ``table(grid)``, whose rows ``[t h w, ...]`` count frames from 0.

    The layers of ``positions`` have the rows of the same frames in the whole video, as VGDFR rotates them (arXiv 2504.12259).
    Tokens of two grids are all counted on the finer one.
    """
    local = mine(table(grid) if mixed is None else mixed.rotations(table))
    if positions is None or not positions.layers:
        return (local,) * num_layers
    frames = table((positions.frames[-1] + 1, *grid[1:])).unflatten(0, (-1, grid[1] * grid[2]))
    rows = frames[list(positions.frames)].flatten(0, 1)
    whole = mine(rows if mixed is None else mixed.rotations(lambda _: rows))
    return tuple(whole if index in positions.layers else local for index in range(num_layers))


def fuse(linears: Sequence[nn.Linear]) -> tuple[nn.Parameter, nn.Parameter]:
    """The weights of several layers as one product. The layers become views of it, so nothing is held twice.

    As parameters, whose sizes a compiler with dynamic shapes takes for constants.
    """
    weight = torch.cat([linear.weight.data for linear in linears])
    bias = torch.cat([linear.bias.data for linear in linears])
    for linear, w, b in zip(linears, weight.chunk(len(linears)), bias.chunk(len(linears)), strict=True):
        linear.weight.data, linear.bias.data = w, b
    return nn.Parameter(weight, requires_grad=False), nn.Parameter(bias, requires_grad=False)


def patches(x: Tensor, patch: Grid) -> Grid:
    """The grid of patches of a latent ``[B, C, T, H, W]``. Raises ValueError if its cells are no multiple of the patch."""
    cells = x.shape[2:]
    if any(size % step for size, step in zip(cells, patch, strict=True)):
        raise ValueError(f"latent grid {tuple(cells)} is not a multiple of the patch {patch}")
    t, h, w = (size // step for size, step in zip(cells, patch, strict=True))
    return t, h, w
