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
Grids = tuple[Shape, ...]
"""One grid, or two of the same scenes: where a stage of DVG ends, and the larger one where the next begins."""

FULL: Shape = (11, 18)
SKETCHES: tuple[Shape, ...] = ((3, 8), (4, 8), (5, 8), (6, 8))
INTO_STAGE_2: tuple[Grids, ...] = tuple(
    ((before, 8), after)
    for before, afters in (
        (3, ((4, 12),)),
        (4, ((8, 8), (8, 10), (7, 12), (6, 14), (5, 16), (5, 18))),
        (5, ((9, 14),)),
        (6, ((11, 16),)),
    )
    for after in afters
)
INTO_STAGE_3: tuple[Grids, ...] = tuple(
    ((f, side), (f, 18)) for f, side in ((8, 8), (8, 10), (7, 12), (6, 14), (5, 16), (9, 14), (11, 14))
)
INTO_FULL: tuple[Grids, ...] = tuple(
    (source, FULL) for source in ((3, 18), (4, 18), (5, 18), (6, 18), (7, 18), (8, 18), (6, 12), (11, 10), (11, 12))
)
CROSSINGS = (INTO_STAGE_2, INTO_STAGE_3, INTO_FULL)
#: share of the training tokens by kind of grid; inside a kind every grid is as likely as another
KINDS: dict[str, tuple[float, tuple[Grids, ...]]] = {
    "full": (0.42, ((FULL,),)),
    "refine": (0.20, tuple(((frames, 18),) for frames in (3, 4, 5, 6, 7, 8, 10))),
    "middle": (
        0.13,
        tuple(
            (shape,)
            for shape in (
                (5, 16),
                (6, 14),
                (7, 12),
                (8, 10),
                (6, 12),
                (7, 10),
                (5, 14),
                (8, 8),
                (9, 14),
                (11, 12),
                (10, 16),
                (11, 8),
            )
        ),
    ),
    "sketch": (0.12, tuple((shape,) for shape in SKETCHES)),
    "crossing": (0.13, tuple(grids for crossing in CROSSINGS for grids in crossing)),
}
ENCODE_PIXELS = 24 * 41 * 144 * 144  # of one encoder call


@dataclass
class Ring:
    latents: tuple[Tensor, ...]  # of each grid [capacity, C, T, H, W], half precision, standardised
    ids: Tensor  # [capacity, MAX_WORDS]
    filled: int = 0
    next: int = 0
    drawn: int = 0

    def put(self, latents: Sequence[Tensor], ids: Tensor) -> None:
        where = (self.next + torch.arange(len(ids), device=self.ids.device)) % len(self.ids)
        for kept, new in zip(self.latents, latents, strict=True):
            kept[where] = new.to(kept.dtype)
        self.ids[where] = ids.to(self.ids.device)
        self.next = (self.next + len(ids)) % len(self.ids)
        self.filled = min(self.filled + len(ids), len(self.ids))

    def draw(self, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        self.drawn += number
        where = torch.randint(self.filled, (number,), device=self.ids.device)
        return tuple(kept[where].float() for kept in self.latents), self.ids[where]


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
        self.rings = {grids: self._ring(grids, share, kind, full_capacity) for kind, grids, share in _shares()}

    def _ring(self, grids: Grids, share: float, kind: str, full_capacity: int) -> Ring:
        full_tokens = FULL[0] * FULL[1] ** 2
        capacity = max(64, int(full_capacity * share / KINDS["full"][0] * min(4.0, full_tokens / num_cells(grids[-1]))))
        latents = (
            torch.zeros(capacity, autoencoder.LATENT_CHANNELS, frames, side, side, dtype=torch.half, device=self.device)
            for frames, side in grids
        )
        return Ring(tuple(latents), torch.zeros(capacity, MAX_WORDS, dtype=torch.long, device=self.device))

    def pick(self) -> Grids:
        """Grids by their share of the tokens, for batches of equal numbers of tokens."""
        shares = _shares()
        return self.rng.choices([grids for _, grids, _ in shares], [share for _, _, share in shares])[0]

    def draw(self, grids: Grids, number: int) -> tuple[tuple[Tensor, ...], Tensor]:
        return self.rings[grids].draw(number)

    def refresh(self, grids: Grids | None = None) -> None:
        grids = grids or max(self.rings, key=lambda g: self.rings[g].drawn / max(1, self.rings[g].filled))
        started = time.perf_counter()
        pixels = max((4 * (frames - 1) + 1) * (8 * side) ** 2 for frames, side in grids)
        scenes = [next(self.scenes) for _ in range(max(1, min(512, ENCODE_PIXELS // pixels)))]
        ring = self.rings[grids]
        latents = [self._encode(scenes, frames, side) for frames, side in grids]
        ring.put(latents, token_ids(self.tokenizer, [caption(scene) for scene in scenes]))
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


def num_cells(shape: Shape) -> int:
    return shape[0] * shape[1] ** 2


def _shares() -> list[tuple[str, Grids, float]]:
    return [(kind, grids, share / len(group)) for kind, (share, group) in KINDS.items() for grids in group]
