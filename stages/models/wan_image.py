"""Wan's image condition beside the first frame itself: CLIP's tokens, and the channels beside the noise.

Image-to-video models (Wan 2.1 and 2.2 14B) take four mask channels and the latent of "the image, then nothing" beside the
noise; text-and-image models (Wan 2.2 5B) hold the image's latent in the first frame itself.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

NUM_MASK_CHANNELS = 4
"""One for each video frame of a latent frame."""


def padded(image: Tensor, num_frames: int) -> Tensor:
    """The first frame ``[1, 3, 1, H, W]`` and nothing after it, ``num_frames`` in all."""
    return F.pad(image, (0, 0, 0, 0, 0, num_frames - 1))


def with_mask(latent: Tensor) -> Tensor:
    """Channels that say which frames are given (the first alone), before the latent ``[1, C, T, H, W]``."""
    mask = torch.zeros_like(latent[:, :1]).expand(-1, NUM_MASK_CHANNELS, -1, -1, -1).clone()
    mask[:, :, 0] = 1
    return torch.cat([mask, latent], dim=1)


class ImageTokens:
    """Callable ``image -> CLIP's tokens [1, n, D]`` for the cross-attention of Wan 2.1 image-to-video."""

    def __init__(self, processor: Any, encoder: Any) -> None:
        self.processor = processor
        self.encoder = encoder

    def __call__(self, image: Image) -> Tensor:
        pixels = self.processor(images=image, return_tensors="pt").pixel_values.to(self.encoder.device, self.encoder.dtype)
        tokens: Tensor = self.encoder(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]
        return tokens
