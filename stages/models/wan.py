"""The Wan family from a folder in diffusers format: Wan 2.1 and 2.2, from text, from an image, with one expert or two.

Under the same solver a full run equals the stock ``WanPipeline`` or ``WanImageToVideoPipeline`` up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from stages.memory import modules_of, working_bytes
from stages.models import first_frame
from stages.models.adapter import Adapter
from stages.models.base import Branch, Condition, ImageMode, Loading, Placed, Request, encodes
from stages.models.wan_decoder import WanDecoder, WanEncoder
from stages.models.wan_image import ImageTokens, padded, with_mask
from stages.models.wan_parts import Index, load_experts, load_image_tokens, load_text, load_vae, read_index
from stages.models.wan_text import TextEncoder
from stages.models.wan_transformer import WanTransformer
from stages.resize import Axes
from stages.sampling import NoiseLevel


@dataclass(frozen=True, eq=False)
class WanParts:
    """What was loaded; the rest is None, or empty."""

    text: TextEncoder | None = None
    image_tokens: ImageTokens | None = None
    encoder: WanEncoder | None = None
    experts: Sequence[WanTransformer] = ()
    decoder: WanDecoder | None = None


class WanModel(Adapter):
    """The adapter."""

    def __init__(self, geometry: ModelGeometry, device: torch.device, dtype: torch.dtype, index: Index, parts: WanParts) -> None:
        text, vae = modules_of(parts.text, parts.image_tokens), modules_of(parts.encoder, parts.decoder)
        seam = parts.experts[0].seam if parts.experts else None
        super().__init__(geometry, device, dtype, parts.decoder, {"text": text, "vae": vae}, seam, parts.encoder)
        self.parts = parts
        self.boundary = geometry.boundary if index.boundary is None else index.boundary
        self.takes_image = _takes_image(geometry, index)
        self.holds_first_frame = geometry.image == "optional"

    @torch.inference_mode()
    def encode(self, request: Request) -> Condition:
        image = first_frame.wanted(self.geometry, request.image, self.takes_image)
        self.turns.settle(working_bytes(self.geometry, request.shape))
        with self.turns.turn("text"):
            tensors = self._image_tensors(image)
            positive = self._branch(request.prompt, tensors)
            negative = self._branch(request.negative, tensors) if request.guidance > 1 else None
        condition = Condition(positive, negative, request.guidance, request.guidance_low)
        if image is None:
            return condition
        frame = first_frame.stretched(image, request.shape)
        return replace(condition, image=frame, latent=self._encode_frame(frame, request.shape.num_frames))

    @torch.inference_mode()
    def place(self, condition: Condition, axes: Axes, mode: ImageMode) -> Placed:
        if condition.latent is None:
            return Placed(condition)
        latent = self._cells(condition, condition.latent, axes, mode).to(self.device)
        return Placed(condition, pinned=latent) if self.holds_first_frame else Placed(condition, latent=with_mask(latent))

    def start(self, noise: Tensor, placed: Placed) -> Tensor:
        return placed.pin(noise.to(self.device))

    @torch.inference_mode()
    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        expert, guidance = self._expert(level, placed.condition)
        expert.boost = self.boost
        clean_first = placed.pinned is not None
        seen = x if placed.latent is None else torch.cat([x, placed.latent], dim=1)
        told = clean_first, placed.positions, placed.mixed
        v, plain = self._guided(placed.condition, lambda branch: expert(seen, level.timestep, branch, *told))
        if plain is not None:
            v = plain + guidance * (v - plain)
        if clean_first:  # a clean frame does not move, and its own estimate of itself is exact
            v[:, :, 0] = 0
        return v

    def _expert(self, level: NoiseLevel, condition: Condition) -> tuple[WanTransformer, float]:
        """The expert of this noise level, on whichever schedule it lies, and its guidance."""
        experts = self._part(self.parts.experts or None, "transformer")
        if self.boundary is None or level.timestep >= self.boundary * 1000:
            return experts[0], condition.guidance
        return experts[-1], condition.guidance if condition.guidance_low is None else condition.guidance_low

    def _image_tensors(self, image: Image | None) -> dict[str, Tensor]:
        if image is None or self.parts.image_tokens is None:
            return {}
        return {"image": self.parts.image_tokens(image)}

    def _branch(self, prompt: str, tensors: dict[str, Tensor]) -> Branch:
        text, num_pads = self._part(self.parts.text, "text")(prompt)
        return Branch({"text": text, **tensors}, num_pads)

    def _cells(self, condition: Condition, latent: Tensor, axes: Axes, mode: ImageMode) -> Tensor:
        """The image's latent on the cells ``axes``; on the full grid both modes give it as it is."""
        height, width = (len(axis) for axis in axes[1:])
        num_frames = len(axes[0]) if latent.shape[2] > 1 else 1
        if latent.shape[2:] == (num_frames, height, width):
            return latent
        if mode == "index" or condition.image is None:
            return first_frame.pick(latent, axes)
        if latent.shape[3:] == (height, width):  # the encoder is causal: of fewer frames it gives the first latent ones
            return latent[:, :, :num_frames]
        stride_t, stride_h, stride_w = self.geometry.vae_stride
        frame = first_frame.resized(condition.image, height * stride_h, width * stride_w)
        return self._encode_frame(frame, stride_t * (len(axes[0]) - 1) + 1)

    def _encode_frame(self, frame: Tensor, num_frames: int) -> Tensor:
        """Latent of a first frame: alone, or with nothing after it for models that take it beside the noise."""
        encoder = self._part(self.parts.encoder, "encoder")
        with self.turns.turn("vae"):
            latent: Tensor = encoder(frame if self.holds_first_frame else padded(frame, num_frames))
        return latent


def load_wan(geometry: ModelGeometry, folder: Path, loading: Loading) -> WanModel:
    """Load parts of a checkpoint, the folder of which ``stages.models.weights`` has found and checked."""
    index = read_index(folder)
    has_text, decodes = "text" in loading.parts, "vae" in loading.parts
    does_encode = encodes(loading.parts, _takes_image(geometry, index))
    vae = load_vae(folder, loading, encodes=does_encode, decodes=decodes) if does_encode or decodes else None
    parts = WanParts(
        text=load_text(folder, loading) if has_text else None,
        image_tokens=load_image_tokens(folder, loading) if has_text and "image_encoder" in index.components else None,
        encoder=WanEncoder(vae) if does_encode else None,
        experts=load_experts(folder, geometry, loading) if "transformer" in loading.parts else (),
        decoder=WanDecoder(vae) if decodes else None,
    )
    return WanModel(geometry, loading.device, loading.dtype, index, parts)


def _takes_image(geometry: ModelGeometry, index: Index) -> bool:
    return geometry.image == "required" or (geometry.image == "optional" and index.expand_timesteps)
