"""Small operations on the frames of a clean latent that the measures of demand share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

TINY_STD = 1e-6
TINY_POWER = 1e-12


def squash(value: Tensor) -> Tensor:
    """A non-negative number to [0, 1): r / (1 + r)."""
    return value / (1 + value)


def standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True).clamp_min(TINY_STD)


def scalar_frames(x0: Tensor) -> Tensor:
    """[B, T, H, W]: the mean over channels, every frame standardised by itself."""
    return standardise(x0.mean(1), (-2, -1))


def box(frames: Tensor, size: int) -> Tensor:
    """Box mean of [N, 1, H, W], the border counted by the cells it has."""
    return F.avg_pool2d(frames, size, stride=1, padding=size // 2, count_include_pad=False)


def sobel(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of [B, T, H, W] along width and height: 3 x 3 Sobel kernels over 8, zeros outside."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=frames.device) / 8
    kernels = torch.stack((kernel, kernel.T)).unsqueeze(1)
    gradients = F.conv2d(frames.flatten(0, 1).unsqueeze(1), kernels, padding=1)
    gx, gy = gradients.unbind(1)
    return gx.reshape(frames.shape), gy.reshape(frames.shape)
