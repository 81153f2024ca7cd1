"""What the adapters of all families share: parts that may be missing, halves of a VAE, frames from video."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from stages.models.base import Loading
from stages.models.pretrained import pretrained

Part = TypeVar("Part")


class Adapter:
    """Asking for the work of a part that was not loaded raises RuntimeError."""

    geometry: ModelGeometry

    def _part(self, part: Part | None, name: str) -> Part:
        if part is None:
            raise RuntimeError(f"this worker loaded {self.geometry.name} without its {name!r} part")
        return part


def load_halves(kind: Any, folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """The autoencoder ``kind`` in ``folder / "vae"``, in the model's dtype, with the halves that are asked for."""
    vae = pretrained(kind, folder / "vae", loading.dtype)
    if not encodes:
        vae.encoder = None
    if not decodes:
        vae.decoder = None
    return vae.to(loading.device).requires_grad_(False)


def to_frames(video: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Frames ``[F, H, W, 3]`` of video ``[1, 3, F, H, W]`` in [-1, 1].

    Raises RuntimeError for video that is not finite: as bytes it would pass for a picture.
    """
    if not bool(video.isfinite().all()):
        raise RuntimeError("the decoded video is not finite: the weights of the VAE are at fault")
    return video[0].permute(1, 2, 3, 0).add(1).mul(127.5).round().to(torch.uint8).cpu().numpy()
