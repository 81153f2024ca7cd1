"""The parts of a HunyuanVideo-1.5 checkpoint in diffusers format. ``stages.models.checkpoint`` has checked the folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from orchestrator.geometry import ModelGeometry
from stages.attention import choose
from stages.models.adapter import load_halves
from stages.models.base import Loading
from stages.models.hunyuan15_text import Hunyuan15Encoders
from stages.models.hunyuan15_transformer import Hunyuan15Transformer
from stages.models.pretrained import pretrained


@dataclass(frozen=True)
class Guider:
    """How a checkpoint combines its two branches: diffusers' ``ClassifierFreeGuidance`` over all steps."""

    rescale: float = 0.0

    def __call__(self, prompted: Tensor, plain: Tensor, guidance: float) -> Tensor:
        guided = plain + guidance * (prompted - plain)
        if self.rescale == 0:
            return guided
        from diffusers.guiders.guider_utils import rescale_noise_cfg

        rescaled: Tensor = rescale_noise_cfg(guided, prompted, self.rescale)
        return rescaled


def load_guider(folder: Path) -> Guider:
    """Its scale is the checkpoint's default guidance, which a request decides. Raises ValueError for other kinds of guidance."""
    file = folder / "guider" / "guider_config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    plain = {
        "_class_name": "ClassifierFreeGuidance",
        "use_original_formulation": False,
        "start": 0.0,
        "stop": 1.0,
        "enabled": True,
    }
    if odd := [f"{key} {config[key]}" for key, value in plain.items() if config.get(key, value) != value]:
        raise ValueError(f"the guider of {str(folder)!r} has {', '.join(odd)}: only plain classifier-free guidance is supported")
    return Guider(config.get("guidance_rescale", 0.0))


def load_encoders(geometry: ModelGeometry, folder: Path, loading: Loading) -> Hunyuan15Encoders:
    from transformers import ByT5Tokenizer, Qwen2_5_VLTextModel, Qwen2Tokenizer, T5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = Qwen2Tokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    glyph_tokenizer = ByT5Tokenizer.from_pretrained(folder / "tokenizer_2", local_files_only=True)
    text = _encoder(Qwen2_5_VLTextModel, folder / "text_encoder", loading)
    glyphs = _encoder(T5EncoderModel, folder / "text_encoder_2", loading)
    encoders = Hunyuan15Encoders(tokenizer, text, glyph_tokenizer, glyphs)
    if geometry.image == "required":
        from transformers import SiglipImageProcessorPil, SiglipVisionModel

        encoders.image_encoder = _encoder(SiglipVisionModel, folder / "image_encoder", loading)
        # The one on PIL, whether torchvision is there or not, so that an image gives the same tokens anywhere.
        encoders.image_processor = SiglipImageProcessorPil.from_pretrained(folder / "feature_extractor", local_files_only=True)
    return encoders


def _encoder(kind: Any, folder: Path, loading: Loading) -> Any:
    return pretrained(kind, folder, loading.dtype).to(loading.device)


def load_transformer(folder: Path, loading: Loading) -> Hunyuan15Transformer:
    """The transformer with its low-rank adapters merged."""
    from diffusers import HunyuanVideo15Transformer3DModel

    weights = pretrained(HunyuanVideo15Transformer3DModel, folder / "transformer", loading.dtype)
    if loading.lora:
        from stages.models import lora

        lora.merge(weights, loading.lora)
    heads, head_dim = weights.config.num_attention_heads, weights.config.attention_head_dim
    attention = choose(loading.attention, loading.device, heads, head_dim, loading.dtype)
    return Hunyuan15Transformer(weights.to(loading.home).requires_grad_(False), attention, loading.compile, loading.shard)


def load_vae(folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """An ``AutoencoderKLHunyuanVideo15`` with the halves that are asked for."""
    from diffusers import AutoencoderKLHunyuanVideo15

    return load_halves(AutoencoderKLHunyuanVideo15, folder, loading, encodes=encodes, decodes=decodes)
