"""Nested anchors and the resizes between two grids of one video: DVG's equations 11 and 12 (arXiv 2605.21042).

A stage's *axes* are the final-grid indices of its cells along time, height and width. They are nested: a coarse stage's
indices are indices of every finer stage too, so a cell keeps its place, its value and its noise from stage to stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.dvg_config import ResizeMode, SmoothingPadding
from orchestrator.types import Grid

Axis = tuple[int, ...]
Axes = tuple[Axis, Axis, Axis]


@lru_cache(maxsize=256)
def nested_axes(grids: tuple[Grid, ...]) -> tuple[Axes, ...]:
    """Final-grid indices of each stage's cells; the last stage is the final grid. Raises ValueError if a grid shrinks."""
    per_dim = [_nested([grid[dim] for grid in grids]) for dim in range(3)]
    return tuple((t, h, w) for t, h, w in zip(*per_dim, strict=True))


def _nested(sizes: Sequence[int]) -> list[Axis]:
    if sizes[0] < 1 or any(after < before for before, after in pairwise(sizes)):
        raise ValueError(f"stage sizes {list(sizes)} must start at 1 or more and never shrink")
    axes = [tuple(range(sizes[-1]))]
    for size in reversed(sizes[:-1]):
        finer = axes[0]
        axes.insert(0, tuple(finer[i] for i in _anchors(size, len(finer))))
    return axes


def _anchors(num: int, length: int) -> list[int]:
    """Positions of ``num`` anchors on an axis of ``length``, both ends included.

    Neighbours are more than one cell apart before rounding, or all on whole cells, so no two fall on one cell.
    """
    if num == 1:
        return [0]
    return [round(i * (length - 1) / (num - 1)) for i in range(num)]


def resize(x: Tensor, source: Axes, target: Axes, mode: ResizeMode) -> Tensor:
    """A clean latent [B, C, T, H, W] on the cells ``source``, brought to the cells ``target``.

    Every mode but ``trilinear`` and the heights and widths of ``temporal_interp_spatial_area`` leaves the source's values
    unchanged at their own cells. Raises ValueError if ``x`` is not on ``source``, or the target lacks one of its cells.
    """
    if tuple(x.shape[2:]) != tuple(map(len, source)):
        raise ValueError(f"the latent is {tuple(x.shape[2:])} cells, but its stage has {tuple(map(len, source))}")
    positions = _positions(source, target)
    size = (len(target[0]), len(target[1]), len(target[2]))
    if mode == "trilinear":
        return F.interpolate(x, size=size, mode="trilinear", align_corners=False)
    if mode == "temporal_interp_spatial_interp":
        y = _interpolate(_interpolate(x, positions[1], size[1], 3), positions[2], size[2], 4)
    else:
        y = _area(x, size[1], size[2])
        if mode == "temporal_interp_spatial_restore":
            rows, columns = on_device(positions[1], x.device), on_device(positions[2], x.device)
            y[..., rows[:, None], columns] = x
    return _interpolate(y, positions[0], size[0], 2)


def _positions(source: Axes, target: Axes) -> Axes:
    """Where each source cell lies in the target's own counting."""
    places = [{index: i for i, index in enumerate(axis)} for axis in target]
    for dim, axis in enumerate(source):
        if missing := [index for index in axis if index not in places[dim]]:
            raise ValueError(f"grids are not nested: the finer one lacks the cells {missing} along dimension {dim}")
    t, h, w = (tuple(place[index] for index in axis) for place, axis in zip(places, source, strict=True))
    return t, h, w


def _area(x: Tensor, height: int, width: int) -> Tensor:
    """Each target pixel is the mean of the source pixels it overlaps, frame by frame."""
    frames = x.transpose(1, 2).flatten(0, 1)
    resized: Tensor = F.adaptive_avg_pool2d(frames, (height, width))
    return resized.reshape(x.shape[0], x.shape[2], x.shape[1], height, width).transpose(1, 2).contiguous()


def _interpolate(x: Tensor, anchors: Axis, length: int, dim: int) -> Tensor:
    """Linear interpolation along ``dim`` between ``anchors``, the target positions of the source's entries."""
    if len(anchors) == length:
        return x
    if len(anchors) == 1:
        return x.repeat_interleave(length, dim)
    left, weight = _between(anchors, length, x.device)
    weight = weight.to(x.dtype).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
    return (1 - weight) * x.index_select(dim, left) + weight * x.index_select(dim, left + 1)


@lru_cache(maxsize=256)
def _between(anchors: Axis, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For every target position the anchor to its left and how far towards the next one it lies, in [0, 1]."""
    with torch.inference_mode(False):
        knots, targets = torch.tensor(anchors), torch.arange(length)
        left = (torch.searchsorted(knots, targets, right=True) - 1).clamp(0, len(anchors) - 2)
        weight = ((targets - knots[left]) / (knots[left + 1] - knots[left])).clamp(0, 1)
        return left.to(device), weight.to(device)


@lru_cache(maxsize=256)
def on_device(axis: Axis, device: torch.device) -> Tensor:
    """Indices as a tensor, copied once: the host waits for every copy to a device."""
    with torch.inference_mode(False):  # the tensor outlives the caller's mode
        return torch.tensor(axis, device=device)


def smooth(x: Tensor, weight: float, padding: SmoothingPadding) -> Tensor:
    """``(1 - weight) x + weight * 3x3 mean`` of every frame of [B, C, T, H, W].

    ``replicate`` repeats the border; ``zeros`` is DVG's release, which darkens it (0.9 of its value at edges for 0.3).
    """
    if weight == 0:
        return x
    frames = x.flatten(0, 2).unsqueeze(1)
    mode = "replicate" if padding == "replicate" else "constant"
    blurred = F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), mode=mode), 3, stride=1)
    return (1 - weight) * x + weight * blurred.reshape(x.shape)
