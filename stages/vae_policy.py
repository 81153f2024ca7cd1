"""How much of a latent a video decoder takes at once: as much as fits the free memory, for the fewest launches and no seams."""

from __future__ import annotations

import torch

from stages.memory import free_bytes

BYTES_PER_PIXEL = {"wan": 3000, "hunyuan": 3100, "hunyuan15": 1900}
"""Peak bytes of a bf16 decoder per pixel decoded at once (frames x height x width), measured on an H200."""
SHARE = 0.8
"""Of the free memory; the rest is for what the convolutions need as workspace."""
MOST_PIXELS = {"wan": 1 << 24, "hunyuan": 1 << 26, "hunyuan15": 1 << 23}
"""Beyond these, larger runs are no faster, and the first frames come later."""


def pixels_at_once(family: str, free: int) -> int:
    """Pixels to decode in one go with ``free`` bytes of memory."""
    return min(int(free * SHARE) // BYTES_PER_PIXEL[family], MOST_PIXELS[family])


def needs_tiles(family: str, num_pixels: int, free: int) -> bool:
    """Whether the smallest run that the decoder can take, of ``num_pixels``, must be cut into tiles of height and width."""
    return num_pixels > pixels_at_once(family, free)


def run_pixels(family: str, device: torch.device, on_cpu: int) -> int:
    """Pixels to decode in one go on ``device`` now; ``on_cpu`` there, where caches count and memory does not."""
    return pixels_at_once(family, free_bytes(device)) if device.type == "cuda" else on_cpu
