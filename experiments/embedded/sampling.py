"""Batched generation while training: the solver of a plain run on one grid, then the decoder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from torch import Tensor
from transformers import AutoTokenizer, UMT5EncoderModel

from experiments.embedded import text, transformer
from experiments.embedded import vae as autoencoder
from experiments.embedded.latents import FULL, Shape
from orchestrator.geometry import model as geometry_of
from stages.models import embedded
from stages.sampling import sigmas

GEOMETRY = geometry_of(embedded.NAME)
SHIFT, NUM_STEPS, GUIDANCE = GEOMETRY.full_shift, GEOMETRY.default_steps, GEOMETRY.default_guidance


class Sampler:
    """The whole model on one device. ``mean`` and ``std`` standardise latents, one number per channel.

    On a GPU it runs in bfloat16 unless ``exact``.
    """

    def __init__(
        self,
        vae: AutoencoderKLWan,
        model: Any,
        encoder: Any,
        tokenizer: Any,
        mean: Tensor,
        std: Tensor,
        device: str,
        exact: bool = False,
    ) -> None:
        self.vae, self.model, self.encoder, self.tokenizer, self.device = vae, model, encoder, tokenizer, device
        self.half = device == "cuda" and not exact
        self.mean, self.std = mean.to(device).view(1, -1, 1, 1, 1), std.to(device).view(1, -1, 1, 1, 1)

    @classmethod
    def from_folder(cls, folder: Path, device: str, exact: bool = False) -> Sampler:
        """The model as it ships, its weights in float32."""
        model = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=torch.float32).to(device).eval()
        encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=torch.float32).to(device).eval()
        vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32).to(device).eval()
        autoencoder.channels_last(vae)
        mean, std = torch.tensor(vae.config.latents_mean), torch.tensor(vae.config.latents_std)
        return cls(vae, model, encoder, AutoTokenizer.from_pretrained(folder / "tokenizer"), mean, std, device, exact)

    @torch.no_grad()
    def latents(
        self,
        captions: Sequence[str],
        shape: Shape = FULL,
        seed: int = 0,
        guidance: float = 1.0,
        steps: int = NUM_STEPS,
        first: Tensor | None = None,
    ) -> Tensor:
        """Standardised latents [B, C, T, H, W]; noise of the i-th caption from ``seed + i``, drawn on the CPU.

        ``first [B, C, 1, H, W]`` is the first frame's latent where an image is given.
        """
        frames, side = shape
        size = (autoencoder.LATENT_CHANNELS, frames, side, side)
        noise = [torch.randn(size, generator=torch.Generator().manual_seed(seed + i)) for i in range(len(captions))]
        x = torch.stack(noise).to(self.device)
        conditions = [self._text(captions)] + ([self._text([""] * len(captions))] if guidance > 1 else [])
        for sigma, following in itertools.pairwise(sigmas(steps, SHIFT).tolist()):
            x = _pinned(x, first)
            v, *plain = (self._velocity(x, sigma, *condition, given=first is not None) for condition in conditions)
            v = plain[0] + guidance * (v - plain[0]) if plain else v
            x = x + (following - sigma) * v
        return _pinned(x, first)

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Standardised latents [B, C, 1, H, W] of images [B, 3, 1, H, W] in [-1, 1], in float32."""
        video = images.to(self.device).contiguous(memory_format=torch.channels_last_3d)
        return (autoencoder.encode(self.vae, video)[0] - self.mean) / self.std

    def raw(self, latents: Tensor) -> Tensor:
        """Latents as the decoder takes them."""
        return (latents * self.std + self.mean).contiguous(memory_format=torch.channels_last_3d)

    def _text(self, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        return text.encode(self.encoder, text.token_ids(self.tokenizer, captions).to(self.device))

    def _velocity(self, x: Tensor, sigma: float, rows: Tensor, bias: Tensor, given: bool) -> Tensor:
        levels = torch.full((len(x),), sigma, device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            first = torch.zeros_like(levels) if given else None
            return transformer.velocity(self.model, x, levels, rows, bias, first_sigma=first).float()

    @torch.no_grad()
    def videos(self, latents: Tensor, chunk: int = 16) -> np.ndarray:
        """uint8 [B, F, H, W, 3]."""
        out = []
        for part in latents.split(chunk):
            with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
                video = autoencoder.decode(self.vae, self.raw(part))
            video = video.float().clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8)
            out.append(video.permute(0, 2, 3, 4, 1).cpu().numpy())
        return np.concatenate(out)


def _pinned(x: Tensor, first: Tensor | None) -> Tensor:
    return x if first is None else torch.cat([first, x[:, :, 1:]], 2)


def contact_sheet(videos: np.ndarray, columns: int = 8) -> np.ndarray:
    """One row per video, ``columns`` evenly spaced frames of it: uint8 [rows, width, 3]."""
    picks = np.linspace(0, videos.shape[1] - 1, columns).round().astype(int)
    return np.concatenate([np.concatenate(list(video[picks]), 1) for video in videos], 0)
