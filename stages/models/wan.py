"""The Wan family (text-to-video) from a folder in diffusers format.

Under the same scheduler it equals the stock ``WanPipeline`` up to rounding. The scheduler here is Euler's
(``stages.sampling``), whatever the folder names: wan-mini ships with it, Wan 2.1's own folders with UniPC.
"""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.types import Grid
from stages.models.base import Condition, TextEmbedding
from stages.models.wan_decoder import WanDecoder
from stages.models.wan_transformer import TextMemory, WanTransformer

MAX_TEXT_TOKENS = 512
"""The stock pipeline pads or cuts every prompt to this many tokens."""


Part = TypeVar("Part")


class TextEncoder:
    """A tokenizer and its UMT5 encoder."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

    def __call__(self, prompt: str) -> TextEmbedding:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        ids = self.tokenizer(prompt_clean(prompt), max_length=MAX_TEXT_TOKENS, truncation=True).input_ids
        if not ids:
            return TextEmbedding(torch.zeros(1, 0, self.encoder.config.d_model, dtype=self.encoder.dtype), MAX_TEXT_TOKENS)
        rows = torch.tensor([ids], device=self.encoder.device)
        tokens = self.encoder(rows, torch.ones_like(rows)).last_hidden_state
        return TextEmbedding(tokens, MAX_TEXT_TOKENS - len(ids))


class WanModel:
    """The adapter. Parts that were not loaded are None; asking for their work raises RuntimeError."""

    def __init__(
        self,
        geometry: ModelGeometry,
        device: torch.device,
        dtype: torch.dtype,
        text: TextEncoder | None = None,
        transformer: WanTransformer | None = None,
        decoder: WanDecoder | None = None,
    ) -> None:
        self.geometry = geometry
        self.device = device
        self.dtype = dtype
        self.text = text
        self.transformer = transformer
        self.decoder = decoder
        self._memories: weakref.WeakKeyDictionary[TextEmbedding, TextMemory] = weakref.WeakKeyDictionary()

    @torch.inference_mode()
    def encode_text(self, prompt: str, negative: str, guidance: float) -> Condition:
        encode = self._part(self.text, "text")
        return Condition(encode(prompt), encode(negative) if guidance > 1 else None, guidance)

    @torch.inference_mode()
    def denoise(self, x: Tensor, sigma: float, condition: Condition) -> Tensor:
        transformer = self._part(self.transformer, "transformer")
        v = transformer(x, sigma, self._memory(condition.positive))
        if condition.negative is None:
            return v
        plain = transformer(x, sigma, self._memory(condition.negative))
        return plain + condition.guidance * (v - plain)

    @torch.inference_mode()
    def pixels(self, latent: Tensor) -> Tensor:
        video: Tensor = self._part(self.decoder, "vae")(latent.to(self.device))
        return video

    @torch.inference_mode()
    def decode(self, latent: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        levels = self.pixels(latent)[0].permute(1, 2, 3, 0).add(1).mul(127.5).round()
        frames: np.ndarray[Any, np.dtype[np.uint8]] = levels.to(torch.uint8).cpu().numpy()
        return frames

    def _memory(self, text: TextEmbedding) -> TextMemory:
        """Keys and values live as long as the embedding they came from."""
        if text not in self._memories:
            placed = TextEmbedding(text.tokens.to(self.device), text.num_pads)
            self._memories[text] = self._part(self.transformer, "transformer").remember(placed)
        return self._memories[text]

    def _part(self, part: Part | None, name: str) -> Part:
        if part is None:
            raise RuntimeError(f"this worker loaded {self.geometry.name} without its {name!r} part")
        return part


def load_wan(
    geometry: ModelGeometry, folder: str | Path, device: torch.device, dtype: torch.dtype, parts: frozenset[str]
) -> WanModel:
    """Load ``parts`` of a checkpoint in ``dtype``, its VAE in float32.

    Raises ValueError for a folder that is not there or does not fit ``geometry``.
    """
    folder = Path(folder)
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"no model at {str(folder)!r}: a folder in diffusers format has a model_index.json")
    text = _load_text(folder, device, dtype) if "text" in parts else None
    transformer = _load_transformer(folder, device, dtype, geometry) if "transformer" in parts else None
    decoder = _load_decoder(folder, device, geometry) if "vae" in parts else None
    return WanModel(geometry, device, dtype, text, transformer, decoder)


def _load_text(folder: Path, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=dtype, local_files_only=True)
    return TextEncoder(tokenizer, encoder.to(device).eval())


def _load_transformer(folder: Path, device: torch.device, dtype: torch.dtype, geometry: ModelGeometry) -> WanTransformer:
    from diffusers import WanTransformer3DModel

    weights = WanTransformer3DModel.from_pretrained(folder / "transformer", torch_dtype=dtype, local_files_only=True)
    config = weights.config
    _check(folder, {"latent_channels": config.in_channels, "patch": tuple(config.patch_size)}, geometry)
    return WanTransformer(weights.to(device).eval().requires_grad_(False))


def _load_decoder(folder: Path, device: torch.device, geometry: ModelGeometry) -> WanDecoder:
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(folder / "vae", torch_dtype=torch.float32, local_files_only=True)
    stride: Grid = (vae.config.scale_factor_temporal, *[vae.config.scale_factor_spatial] * 2)
    _check(folder, {"latent_channels": vae.config.z_dim, "vae_stride": stride}, geometry)
    return WanDecoder(vae.to(device).eval().requires_grad_(False))


def _check(folder: Path, found: dict[str, Any], geometry: ModelGeometry) -> None:
    """Plans are made from the geometry alone, so weights of other sizes would fail far from the cause."""
    wrong = [f"{key} is {value}, not {getattr(geometry, key)}" for key, value in found.items() if value != getattr(geometry, key)]
    if wrong:
        raise ValueError(f"the weights at {str(folder)!r} are no {geometry.name}: {'; '.join(wrong)}")
