"""LPIPS (Zhang et al. 2018, version 0.1) with AlexNet's features, where the user has its weights; nothing is downloaded.

The linear heads ship with torchmetrics. The backbone is torchvision's AlexNet checkpoint; torchvision itself is not needed.
"""

from __future__ import annotations

import os
import pickle
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.metrics.likeness import to_tensor

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.video import Frames

FOLDER = "DVG_LPIPS_WEIGHTS"
"""Environment variable: the folder that holds ``BACKBONE``; by default torch hub's cache, where torchvision puts it too."""
BACKBONE = "alexnet-owt-7be5be79.pth"
SOURCE = f"https://download.pytorch.org/models/{BACKBONE}"
SMALLEST_SIDE = 31
"""Pixels that AlexNet's last layer needs."""

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Of the images in [-1, 1], per channel."""
TAPS = (1, 4, 7, 9, 11)
"""The layers of AlexNet's ``features`` whose outputs are compared: every ReLU."""
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, pickle.UnpicklingError)
"""As files that are no checkpoints, or other ones, show."""


def weights_path() -> Path:
    """Where the backbone is looked for."""
    import torch

    folder = os.environ.get(FOLDER)
    return Path(folder, BACKBONE) if folder else Path(torch.hub.get_dir(), "checkpoints", BACKBONE)


def why_not() -> str | None:
    """Why LPIPS cannot be had on this machine, and what to do; None if it can."""
    path = weights_path()
    return (
        None
        if path.is_file()
        else f"AlexNet's weights are not at {str(path)!r}: put {SOURCE} there, or name its folder in {FOLDER}"
    )


class Perceptual:
    """Mean over frames of LPIPS. Raises ValueError for weights that are not AlexNet's, and for frames that are too small."""

    names = ("lpips",)

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self._layers, self._heads = network(weights_path(), device)
        self._sum, self._num_frames = 0.0, 0

    def add(self, frames: Frames, reference: Frames) -> None:
        if min(frames.shape[1:3]) < SMALLEST_SIDE:
            raise ValueError(
                f"frames of {frames.shape[2]}x{frames.shape[1]} are too small for LPIPS: {SMALLEST_SIDE} pixels a side"
            )
        pair = (to_tensor(frames, self.device), to_tensor(reference, self.device))
        self._sum += float(distances(*pair, self._layers, self._heads).double().sum())
        self._num_frames += len(frames)

    def values(self) -> dict[str, float]:
        return {"lpips": self._sum / self._num_frames}


def distances(ours: Tensor, theirs: Tensor, layers: torch.nn.Sequential, heads: tuple[Tensor, ...]) -> Tensor:
    """LPIPS [N] of images [N, 3, H, W] in [0, 1]: squared differences of normalised features, weighted, averaged over space."""
    import torch

    shift, scale = (ours.new_tensor(row).view(1, 3, 1, 1) for row in (SHIFT, SCALE))
    x = torch.cat([(2 * images - 1 - shift) / scale for images in (ours, theirs)])
    total = ours.new_zeros(len(ours))
    with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
        for index, layer in enumerate(layers):
            x = layer(x)
            if index in TAPS:
                a, b = (x / torch.sqrt((x * x).sum(1, keepdim=True) + 1e-8)).chunk(2)
                total = total + torch.nn.functional.conv2d((a - b) ** 2, heads[TAPS.index(index)]).mean((1, 2, 3))
    return total


@cache
def network(path: Path, device: str) -> tuple[torch.nn.Sequential, tuple[Tensor, ...]]:
    """AlexNet's feature layers and the five heads [1, C, 1, 1]. Raises ValueError for a file that does not hold them."""
    import torch
    import torchmetrics

    heads_path = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models" / "alex.pth"
    layers = features()
    try:
        stored: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        layers.load_state_dict({k.removeprefix("features."): v for k, v in stored.items() if k.startswith("features.")})
    except UNREADABLE as error:
        raise ValueError(f"{str(path)!r} does not hold AlexNet's weights: {' '.join(str(error).split())[:200]}") from error
    kept = torch.load(heads_path, map_location=device, weights_only=True)
    heads = tuple(kept[f"lin{index}.model.1.weight"] for index in range(len(TAPS)))
    return layers.to(device).eval().requires_grad_(False), heads


def features() -> torch.nn.Sequential:
    """AlexNet's convolutions (Krizhevsky 2014), numbered as in torchvision."""
    from torch.nn import Conv2d, MaxPool2d, ReLU, Sequential

    return Sequential(
        *(Conv2d(3, 64, 11, stride=4, padding=2), ReLU(), MaxPool2d(3, 2)),
        *(Conv2d(64, 192, 5, padding=2), ReLU(), MaxPool2d(3, 2)),
        *(Conv2d(192, 384, 3, padding=1), ReLU(), Conv2d(384, 256, 3, padding=1), ReLU(), Conv2d(256, 256, 3, padding=1), ReLU()),
    )
