"""The first frame of image-to-video, for every family: as an image, as pixels, and its latent on a stage's cells."""

from __future__ import annotations

import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.types import VideoShape
from stages.image import read_image
from stages.resize import Axes, on_device


def wanted(geometry: ModelGeometry, path: str | None, takes_image: bool) -> Image | None:
    """The image at ``path``. Raises ValueError if it cannot be read, or is there for weights that take none, or missing."""
    if path is None:
        if geometry.image == "required":
            raise ValueError(f"model {geometry.name} makes video from an image: give the path of its first frame")
        return None
    if not takes_image:
        raise ValueError(f"these weights of {geometry.name} take no image, and were given {path!r}")
    return read_image(path)


def stretched(image: Image, shape: VideoShape) -> Tensor:
    """Pixels ``[1, 3, 1, H, W]`` in [-1, 1] at the video's size, resized as diffusers' video processor does."""
    from diffusers.video_processor import VideoProcessor

    pixels: Tensor = VideoProcessor().preprocess(image, height=shape.height, width=shape.width)
    return pixels.float().unsqueeze(2)


def resized(frame: Tensor, height: int, width: int) -> Tensor:
    """Pixels ``[1, 3, 1, H, W]`` in [-1, 1] at another size, without aliasing."""
    pixels = F.interpolate(frame[:, :, 0], size=(height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels.clamp(-1, 1).unsqueeze(2)


def pick(latent: Tensor, axes: Axes) -> Tensor:
    """The cells ``axes`` of a full-size latent ``[1, C, T or 1, H, W]``; one frame stays one frame."""
    frames, rows, columns = (on_device(axis, latent.device) for axis in axes)
    if latent.shape[2] > 1:
        latent = latent.index_select(2, frames)
    return latent.index_select(3, rows).index_select(4, columns)
