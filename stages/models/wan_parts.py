"""The parts of a Wan checkpoint in diffusers format, loaded and checked against the geometry that plans are made from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.geometry import ModelGeometry
from stages.models.base import Loading
from stages.models.wan_image import NUM_MASK_CHANNELS, ImageTokens
from stages.models.wan_text import TextEncoder
from stages.models.wan_transformer import WanTransformer


@dataclass(frozen=True)
class Index:
    """What ``model_index.json`` says."""

    components: frozenset[str]
    boundary: float | None
    """Noise level from which the high-noise expert works, of two."""
    expand_timesteps: bool
    """A first frame may be given clean, with timesteps of its own (Wan 2.2 TI2V)."""


def read_index(folder: Path) -> Index:
    """Raises ValueError for a folder that is not there."""
    file = folder / "model_index.json"
    if not file.is_file():
        raise ValueError(f"no model at {str(folder)!r}: a folder in diffusers format has a model_index.json")
    rows = json.loads(file.read_text())
    components = frozenset(name for name, row in rows.items() if isinstance(row, list) and row[0] is not None)
    return Index(components, rows.get("boundary_ratio"), bool(rows.get("expand_timesteps")))


def load_text(folder: Path, loading: Loading) -> TextEncoder:
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = UMT5EncoderModel.from_pretrained(folder / "text_encoder", dtype=loading.dtype, local_files_only=True)
    return TextEncoder(tokenizer, encoder.to(loading.device).eval())


def load_image_tokens(folder: Path, loading: Loading) -> ImageTokens:
    from transformers import CLIPImageProcessor, CLIPVisionModel

    processor = CLIPImageProcessor.from_pretrained(folder / "image_processor", local_files_only=True)
    encoder = CLIPVisionModel.from_pretrained(folder / "image_encoder", dtype=loading.dtype, local_files_only=True)
    return ImageTokens(processor, encoder.to(loading.device).eval())


def load_experts(folder: Path, index: Index, geometry: ModelGeometry, loading: Loading) -> tuple[WanTransformer, ...]:
    """The transformer, or the high-noise and then the low-noise one."""
    found = [name for name in ("transformer", "transformer_2") if name in index.components]
    expected = ["transformer"] if geometry.boundary is None else ["transformer", "transformer_2"]
    _check(folder, geometry, {"experts": (", ".join(found) or "none", ", ".join(expected))})
    return tuple(_load_expert(folder / name, index, geometry, loading) for name in expected)


def _load_expert(folder: Path, index: Index, geometry: ModelGeometry, loading: Loading) -> WanTransformer:
    from diffusers import WanTransformer3DModel

    config = WanTransformer3DModel.load_config(folder, local_files_only=True)
    channels = geometry.latent_channels
    takes_image = geometry.image == "required"
    extra = NUM_MASK_CHANNELS + channels if takes_image else 0
    tokens = config["image_dim"] is not None
    facts = {
        "in_channels": (config["in_channels"], channels + extra),
        "out_channels": (config["out_channels"], channels),
        "patch": (tuple(config["patch_size"]), geometry.patch),
        "image tokens": (tokens, tokens and takes_image and "image_encoder" in index.components),
    }
    _check(folder, geometry, facts)
    weights: Any = WanTransformer3DModel.from_pretrained(folder, dtype=loading.dtype, local_files_only=True)
    if loading.lora:
        from stages.models import lora

        lora.merge(weights, loading.lora, "low" if folder.name == "transformer_2" else "high")
    return WanTransformer(weights.to(loading.device).eval().requires_grad_(False))


def load_vae(folder: Path, geometry: ModelGeometry, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """An ``AutoencoderKLWan`` with the halves that are asked for, in the model's dtype."""
    from diffusers import AutoencoderKLWan

    config = AutoencoderKLWan.load_config(folder / "vae", local_files_only=True)
    stride = (config["scale_factor_temporal"], *[config["scale_factor_spatial"]] * 2)
    facts = {"latent_channels": (config["z_dim"], geometry.latent_channels), "vae_stride": (stride, geometry.vae_stride)}
    _check(folder, geometry, facts)
    vae: Any = AutoencoderKLWan.from_pretrained(folder / "vae", dtype=loading.dtype, local_files_only=True)
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
