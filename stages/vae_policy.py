"""How much of a latent a video decoder takes at once: as much as is worth it, if the free memory holds that."""

from __future__ import annotations

import torch

from stages.memory import free_bytes

BYTES_PER_PIXEL = {"wan": 3500, "hunyuan": 1900, "hunyuan15": 1700}
"""Peak bytes of a bf16 decoder per pixel decoded at once (frames x height x width), rounded up from what an H200 showed."""
SHARE = 0.8
"""Of the free memory; the rest is for what the convolutions need as workspace."""


def pixels_at_once(family: str, free: int) -> int:
    """Pixels that ``free`` bytes of memory are enough for."""
    return int(free * SHARE) // BYTES_PER_PIXEL[family]


def needs_tiles(family: str, num_pixels: int, free: int) -> bool:
    """Whether the smallest run that the decoder can take, of ``num_pixels``, must be cut into tiles of height and width."""
    return num_pixels > pixels_at_once(family, free)


def run_pixels(family: str, device: torch.device, most: int) -> int:
    """Pixels to decode in one go on ``device`` now: ``most``, beyond which it is no faster, or fewer on a GPU short of memory."""
    return min(most, pixels_at_once(family, free_bytes(device))) if device.type == "cuda" else most
