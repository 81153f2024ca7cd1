"""Tiny Wan checkpoints with random weights: the files, components and channels of the published ones, small in all else.

The stock ``WanPipeline`` and ``WanImageToVideoPipeline`` load them with ``from_pretrained``.
"""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.catalogue import WAN_MINI
from orchestrator.geometry import ModelGeometry

WORDS = (
    *("a", "the", "red", "green", "blue", "circle", "square", "moves", "left"),
    *("right", "up", "down", "still", "fast", "slow", "over", "plain", "checker"),
)
TEXT_DIM = 32
IMAGE_DIM = 24
NUM_HEADS, HEAD_DIM = 4, 12


def pipeline(geometry: ModelGeometry) -> Any:
    """The stock pipeline of a Wan model, its weights drawn by torch's generator."""
    from diffusers import WanImageToVideoPipeline, WanPipeline

    tokenizer = _tokenizer()
    has_tokens = geometry.image == "required" and geometry.boundary is None
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "text_encoder": _text_encoder(len(tokenizer)),
        "vae": _vae(geometry),
        "scheduler": _scheduler(geometry),
        "transformer": _transformer(geometry, has_tokens),
        "transformer_2": None if geometry.boundary is None else _transformer(geometry, has_tokens),
        "boundary_ratio": geometry.boundary,
        "expand_timesteps": geometry.image == "optional",
    }
    if geometry.image != "required":
        return WanPipeline(**parts)
    return WanImageToVideoPipeline(**parts, **(_image_parts() if has_tokens else {}))


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _text_encoder(num_words: int) -> Any:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(vocab_size=num_words, d_model=TEXT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0)
    return UMT5EncoderModel(config)


def _image_parts() -> dict[str, Any]:
    """CLIP's vision model at 32 pixels: 17 tokens instead of 257."""
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=IMAGE_DIM, intermediate_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=32, patch_size=8
    )
    size = {"height": 32, "width": 32}
    return {
        "image_encoder": CLIPVisionModel(config),
        "image_processor": CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size),
    }


def _transformer(geometry: ModelGeometry, has_tokens: bool) -> Any:
    from diffusers import WanTransformer3DModel

    channels = geometry.latent_channels
    beside = channels + geometry.vae_stride[0] if geometry.image == "required" else 0
    transformer = WanTransformer3DModel(
        patch_size=geometry.patch,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=channels + beside,
        out_channels=channels,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
        image_dim=IMAGE_DIM if has_tokens else None,
        added_kv_proj_dim=NUM_HEADS * HEAD_DIM if has_tokens else None,
    )
    for name, parameter in transformer.named_parameters():
        if "norm" in name or name.endswith("bias"):  # away from 1 and 0, so that a forgotten one shows
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    return transformer


def _vae(geometry: ModelGeometry) -> Any:
    """Wan 2.1's layout for a stride of 8; patches of 2 pixels for wan-mini, and Wan 2.2's residual one for a stride of 16."""
    from diffusers import AutoencoderKLWan

    channels, (stride_t, stride, _) = geometry.latent_channels, geometry.vae_stride
    patched = stride == 16 or geometry.name == WAN_MINI.name
    levels = [1, 2, 2] if geometry.name == WAN_MINI.name else [1, 2, 2, 2]
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=levels,
        num_res_blocks=1,
        temperal_downsample=[False] * (len(levels) - 3) + [True, True],
        latents_mean=[0.1 * (i % 16) for i in range(channels)],
        latents_std=[1.0 + 0.1 * (i % 16) for i in range(channels)],
        is_residual=stride == 16,
        patch_size=2 if patched else None,
        in_channels=12 if patched else 3,
        out_channels=12 if patched else 3,
        scale_factor_temporal=stride_t,
        scale_factor_spatial=stride,
    )


def _scheduler(geometry: ModelGeometry) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    if geometry.solver == "euler":
        return FlowMatchEulerDiscreteScheduler(shift=geometry.full_shift)
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=geometry.full_shift
    )
