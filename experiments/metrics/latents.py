"""Cosine of two videos in the latent space of the arm's own model, where the weights of its VAE are at hand."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

    from stages.video import Frames

Encode = Callable[["Tensor"], "Tensor"]
"""Video [1, 3, F, H, W] in [-1, 1] -> latent, normalised as the transformer sees it."""

NUM_FRAMES = 17
"""Of the pieces that are encoded by themselves, so that the memory does not grow with the clip: 4k + 1, as a VAE takes them."""
STRIDE = 4
"""Frames of a video that one latent frame holds, in every family."""

ENCODERS = {
    "wan": ("stages.models.wan_parts", "stages.models.wan_decoder", "WanEncoder"),
    "hunyuan": ("stages.models.hunyuan_parts", "stages.models.hunyuan_vae", "HunyuanEncoder"),
    "hunyuan15": ("stages.models.hunyuan15_parts", "stages.models.hunyuan15_vae", "Hunyuan15ImageEncoder"),
}
"""Of each family: where its VAE is loaded, where its encoder is, and what it is called."""


def why_not(model: str, weights: str | None) -> str | None:
    """Why an arm's VAE cannot be had on this machine; None if it can. Downloads nothing."""
    from orchestrator.geometry import model as geometry_of
    from stages.models import checkpoint

    folder = _folder(model, weights)
    if folder is None or not folder.is_dir():
        return f"the weights {weights!r} of {model} are not on this machine; its VAE is what is needed"
    wrong = checkpoint.mistakes(geometry_of(model), folder, frozenset({"encoder"}))
    return f"the weights {weights!r} of {model} have no whole VAE here: {wrong[0]}" if wrong else None


def _folder(model: str, weights: str | None) -> Path | None:
    from stages.models import embedded
    from stages.models.weights import cached

    if weights is None:
        return embedded.FOLDER if model == embedded.NAME else None
    return cached(weights)


@lru_cache(maxsize=1)
def encoder(model: str, weights: str | None, device: str) -> Encode:
    """The encoder of an arm's VAE, in float32. Raises ValueError if its folder does not hold it."""
    import torch

    from orchestrator.geometry import model as geometry_of
    from stages.models.base import Loading

    folder = _folder(model, weights)
    if folder is None:
        raise ValueError(why_not(model, weights))
    parts, home, name = ENCODERS[geometry_of(model).family]
    loading = Loading(frozenset({"encoder"}), torch.device(device))
    vae = import_module(parts).load_vae(folder, loading, encodes=True, decodes=False)
    made: Encode = getattr(import_module(home), name)(vae)
    return made


class LatentCosine:
    """Cosine of all latents of one video with those of the other.

    The videos are encoded in pieces of ``NUM_FRAMES``, each beginning with the frame that the one before it ends with; frames
    at the end that fill no latent frame are left out.
    """

    names = ("latent_cosine",)

    def __init__(self, encode: Encode) -> None:
        self.encode = encode
        self._held: list[tuple[Frames, Frames]] = []
        self._products = np.zeros(3)

    def add(self, frames: Frames, reference: Frames) -> None:
        for pair in zip(frames, reference, strict=True):
            self._held.append(pair)
            if len(self._held) == NUM_FRAMES:
                self._take(NUM_FRAMES)

    def values(self) -> dict[str, float]:
        rest = (len(self._held) - 1) // STRIDE * STRIDE + 1
        if rest > 1 or not self._products.any():
            self._take(rest)
        both, ours, theirs = self._products
        return {"latent_cosine": float(both / max(np.sqrt(ours * theirs), 1e-30))}

    def _take(self, num_frames: int) -> None:
        a, b = (self._latent(side, num_frames) for side in (0, 1))
        self._products += [a @ b, a @ a, b @ b]
        self._held = self._held[num_frames - 1 :]

    def _latent(self, side: int, num_frames: int) -> np.ndarray[Any, np.dtype[np.float64]]:
        import torch

        piece = np.stack([pair[side] for pair in self._held[:num_frames]])
        video = torch.from_numpy(piece).permute(3, 0, 1, 2).unsqueeze(0).float().div(127.5).sub(1)
        with torch.inference_mode():
            return np.asarray(self.encode(video).double().flatten().cpu().numpy())
