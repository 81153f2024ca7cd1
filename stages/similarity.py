"""How much frames of a video are alike: SSIM (Wang et al. 2004), as ``pytorch_msssim`` has it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stages.demand import DemandNotFinite

WINDOW, WINDOW_SIGMA = 11, 1.5
FRAMES_AT_ONCE = 8
"""Whose similarities are measured together, which bounds the memory."""


def likeness(video: Tensor, furthest: int) -> list[list[float]]:
    """SSIM of all frames of ``[1, 3, F, H, W]`` in [0, 1] that are 1 to ``furthest`` apart: ``[d - 1][j]``, of j and j + d.

    Raises DemandNotFinite for frames that are not finite.
    """
    frames = video[0].transpose(0, 1).float()
    rows = [torch.cat(list(_in_parts(frames[:-d], frames[d:]))) for d in range(1, furthest + 1)]
    if not all(bool(row.isfinite().all()) for row in rows):
        raise DemandNotFinite("the similarity of frames is not finite")
    return [row.tolist() for row in rows]


def _in_parts(before: Tensor, after: Tensor) -> Iterator[Tensor]:
    for a, b in zip(before.split(FRAMES_AT_ONCE), after.split(FRAMES_AT_ONCE), strict=True):
        yield ssim(a, b)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity ``[N]`` of frames ``[N, C, H, W]`` in [0, 1] (Wang et al. 2004), as ``pytorch_msssim`` has it.

    Gaussian window without padding, mean over cells and channels. In float32 on every device, for the same choice anywhere.
    """
    places = torch.arange(WINDOW, device=a.device, dtype=torch.float32) - WINDOW // 2
    window = torch.exp(-(places**2) / (2 * WINDOW_SIGMA**2))
    window = (window / window.sum()).expand(a.shape[1], 1, WINDOW)

    def smoothed(x: Tensor) -> Tensor:
        x = F.conv2d(x, window.unsqueeze(-1), groups=x.shape[1])
        return F.conv2d(x, window.unsqueeze(-2), groups=x.shape[1])

    with torch.backends.cudnn.flags(allow_tf32=False):
        mean_a, mean_b, aa, bb, ab = map(smoothed, (a, b, a * a, b * b, a * b))
    structure = (2 * (ab - mean_a * mean_b) + 0.03**2) / (aa - mean_a**2 + bb - mean_b**2 + 0.03**2)
    brightness = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return (structure * brightness).flatten(1).mean(1)
