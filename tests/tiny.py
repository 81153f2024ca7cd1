"""A tiny Wan-format checkpoint with random weights: the same files and shapes as a real one, small enough for any test."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from orchestrator.geometry import model

GEOMETRY = model("wan-mini")
WORDS = (
    "a",
    "the",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "moves",
    "left",
    "right",
    "up",
    "down",
    "still",
    "fast",
    "slow",
    "over",
    "plain",
    "checker",
)
TEXT_DIM = 32
NUM_HEADS, HEAD_DIM = 4, 12


def _tokenizer() -> PreTrainedTokenizerFast:
    vocab = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
    )


def _text_encoder(num_words: int) -> UMT5EncoderModel:
    config = UMT5Config(vocab_size=num_words, d_model=TEXT_DIM, d_kv=8, d_ff=48, num_layers=2, num_heads=4, dropout_rate=0.0)
    return UMT5EncoderModel(config)


def _transformer() -> WanTransformer3DModel:
    transformer = WanTransformer3DModel(
        patch_size=GEOMETRY.patch,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        in_channels=GEOMETRY.latent_channels,
        out_channels=GEOMETRY.latent_channels,
        text_dim=TEXT_DIM,
        freq_dim=32,
        ffn_dim=64,
        num_layers=2,
    )
    for name, parameter in transformer.named_parameters():
        if "norm" in name or name.endswith("bias"):  # away from 1 and 0, so that a forgotten one shows
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") else 0.0, std=0.2)
    return transformer


def _vae() -> AutoencoderKLWan:
    channels = GEOMETRY.latent_channels
    return AutoencoderKLWan(
        base_dim=8,
        z_dim=channels,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.1 * i for i in range(channels)],
        latents_std=[1.0 + 0.1 * i for i in range(channels)],
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_temporal=GEOMETRY.vae_stride[0],
        scale_factor_spatial=GEOMETRY.vae_stride[1],
    )


def build(folder: Path, seed: int = 0) -> Path:
    """Write the checkpoint to ``folder``; the same seed gives the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = _tokenizer()
        pipeline = WanPipeline(
            tokenizer=tokenizer,
            text_encoder=_text_encoder(len(tokenizer)),
            vae=_vae(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=GEOMETRY.full_shift),
            transformer=_transformer(),
        )
    pipeline.save_pretrained(folder)
    return folder


@functools.cache
def checkpoint() -> Path:
    """One checkpoint shared by all tests of this process."""
    return build(Path(tempfile.mkdtemp(prefix="tiny-wan-")))
