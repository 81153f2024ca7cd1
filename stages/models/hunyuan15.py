"""HunyuanVideo-1.5 (arXiv 2511.18870) from a folder in diffusers format: text or image to video, with true guidance,
guidance-distilled (one branch), or step-distilled, which is told the next step's timestep too (MeanFlow).

Under the same scheduler it equals the stock pipelines at batch 1 up to rounding.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from stages.memory import modules_of, working_bytes
from stages.models import first_frame
from stages.models.adapter import Adapter
from stages.models.base import Branch, Condition, ImageMode, Loading, Placed, Request, encodes
from stages.models.hunyuan15_parts import Guider, load_encoders, load_guider, load_transformer, load_vae
from stages.models.hunyuan15_text import Hunyuan15Encoders
from stages.models.hunyuan15_transformer import Hunyuan15Transformer, PromptMemory
from stages.models.hunyuan15_vae import Hunyuan15Decoder, Hunyuan15ImageEncoder
from stages.resize import Axes
from stages.sampling import NoiseLevel


@dataclass(frozen=True)
class Parts:
    """What was loaded; None for the rest."""

    encoders: Hunyuan15Encoders | None = None
    image_encoder: Hunyuan15ImageEncoder | None = None
    transformer: Hunyuan15Transformer | None = None
    decoder: Hunyuan15Decoder | None = None
    guider: Guider = field(default_factory=Guider)


class Hunyuan15Model(Adapter):
    """The adapter."""

    def __init__(self, geometry: ModelGeometry, device: torch.device, dtype: torch.dtype, parts: Parts) -> None:
        text, vae = modules_of(parts.encoders), modules_of(parts.image_encoder, parts.decoder)
        seam = None if parts.transformer is None else parts.transformer.seam
        super().__init__(geometry, device, dtype, parts.decoder, {"text": text, "vae": vae}, seam, parts.image_encoder)
        self.parts = parts
        self._memories: weakref.WeakKeyDictionary[Branch, PromptMemory] = weakref.WeakKeyDictionary()

    @torch.inference_mode()
    def encode(self, request: Request) -> Condition:
        encoders = self._part(self.parts.encoders, "text")
        found = first_frame.wanted(self.geometry, request.image, self.geometry.image == "required")
        image, pixels, latent = {}, None, None
        self.turns.settle(working_bytes(self.geometry, request.shape))
        with self.turns.turn("text"):
            if found is not None:
                frame = encoders.image(found, request.shape.height, request.shape.width)
                pixels, image = frame.pixels, {"image": frame.tokens}
            positive = Branch({**encoders.prompt(request.prompt), **image})
            negative = Branch({**encoders.prompt(request.negative), **image}) if request.guidance > 1 else None
        if pixels is not None:
            latent = self._encode_frame(pixels)
        return Condition(positive, negative, request.guidance, image=pixels, latent=latent)

    @torch.inference_mode()
    def place(self, condition: Condition, axes: Axes, mode: ImageMode) -> Placed:
        """The image's latent in frame 0 and zeros elsewhere, beside a mask that is 1 in frame 0. Text alone needs no channels."""
        if condition.latent is None:
            return Placed(condition)
        first = self._first_frame(condition, condition.latent, axes, mode)
        mask = torch.ones_like(first[:, :1])
        return Placed(condition, latent=F.pad(torch.cat([first, mask], dim=1), (0, 0, 0, 0, 0, len(axes[0]) - 1)))

    def start(self, noise: Tensor, placed: Placed) -> Tensor:
        return noise.to(self.device)

    @torch.inference_mode()
    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        transformer = self._part(self.parts.transformer, "transformer")
        transformer.boost = self.boost
        time, condition = transformer.time(level), placed.condition

        def forward(branch: Branch) -> Tensor:
            return transformer(x, placed.latent, time, self._memory(branch), placed.positions, placed.mixed)

        v, plain = self._guided(condition, forward)
        return v if plain is None else self.parts.guider(v, plain, condition.guidance)

    def _first_frame(self, condition: Condition, latent: Tensor, axes: Axes, mode: ImageMode) -> Tensor:
        """Latent ``[1, C, 1, h, w]`` of the image on the rows and columns of ``axes``."""
        height, width = len(axes[1]), len(axes[2])
        if mode == "index" or condition.image is None or latent.shape[3:] == (height, width):
            return first_frame.pick(latent, axes).to(self.device)
        _, stride_h, stride_w = self.geometry.vae_stride
        return self._encode_frame(first_frame.resized(condition.image, height * stride_h, width * stride_w))

    def _encode_frame(self, pixels: Tensor) -> Tensor:
        with self.turns.turn("vae"):
            return self._part(self.parts.image_encoder, "encoder")(pixels)

    def _memory(self, branch: Branch) -> PromptMemory:
        """A prompt's projections live as long as its encoding."""
        if branch not in self._memories:
            self._memories[branch] = self._part(self.parts.transformer, "transformer").remember(branch.tensors)
        return self._memories[branch]


def load_hunyuan15(geometry: ModelGeometry, folder: Path, loading: Loading) -> Hunyuan15Model:
    """Load the parts that ``loading`` names. Raises ValueError for weights that do not fit ``geometry``."""
    wanted, takes_image = loading.parts, geometry.image == "required"
    does_encode, decodes = encodes(wanted, takes_image), "vae" in wanted
    vae = load_vae(folder, loading, encodes=does_encode, decodes=decodes) if does_encode or decodes else None
    parts = Parts(
        load_encoders(geometry, folder, loading) if "text" in wanted else None,
        Hunyuan15ImageEncoder(vae) if does_encode else None,
        load_transformer(folder, loading) if "transformer" in wanted else None,
        Hunyuan15Decoder(vae) if decodes else None,
        load_guider(folder),
    )
    return Hunyuan15Model(geometry, loading.device, loading.dtype, parts)
