"""How close a video is to another of the same shape: PSNR and SSIM.

Both are means over frames of the per-frame figure on RGB in [0, 1], as the caching and reduced-resolution papers report
them (SSIM: Wang et al. 2004, 11x11 Gaussian window, sigma 1.5).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

    from stages.video import Frames

PSNR_CAP_DB = 100.0
"""PSNR of identical frames, so that every figure stays a finite number that JSON, CSV and MLflow can hold."""

FRAMES_AT_ONCE = 8
"""Bounds the memory of the Gaussian windows: a 720p clip never sits in memory as floats at once."""


class Likeness:
    """PSNR (dB, at most ``PSNR_CAP_DB``) and SSIM, or one of them, over runs of frames. A :class:`..measure.Meter`."""

    def __init__(self, names: Collection[str] = ("psnr", "ssim"), device: str = "cpu") -> None:
        self.names = tuple(name for name in ("psnr", "ssim") if name in names)
        self.device = device
        self._sums = dict.fromkeys(self.names, 0.0)
        self._num_frames = 0

    def add(self, frames: Frames, reference: Frames) -> None:
        ours, theirs = to_tensor(frames, self.device), to_tensor(reference, self.device)
        for name in self.names:
            self._sums[name] += float(PER_FRAME[name](ours, theirs).astype(np.float64).sum())
        self._num_frames += len(frames)

    def values(self) -> dict[str, float]:
        return {name: total / self._num_frames for name, total in self._sums.items()}


def compare(video: Frames, reference: Frames, device: str = "cpu") -> dict[str, float]:
    """PSNR (dB, at most ``PSNR_CAP_DB``) and SSIM of two uint8 videos [F, H, W, 3].

    Raises ValueError when they differ in shape, hold no frame, or are no uint8 RGB videos.
    """
    _check(video, reference)
    meter = Likeness(device=device)
    for start in range(0, len(video), FRAMES_AT_ONCE):
        meter.add(video[start : start + FRAMES_AT_ONCE], reference[start : start + FRAMES_AT_ONCE])
    return meter.values()


def compare_many(videos: Frames, references: Frames, device: str) -> list[dict[str, float]]:
    """:func:`compare` of each pair of videos [B, F, H, W, 3] on a device."""
    return [compare(video, reference, device) for video, reference in zip(videos, references, strict=True)]


def to_tensor(frames: Frames, device: str = "cpu") -> torch.Tensor:
    """Float [F, 3, H, W] in [0, 1]. torch is imported here, so that reading stored figures does not load it."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2).float() / 255.0


def _psnr(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray[Any, Any]:
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = peak_signal_noise_ratio(ours, theirs, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return np.asarray(found.reshape(-1).cpu().numpy().clip(max=PSNR_CAP_DB))


def _ssim(ours: torch.Tensor, theirs: torch.Tensor) -> np.ndarray[Any, Any]:
    import torch
    from torchmetrics.functional.image import structural_similarity_index_measure

    with torch.backends.cudnn.flags(allow_tf32=False):  # variances are small differences of large numbers
        found = structural_similarity_index_measure(ours, theirs, data_range=1.0, reduction="none")
    return np.asarray(found.reshape(-1).cpu().numpy())


PER_FRAME = {"psnr": _psnr, "ssim": _ssim}


def _check(video: Frames, reference: Frames) -> None:
    if video.shape != reference.shape or video.ndim != 4 or not len(video):
        raise ValueError(f"videos of shape {video.shape} and {reference.shape}: both must be the same [F, H, W, 3], F > 0")
    if video.dtype != np.uint8 or reference.dtype != np.uint8 or video.shape[-1] != 3:
        raise ValueError(f"videos are {video.dtype} {video.shape} and {reference.dtype}: both must be uint8 [F, H, W, 3]")
