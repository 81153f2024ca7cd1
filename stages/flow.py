"""Dense optical flow between two frames: Lucas and Kanade (1981) over a pyramid, each level refining the coarser one's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

COARSEST, FINEST = 16, 400
"""Cells along the shorter side of the smallest level and, of large frames, of the largest one."""
ROUNDS = 4
"""At each level."""
WINDOW = 9
"""Cells a side over which the motion is taken to be one."""
RIDGE = 1e-4
"""Keeps flat places still, where brightness says nothing; in units of squared brightness a cell."""
LONGEST = 1.0
"""Cells that one round may add, as gradients tell no more."""


def flow(a: Tensor, b: Tensor) -> Tensor:
    """``[1, 2, H, W]``, along width and height in pixels: what is at ``p`` in ``a [1, 3, H, W]`` is at ``p + flow`` in ``b``."""
    levels = _pyramid(a.mean(1, keepdim=True)), _pyramid(b.mean(1, keepdim=True))
    found = a.new_zeros(1, 2, *levels[0][-1].shape[2:])
    for x, y in zip(*map(reversed, levels), strict=True):
        found = scaled(found, (x.shape[2], x.shape[3]))
        for _ in range(ROUNDS):
            found = _steadied(found + _update(x, moved(y, found)))
    return scaled(found, (a.shape[2], a.shape[3]))


def _pyramid(x: Tensor) -> list[Tensor]:
    """From the finest to the coarsest, each half as large."""
    while min(x.shape[2:]) > FINEST:
        x = F.avg_pool2d(x, 2)
    levels = [x]
    while min(levels[-1].shape[2:]) >= 2 * COARSEST:
        levels.append(F.avg_pool2d(levels[-1], 2))
    return levels


def _update(a: Tensor, b: Tensor) -> Tensor:
    """One least-squares step at every cell: the motion that best explains ``b - a`` over the window around it."""
    middle = (a + b) / 2
    gx = F.pad((middle[..., 2:] - middle[..., :-2]) / 2, (1, 1, 0, 0), mode="replicate")
    gy = F.pad((middle[..., 2:, :] - middle[..., :-2, :]) / 2, (0, 0, 1, 1), mode="replicate")
    xx, yy, xy, xd, yd = _summed(torch.cat([gx * gx, gy * gy, gx * gy, gx * (b - a), gy * (b - a)], dim=1)).split(1, dim=1)
    xx, yy = xx + RIDGE, yy + RIDGE
    det = xx * yy - xy * xy
    step = torch.cat([(xy * yd - yy * xd) / det, (xy * xd - xx * yd) / det], dim=1)
    return step.clamp(-LONGEST, LONGEST)


def _summed(x: Tensor) -> Tensor:
    """Means over the window, twice, which weighs near cells more."""
    for _ in range(2):
        x = F.avg_pool2d(x, WINDOW // 2 + 1, 1, WINDOW // 4, count_include_pad=False)
    return x


def _steadied(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def scaled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """A flow ``[1, 2, h, w]`` on another grid, its vectors in cells of that."""
    if x.shape[2:] == size:
        return x
    ratio = x.new_tensor([size[1] / x.shape[3], size[0] / x.shape[2]]).view(1, 2, 1, 1)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False) * ratio


def moved(x: Tensor, by: Tensor) -> Tensor:
    """``x [1, C, H, W]`` read at ``p + by(p)`` for every pixel p, the border going on beyond the picture."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device, dtype=x.dtype).view(-1, 1)
    columns = torch.arange(width, device=x.device, dtype=x.dtype)
    at_x, at_y = by[0, 0] + columns, by[0, 1] + rows
    grid = torch.stack([2 * (at_x + 0.5) / width - 1, 2 * (at_y + 0.5) / height - 1], dim=-1)
    return F.grid_sample(x, grid.unsqueeze(0), mode="bilinear", padding_mode="border", align_corners=False)
