"""HunyuanVideo (arXiv 2412.03603) from a folder in diffusers format: from text, or from an image with token replacement.

Guidance is distilled into the network, which is told its scale: one forward a step. A negative prompt would need a second
forward that the released weights were not made for, so it is not used.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from parallel.decoding import handed_on
from stages.memory import modules_of, working_bytes
from stages.models import first_frame
from stages.models.adapter import Adapter
from stages.models.base import Branch, Condition, ImageMode, Loading, Placed, Request, encodes
from stages.models.hunyuan_parts import load_text, load_transformer, load_vae
from stages.models.hunyuan_text import Summary, TextEncoder
from stages.models.hunyuan_transformer import HunyuanTransformer, Prompt
from stages.models.hunyuan_vae import HunyuanDecoder, HunyuanEncoder
from stages.resize import Axes
from stages.sampling import NoiseLevel

NOISE_SHARE = 0.999
"""Of the first latent in image-to-video; the rest is the image's latent, in every frame."""


@dataclass(frozen=True, eq=False)
class HunyuanParts:
    """What was loaded; the rest is None."""

    text: TextEncoder | None = None
    summary: Summary | None = None
    encoder: HunyuanEncoder | None = None
    transformer: HunyuanTransformer | None = None
    decoder: HunyuanDecoder | None = None


class HunyuanModel(Adapter):
    """The adapter."""

    def __init__(self, geometry: ModelGeometry, device: torch.device, dtype: torch.dtype, parts: HunyuanParts) -> None:
        text, vae = modules_of(parts.text, parts.summary), modules_of(parts.encoder, parts.decoder)
        seam = None if parts.transformer is None else parts.transformer.seam
        half = None if parts.encoder is None else parts.encoder.half
        super().__init__(geometry, device, dtype, parts.decoder, {"text": text, "vae": vae}, seam, half)
        self.parts = parts
        self._prompts: weakref.WeakKeyDictionary[Branch, Prompt] = weakref.WeakKeyDictionary()

    @torch.inference_mode()
    def encode(self, request: Request) -> Condition:
        """``request.negative`` is not used, whatever the guidance: see the module."""
        image = first_frame.wanted(self.geometry, request.image, self.geometry.image == "required")
        text, summary = self._part(self.parts.text, "text"), self._part(self.parts.summary, "text")
        self.turns.settle(working_bytes(self.geometry, request.shape))
        with self.turns.turn("text"):
            branch = Branch({"text": text(request.prompt, image), "pooled": summary(request.prompt)})
        if image is None:
            return Condition(branch, None, request.guidance)
        frame = first_frame.stretched(image, request.shape)
        return Condition(branch, None, request.guidance, image=frame, latent=self._encode_frame(frame))

    @torch.inference_mode()
    def place(self, condition: Condition, axes: Axes, mode: ImageMode) -> Placed:
        if condition.latent is None:
            return Placed(condition)
        return Placed(condition, pinned=self._cells(condition, condition.latent, axes, mode).to(self.device))

    def start(self, noise: Tensor, placed: Placed) -> Tensor:
        x = noise.to(self.device)
        if placed.pinned is None:
            return x
        return placed.pin(x * NOISE_SHARE + placed.pinned * (1 - NOISE_SHARE))

    @torch.inference_mode()
    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        transformer = self._part(self.parts.transformer, "transformer")
        transformer.boost = self.boost
        condition, t = placed.condition, level.timestep

        def forward(text: Branch) -> Tensor:
            return transformer(x, t, condition.guidance, self._prompt(transformer, text), placed.positions, placed.mixed)

        v, _ = self._guided(condition, forward)
        if placed.pinned is not None:  # the clean frame does not move, and is its own clean estimate
            v[:, :, 0] = 0
        return v

    @torch.inference_mode()
    def preview(self, latent: Tensor) -> Tensor:
        """At half the height and width, as VGDFR's release looks at clean estimates."""
        decoder = self._part(self.parts.decoder, "vae")
        with self.turns.turn("vae"):
            return handed_on(decoder.group, decoder.runs(latent.to(self.device), half=True))

    def _prompt(self, transformer: HunyuanTransformer, branch: Branch) -> Prompt:
        """What follows from the prompt alone lives as long as the branch it came from."""
        if branch not in self._prompts:
            text, pooled = (branch.tensors[name].to(self.device) for name in ("text", "pooled"))
            self._prompts[branch] = transformer.remember(text, pooled)
        return self._prompts[branch]

    def _cells(self, condition: Condition, latent: Tensor, axes: Axes, mode: ImageMode) -> Tensor:
        """The image's latent on the rows and columns of ``axes``; on the full grid both modes give it as it is."""
        height, width = (len(axis) for axis in axes[1:])
        if latent.shape[3:] == (height, width):
            return latent
        if mode == "index" or condition.image is None:
            return first_frame.pick(latent, axes)
        _, stride_h, stride_w = self.geometry.vae_stride
        return self._encode_frame(first_frame.resized(condition.image, height * stride_h, width * stride_w))

    def _encode_frame(self, frame: Tensor) -> Tensor:
        with self.turns.turn("vae"):
            return self._part(self.parts.encoder, "encoder")(frame)


def load_hunyuan(geometry: ModelGeometry, folder: Path, loading: Loading) -> HunyuanModel:
    """Load parts of a checkpoint that fits ``geometry`` (``stages.models.checkpoint`` tells)."""
    has_text, decodes = "text" in loading.parts, "vae" in loading.parts
    does_encode = encodes(loading.parts, geometry.image == "required")
    vae = load_vae(folder, loading, encodes=does_encode, decodes=decodes) if does_encode or decodes else None
    text, summary = load_text(folder, geometry, loading) if has_text else (None, None)
    parts = HunyuanParts(
        text=text,
        summary=summary,
        encoder=HunyuanEncoder(vae) if does_encode else None,
        transformer=load_transformer(folder, loading) if "transformer" in loading.parts else None,
        decoder=HunyuanDecoder(vae) if decodes else None,
    )
    return HunyuanModel(geometry, loading.device, loading.dtype, parts)
