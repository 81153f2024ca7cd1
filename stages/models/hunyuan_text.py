"""HunyuanVideo's encoders: Llama or LLaVA in the released prompt template, and CLIP's summary of the prompt.

Token rows equal the stock pipelines'; the padding behind them, which the stock transformer masks, is never made. Padding
is on the right of causal encoders, so no row depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor, nn

MAX_TEXT_TOKENS = 256
"""Tokens kept after the template's own opening."""
NUM_SKIPPED = 2
"""Layers of Llama whose work is not looked at: the last ones, and the norm behind them."""
IMAGE_STRIDE = 4
"""With token replacement every fourth of the image's tokens is shown to the transformer."""
NUM_HEADERS = 3
"""Headers in the image template: system, user, assistant."""
NUM_ASSISTANT = 4
"""Tokens that open the assistant's turn, which are cut out."""


TextEncoder = Callable[[str, Image | None], Tensor]
"""Of a prompt and, for image-to-video, its image: tokens ``[1, L, D]``."""


@dataclass(frozen=True)
class Summary:
    """Callable ``prompt -> [1, D]``: CLIP's pooled output."""

    tokenizer: Any
    encoder: Any

    def __call__(self, prompt: str) -> Tensor:
        rows = self.tokenizer([prompt], padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        pooled: Tensor = self.encoder(rows.to(self.encoder.device)).pooler_output
        return pooled


@dataclass(frozen=True)
class LlamaText:
    """Text-to-video's encoder, a shortened ``LlamaModel``: at most 256 tokens. There is no image to look at."""

    tokenizer: Any
    encoder: Any

    def __call__(self, prompt: str, image: Image | None = None) -> Tensor:
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE as TEMPLATE

        opening = TEMPLATE["crop_start"]
        ids = _tokenize(self.tokenizer, TEMPLATE["template"].format(prompt), opening).to(self.encoder.device)
        states: Tensor = self.encoder(input_ids=ids, use_cache=False).last_hidden_state
        return states[:, opening:]


@dataclass(frozen=True)
class LlavaText:
    """Image-to-video's encoder: the image's tokens, thinned out to 144, and at most 256 of the prompt behind them.

    ``encoder`` is a ``LlavaModel`` whose Llama is shortened.
    """

    tokenizer: Any
    encoder: Any
    processor: Any

    def __call__(self, prompt: str, image: Image | None) -> Tensor:
        from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video_image2video import DEFAULT_PROMPT_TEMPLATE as TEMPLATE

        opening, start, num = TEMPLATE["crop_start"], TEMPLATE["image_emb_start"], TEMPLATE["image_emb_len"]
        ids = _tokenize(self.tokenizer, TEMPLATE["template"].format(prompt), opening)
        states = self._states(self._expand(ids, start, num), image)
        added = num - 1  # the image's placeholder is one token of the prompt
        end = self._assistant(ids[0])
        spoken = states[:, opening + added : end - NUM_ASSISTANT + added], states[:, end + added :]
        return torch.cat([states[:, start : start + num : IMAGE_STRIDE], *spoken], dim=1)

    def _expand(self, ids: Tensor, start: int, num: int) -> Tensor:
        """A placeholder for each of the image's tokens."""
        token = self.encoder.config.image_token_index
        if ids[0, start] != token:
            found = int(ids[0, start])
            raise ValueError(f"the tokenizer puts token {found} where the template has the image, which is {token}")
        return torch.cat([ids[:, :start], ids.new_full((1, num), token), ids[:, start + 1 :]], dim=1)

    def _states(self, ids: Tensor, image: Image | None) -> Tensor:
        device, dtype = self.encoder.device, self.encoder.dtype
        pixels = self.processor(image, return_tensors="pt").pixel_values.to(device, dtype)
        states: Tensor = self.encoder(input_ids=ids.to(device), pixel_values=pixels, use_cache=False).last_hidden_state
        return states

    def _assistant(self, ids: Tensor) -> int:
        """Where the assistant's turn begins: behind the last header, or at the end if the prompt was cut before it."""
        headers = (ids == self.tokenizer.convert_tokens_to_ids("<|end_header_id|>")).nonzero().flatten().tolist()
        return len(ids) if len(headers) < NUM_HEADERS else int(headers[-1]) + 1


def shorten(llama: Any) -> None:
    """Cut a ``LlamaModel`` down to the layers whose output the transformer is shown."""
    del llama.layers[-NUM_SKIPPED:]
    llama.norm = nn.Identity()


def _tokenize(tokenizer: Any, text: str, opening: int) -> Tensor:
    ids: Tensor = tokenizer([text], max_length=MAX_TEXT_TOKENS + opening, truncation=True, return_tensors="pt").input_ids
    return ids
