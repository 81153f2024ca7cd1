"""What the lean forwards of several families do alike with diffusers' weights and with a latent."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orchestrator.types import Grid


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
