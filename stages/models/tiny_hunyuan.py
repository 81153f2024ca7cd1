"""Tiny HunyuanVideo checkpoints with random weights: the files of a real one, which the stock pipelines load too."""

from __future__ import annotations

from typing import Any

import torch

from orchestrator.geometry import ModelGeometry

TEXT_DIM, VISION_DIM, POOLED_DIM = 32, 16, 16
NUM_HEADS, HEAD_DIM = 4, 16
IMAGE_SIZE, IMAGE_PATCH = 48, 2
"""24 x 24 patches: the template has room for 576 tokens of the image."""
SPECIAL = ("<pad>", "<unk>", "<|begin_of_text|>", "<image>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PIECES = r"\n+|transit|\w+|[^\w\s]"
"""What a token is. ``transit`` makes the templates as long as Llama's tokenizer finds them: 95 and 103 tokens."""
WORDS = [
    "a",
    "red",
    "green",
    "blue",
    "circle",
    "square",
    "cat",
    "dog",
    "moves",
    "runs",
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
]


def pipeline(geometry: ModelGeometry) -> Any:
    """The stock pipeline of a HunyuanVideo model, its weights drawn by torch's generator."""
    from diffusers import FlowMatchEulerDiscreteScheduler, HunyuanVideoImageToVideoPipeline, HunyuanVideoPipeline

    tokenizer, tokenizer_2 = _tokenizer(), _clip_tokenizer()
    parts: dict[str, Any] = {
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer_2,
        "text_encoder_2": _clip(len(tokenizer_2)),
        "transformer": _transformer(geometry),
        "vae": _vae(geometry),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=geometry.full_shift),
    }
    if geometry.image == "required":
        return HunyuanVideoImageToVideoPipeline(**parts, text_encoder=_llava(tokenizer), image_processor=_processor())
    return HunyuanVideoPipeline(**parts, text_encoder=_llama(len(tokenizer)))


def _template_words() -> list[str]:
    import re

    from diffusers.pipelines.hunyuan_video import pipeline_hunyuan_video, pipeline_hunyuan_video_image2video

    texts = [m.DEFAULT_PROMPT_TEMPLATE["template"] for m in (pipeline_hunyuan_video, pipeline_hunyuan_video_image2video)]
    return sorted({piece for text in texts for piece in re.findall(PIECES, text)})


def _tokenizer() -> Any:
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: index for index, word in enumerate(dict.fromkeys([*SPECIAL, *_template_words(), *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), behavior="removed", invert=True)
    begin = SPECIAL[2]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A", special_tokens=[(begin, vocab[begin])])
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": begin, "eos_token": "<|eot_id|>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, padding_side="right", model_max_length=1024)


def _clip_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {word: index for index, word in enumerate(["<pad>", "<unk>", *WORDS, "<start>", "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(token, vocab[token]) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, model_max_length=77)


def _llama_config(num_words: int) -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=num_words,
        hidden_size=TEXT_DIM,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=6,
    )


def _llama(num_words: int) -> Any:
    from transformers import LlamaModel

    return _shaken(LlamaModel(_llama_config(num_words)))


def _llava(tokenizer: Any) -> Any:
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=VISION_DIM,
        intermediate_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=IMAGE_SIZE,
        patch_size=IMAGE_PATCH,
        projection_dim=VISION_DIM,
    )
    ids = {"image_token_index": tokenizer.convert_tokens_to_ids("<image>"), "pad_token_id": 0}
    config = LlavaConfig(vision_config=vision, text_config=_llama_config(len(tokenizer)), **ids)
    return _shaken(LlavaForConditionalGeneration(config))


def _processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})


def _clip(num_words: int) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=num_words,
        hidden_size=POOLED_DIM,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=POOLED_DIM,
        bos_token_id=num_words - 2,
        eos_token_id=num_words - 1,
        pad_token_id=0,
    )
    return _shaken(CLIPTextModel(config))


def _transformer(geometry: ModelGeometry) -> Any:
    from diffusers import HunyuanVideoTransformer3DModel

    transformer = HunyuanVideoTransformer3DModel(
        in_channels=geometry.latent_channels,
        out_channels=geometry.latent_channels,
        num_attention_heads=NUM_HEADS,
        attention_head_dim=HEAD_DIM,
        num_layers=2,
        num_single_layers=2,
        num_refiner_layers=2,
        mlp_ratio=2.0,
        patch_size=geometry.patch[1],
        patch_size_t=geometry.patch[0],
        text_embed_dim=TEXT_DIM,
        pooled_projection_dim=POOLED_DIM,
        rope_axes_dim=(4, 6, 6),
        image_condition_type="token_replace" if geometry.image == "required" else None,
    )
    return _shaken(transformer)


def _vae(geometry: ModelGeometry) -> Any:
    from diffusers import AutoencoderKLHunyuanVideo

    channels = (8, 8, 8, 8)
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=geometry.latent_channels, block_out_channels=channels, layers_per_block=1, norm_num_groups=4
    )
    return _shaken(vae)


def _shaken(module: Any) -> Any:
    """Biases and norms away from 0 and 1, so that a forgotten one shows."""
    for name, parameter in module.named_parameters():
        if "norm" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=1.0 if name.endswith("weight") and parameter.ndim == 1 else 0.0, std=0.2)
    return module
