"""Training latents on the device: one ring buffer per grid, refreshed with new scenes while training goes on."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from experiments.embedded import vae as autoencoder
from experiments.embedded.captions import caption
from experiments.embedded.render import render
from experiments.embedded.scenes import Scene, training_scenes
from experiments.embedded.text import MAX_WORDS, token_ids

Shape = tuple[int, int]  # latent frames, latent side

FULL: Shape = (11, 18)
#: share of the training tokens by kind of grid; inside a kind every grid is as likely as another
KINDS: dict[str, tuple[float, tuple[Shape, ...]]] = {
    "full": (0.45, (FULL,)),
    "refine": (0.25, tuple((frames, 18) for frames in (4, 5, 6, 7, 8, 10))),
    "middle": (0.18, ((5, 16), (6, 14), (7, 12), (8, 10), (6, 12), (7, 10), (5, 14), (8, 8), (9, 14), (11, 12), (10, 16))),
    "sketch": (0.12, ((3, 8), (4, 8), (5, 8), (6, 8))),
}
ENCODE_PIXELS = 24 * 41 * 144 * 144  # of one encoder call


@dataclass
class Ring:
    latents: Tensor  # [capacity, C, T, H, W], half precision, standardised
    ids: Tensor  # [capacity, MAX_WORDS]
    filled: int = 0
    next: int = 0
    drawn: int = 0

    def put(self, latents: Tensor, ids: Tensor) -> None:
        where = (self.next + torch.arange(len(latents), device=self.ids.device)) % len(self.ids)
        self.latents[where], self.ids[where] = latents.to(self.latents.dtype), ids.to(self.ids.device)
        self.next = (self.next + len(latents)) % len(self.ids)
        self.filled = min(self.filled + len(latents), len(self.ids))

    def draw(self, number: int) -> tuple[Tensor, Tensor]:
        self.drawn += number
        where = torch.randint(self.filled, (number,), device=self.ids.device)
        return self.latents[where].float(), self.ids[where]


class LatentStore:
    """``draw`` gives a batch; ``refresh`` encodes new scenes for the ring that is the most used for its fill."""

    def __init__(
        self, vae: AutoencoderKLWan, tokenizer: Any, mean: Tensor, std: Tensor, device: str, seed: int, full_capacity: int
    ) -> None:
        self.vae, self.tokenizer, self.device = vae, tokenizer, device
        self.mean, self.std = mean.to(device).view(1, -1, 1, 1, 1), std.to(device).view(1, -1, 1, 1, 1)
        self.scenes: Iterator[Scene] = training_scenes(seed)
        self.rng = random.Random(seed)
        self.encode_s = 0.0
        self.num_encoded = 0
        self.rings = {shape: self._ring(shape, share, kind, full_capacity) for kind, shape, share in _shares()}

    def _ring(self, shape: Shape, share: float, kind: str, full_capacity: int) -> Ring:
        frames, side = shape
        tokens, full_tokens = frames * side * side, FULL[0] * FULL[1] ** 2
        capacity = max(64, int(full_capacity * share / KINDS["full"][0] * min(4.0, full_tokens / tokens)))
        latents = torch.zeros(capacity, autoencoder.LATENT_CHANNELS, frames, side, side, dtype=torch.half, device=self.device)
        return Ring(latents, torch.zeros(capacity, MAX_WORDS, dtype=torch.long, device=self.device))

    def pick(self) -> Shape:
        """A grid by its share of the tokens, for batches of equal numbers of tokens."""
        shapes = _shares()
        return self.rng.choices([shape for _, shape, _ in shapes], [share for _, _, share in shapes])[0]

    def draw(self, shape: Shape, number: int) -> tuple[Tensor, Tensor]:
        return self.rings[shape].draw(number)

    def refresh(self, shape: Shape | None = None) -> None:
        shape = shape or max(self.rings, key=lambda s: self.rings[s].drawn / max(1, self.rings[s].filled))
        started, (frames, side) = time.perf_counter(), shape
        pixels = (4 * (frames - 1) + 1) * (8 * side) ** 2
        scenes = [next(self.scenes) for _ in range(max(1, min(512, ENCODE_PIXELS // pixels)))]
        ring = self.rings[shape]
        ring.put(self._encode(scenes, frames, side), token_ids(self.tokenizer, [caption(scene) for scene in scenes]))
        ring.drawn = int(ring.drawn * (1 - len(scenes) / max(len(scenes), ring.filled)))
        if self.device == "cuda":
            torch.cuda.synchronize()
        self.encode_s += time.perf_counter() - started
        self.num_encoded += len(scenes)

    @torch.no_grad()
    def _encode(self, scenes: Sequence[Scene], frames: int, side: int) -> Tensor:
        video = render(scenes, 4 * (frames - 1) + 1, 8 * side, 8 * side, self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            mean, _ = autoencoder.encode(self.vae, video.contiguous(memory_format=torch.channels_last_3d))
        return (mean.float() - self.mean) / self.std


def _shares() -> list[tuple[str, Shape, float]]:
    return [(kind, shape, share / len(shapes)) for kind, (share, shapes) in KINDS.items() for shape in shapes]
