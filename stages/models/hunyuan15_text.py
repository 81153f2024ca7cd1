"""What HunyuanVideo-1.5 is told: a prompt through Qwen2.5-VL, its quoted words through ByT5, a first frame through SigLIP.

The encodings are the stock pipelines' own; padding is cut from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor


@dataclass(frozen=True, eq=False)
class FirstFrame:
    """An image at the video's size: ``pixels [1, 3, 1, H, W]`` in [-1, 1] and SigLIP's ``tokens [1, n, d]``."""

    pixels: Tensor
    tokens: Tensor


class Hunyuan15Encoders:
    """The text encoders with their tokenizers and, for image-to-video, the image encoder with its processor."""

    def __init__(self, tokenizer: Any, encoder: Any, glyph_tokenizer: Any, glyph_encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder
        self.glyph_tokenizer = glyph_tokenizer
        self.glyph_encoder = glyph_encoder
        self.image_encoder: Any = None
        self.image_processor: Any = None

    def prompt(self, prompt: str) -> dict[str, Tensor]:
        """Rows ``text [1, n, d]`` of the prompt and ``glyphs [1, m, d']`` of its words in double quotes, n > 0 and m >= 0."""
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5 import HunyuanVideo15Pipeline as Stock

        device = self.encoder.device
        text = Stock._get_mllm_prompt_embeds(self.encoder, self.tokenizer, prompt, device)
        glyphs = Stock._get_byt5_prompt_embeds(self.glyph_tokenizer, self.glyph_encoder, prompt, device)
        return {"text": _valid(*text), "glyphs": _valid(*glyphs)}

    def image(self, image: Image, height: int, width: int) -> FirstFrame:
        """The image scaled to cover ``height x width`` pixels and cropped around its centre, as SigLIP and the VAE see it."""
        from diffusers.pipelines.hunyuan_video1_5.image_processor import HunyuanVideo15ImageProcessor
        from diffusers.pipelines.hunyuan_video1_5.pipeline_hunyuan_video1_5_image2video import (
            HunyuanVideo15ImageToVideoPipeline as Stock,
        )

        processor = HunyuanVideo15ImageProcessor(do_resize=False)
        image = processor.resize(image, height, width, resize_mode="crop")
        tokens = Stock._get_image_embeds(self.image_encoder, self.image_processor, image, self.image_encoder.device)
        return FirstFrame(processor.preprocess(image, height=height, width=width).unsqueeze(2), tokens)


def _valid(rows: Tensor, mask: Tensor) -> Tensor:
    """``[1, n, d]``: the rows whose mask is set."""
    return rows[mask.to(torch.bool)].unsqueeze(0)
