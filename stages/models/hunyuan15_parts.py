"""The parts of a HunyuanVideo-1.5 checkpoint in diffusers format, loaded and checked against the geometry."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from orchestrator.geometry import ModelGeometry
from stages.attention import choose
from stages.models.base import Loading
from stages.models.checkpoint import TARGET_SIZES
from stages.models.hunyuan15_text import Hunyuan15Encoders
from stages.models.hunyuan15_transformer import Hunyuan15Transformer


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
        from transformers import SiglipImageProcessor, SiglipVisionModel

        encoders.image_encoder = _encoder(SiglipVisionModel, folder / "image_encoder", loading)
        encoders.image_processor = SiglipImageProcessor.from_pretrained(folder / "feature_extractor", local_files_only=True)
    return encoders


def _encoder(kind: Any, folder: Path, loading: Loading) -> Any:
    return kind.from_pretrained(folder, dtype=loading.dtype, local_files_only=True).to(loading.device).eval()


def load_transformer(geometry: ModelGeometry, folder: Path, loading: Loading) -> Hunyuan15Transformer:
    from diffusers import HunyuanVideo15Transformer3DModel

    path = folder / "transformer"
    config = HunyuanVideo15Transformer3DModel.load_config(path, local_files_only=True)
    facts = {
        "in_channels": (config["in_channels"], 2 * geometry.latent_channels + 1),
        "latent_channels": (config["out_channels"], geometry.latent_channels),
        "patch": ((config["patch_size_t"], config["patch_size"], config["patch_size"]), geometry.patch),
        "task_type": (config["task_type"], "i2v" if geometry.image == "required" else "t2v"),
        "use_meanflow": (config.get("use_meanflow", False), geometry.meanflow),
        "target_size": (config.get("target_size", 640), TARGET_SIZES[geometry.default_shape.height]),
    }
    _check(folder, geometry, facts)
    weights: Any = HunyuanVideo15Transformer3DModel.from_pretrained(path, dtype=loading.dtype, local_files_only=True)
    if loading.lora:
        from stages.models import lora

        lora.merge(weights, loading.lora)
    heads, head_dim = config["num_attention_heads"], config["attention_head_dim"]
    attention = choose(loading.attention, loading.device, heads, head_dim, loading.dtype)
    return Hunyuan15Transformer(weights.to(loading.device).eval().requires_grad_(False), attention, loading.compile)


def load_vae(geometry: ModelGeometry, folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """An ``AutoencoderKLHunyuanVideo15`` with the halves that are asked for."""
    from diffusers import AutoencoderKLHunyuanVideo15

    config = AutoencoderKLHunyuanVideo15.load_config(folder / "vae", local_files_only=True)
    stride = (config["temporal_compression_ratio"], *[config["spatial_compression_ratio"]] * 2)
    facts = {
        "latent_channels": (config["latent_channels"], geometry.latent_channels),
        "vae_stride": (stride, geometry.vae_stride),
    }
    _check(folder, geometry, facts)
    vae: Any = AutoencoderKLHunyuanVideo15.from_pretrained(folder / "vae", dtype=loading.dtype, local_files_only=True)
    if not encodes:
        vae.encoder = None
    if not decodes:
        vae.decoder = None
    return vae.to(loading.device).eval().requires_grad_(False)


def _check(folder: Path, geometry: ModelGeometry, facts: dict[str, tuple[Any, Any]]) -> None:
    """Plans are made from the geometry alone, so weights of other sizes would fail far from the cause."""
    wrong = [f"{key} is {found}, not {expected}" for key, (found, expected) in facts.items() if found != expected]
    if wrong:
        raise ValueError(f"the weights at {str(folder)!r} are no {geometry.name}: {'; '.join(wrong)}")
