"""Tiny HunyuanVideo-1.5 checkpoints with random weights: the files, components and channels of the published ones.

The stock ``HunyuanVideo15Pipeline`` and ``HunyuanVideo15ImageToVideoPipeline`` load them with ``from_pretrained``. One layer's
2048 x 2048 is fixed in diffusers, so transformer and VAE are stored in bfloat16, as the published ones are: 14 MB in all.
"""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.geometry import ModelGeometry
from stages.models.checkpoint import TARGET_SIZES

NUM_HEADS, ROPE_DIMS = 4, (4, 4, 4)
TEXT_DIM, GLYPH_DIM, IMAGE_DIM = 32, 24, 20
IMAGE_SIZE, IMAGE_PATCH = 28, 14
SYSTEM_CHARACTERS = 106
"""With one token per character, 108 tokens come before the user's text, as with the published tokenizer."""
CHAT = (
    "{% for message in messages %}{% if message.role == 'system' %}"
    "<|im_start|>{{ message.content[:" + str(SYSTEM_CHARACTERS) + "] }}|"
    "{% else %}{{ message.content }}{% endif %}{% endfor %}<|im_end|>"
)


def pipeline(geometry: ModelGeometry) -> Any:
    """The stock pipeline of a HunyuanVideo-1.5 model, its weights drawn by torch's generator."""
    from diffusers import (
        ClassifierFreeGuidance,
        FlowMatchEulerDiscreteScheduler,
        HunyuanVideo15ImageToVideoPipeline,
        HunyuanVideo15Pipeline,
    )
    from transformers import ByT5Tokenizer

    tokenizer = _tokenizer()
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": _text_encoder(tokenizer),
        "tokenizer_2": ByT5Tokenizer(),
        "text_encoder_2": _glyph_encoder(),
        "transformer": _transformer(geometry),
        "vae": _vae(geometry),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=geometry.full_shift),
        "guider": ClassifierFreeGuidance(guidance_scale=geometry.default_guidance),
    }
    if geometry.image == "none":
        return HunyuanVideo15Pipeline(**parts)
    return HunyuanVideo15ImageToVideoPipeline(**parts, **_image_parts())


def _tokenizer() -> Any:
    """Bytes as tokens: Qwen's tokenizer without its merges."""
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    vocab = {token: index for index, token in enumerate(sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(vocab=vocab, merges=[], padding_side="right")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = CHAT
    return tokenizer


def _text_encoder(tokenizer: Any) -> Any:
    from transformers import Qwen2_5_VLTextModel
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

    config = Qwen2_5_VLTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_DIM,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e6},
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2_5_VLTextModel(config)


def _glyph_encoder() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(vocab_size=384, d_model=GLYPH_DIM, d_kv=8, d_ff=32, num_layers=2, num_heads=2, dropout_rate=0.0)
    return T5EncoderModel(config)


def _image_parts() -> dict[str, Any]:
    from transformers import SiglipImageProcessorPil, SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=IMAGE_DIM,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_PATCH,
    )
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return {"image_encoder": SiglipVisionModel(config), "feature_extractor": SiglipImageProcessorPil(size=size)}


def _transformer(geometry: ModelGeometry) -> Any:
    from diffusers import HunyuanVideo15Transformer3DModel

    transformer: Any = HunyuanVideo15Transformer3DModel(
        in_channels=2 * geometry.latent_channels + 1,
        out_channels=geometry.latent_channels,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=sum(ROPE_DIMS),
        num_layers=2,
        num_refiner_layers=2,
        text_embed_dim=TEXT_DIM,
        text_embed_2_dim=GLYPH_DIM,
        image_embed_dim=IMAGE_DIM,
        rope_axes_dim=ROPE_DIMS,
        target_size=TARGET_SIZES[geometry.default_shape.height],
        task_type="t2v" if geometry.image == "none" else "i2v",
        use_meanflow=geometry.meanflow,
    )
    for name, parameter in transformer.named_parameters():
        if "norm" in name or name.endswith("bias"):  # away from 1 and 0, so that a forgotten one shows
            centre = 1.0 if "norm" in name and "linear" not in name and name.endswith("weight") else 0.0
            torch.nn.init.normal_(parameter, mean=centre, std=0.2)
    return _stored(transformer)


def _vae(geometry: ModelGeometry) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo15

    vae = AutoencoderKLHunyuanVideo15(
        latent_channels=geometry.latent_channels,
        block_out_channels=(8, 8, 16, 32, 64),
        layers_per_block=1,
        temporal_compression_ratio=geometry.vae_stride[0],
        spatial_compression_ratio=geometry.vae_stride[1],
    )
    for name, parameter in vae.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.2)
    return _stored(vae)


def _stored(module: Any) -> Any:
    """In bfloat16, parameter by parameter: diffusers warns of its own ``to``."""
    for parameter in module.parameters():
        parameter.data = parameter.data.bfloat16()
    return module
