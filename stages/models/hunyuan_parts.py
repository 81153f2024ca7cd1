"""The parts of a HunyuanVideo checkpoint in diffusers format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orchestrator.geometry import ModelGeometry
from stages.attention import choose
from stages.models.adapter import load_halves
from stages.models.base import Loading
from stages.models.hunyuan_text import LlamaText, LlavaText, Summary, TextEncoder, shorten
from stages.models.hunyuan_transformer import HunyuanTransformer
from stages.models.pretrained import pretrained


def load_text(folder: Path, geometry: ModelGeometry, loading: Loading) -> tuple[TextEncoder, Summary]:
    """The encoders of the prompt, and of the image where the model takes one."""
    from transformers import CLIPTextModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    summary = pretrained(CLIPTextModel, folder / "text_encoder_2", loading.dtype).to(loading.device)
    tokenizer = _tokenizer(folder, "tokenizer")
    takes_image = geometry.image == "required"
    encoder = _load_llava(folder, loading) if takes_image else _load_llama(folder, loading)
    text = LlavaText(tokenizer, encoder, _processor(folder)) if takes_image else LlamaText(tokenizer, encoder)
    return text, Summary(_tokenizer(folder, "tokenizer_2"), summary)


def _load_llama(folder: Path, loading: Loading) -> Any:
    from transformers import LlamaModel

    encoder = pretrained(LlamaModel, folder / "text_encoder", loading.dtype)
    shorten(encoder)
    return encoder.to(loading.device)


def _load_llava(folder: Path, loading: Loading) -> Any:
    """Without the head that predicts words."""
    from transformers import LlavaForConditionalGeneration

    encoder = pretrained(LlavaForConditionalGeneration, folder / "text_encoder", loading.dtype).model
    shorten(encoder.language_model)
    return encoder.to(loading.device)


def load_transformer(folder: Path, loading: Loading) -> HunyuanTransformer:
    """The transformer with its low-rank adapters merged."""
    from diffusers import HunyuanVideoTransformer3DModel

    weights: Any = pretrained(HunyuanVideoTransformer3DModel, folder / "transformer", loading.dtype)
    if loading.lora:
        from stages.models import lora

        lora.merge(weights, loading.lora)
    heads, head_dim = weights.config.num_attention_heads, weights.config.attention_head_dim
    attention = choose(loading.attention, loading.device, heads, head_dim, loading.dtype)
    return HunyuanTransformer(weights.to(loading.home).requires_grad_(False), attention, loading.compile, loading.shard)


def load_vae(folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """An ``AutoencoderKLHunyuanVideo`` with the halves that are asked for."""
    from diffusers import AutoencoderKLHunyuanVideo

    return load_halves(AutoencoderKLHunyuanVideo, folder, loading, encodes=encodes, decodes=decodes)


def _tokenizer(folder: Path, name: str) -> Any:
    """By the class that the index names, as the stock pipeline: another class may split the same files' text differently."""
    import transformers

    kind = json.loads((folder / "model_index.json").read_text())[name][1]
    return getattr(transformers, kind).from_pretrained(folder / name, local_files_only=True)


def _processor(folder: Path) -> Any:
    """The one on PIL, whether torchvision is there or not, so that an image gives the same tokens anywhere."""
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil.from_pretrained(folder / "image_processor", local_files_only=True)
