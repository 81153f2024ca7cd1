"""Wan's text encoder: UMT5, padded with zero rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MAX_TEXT_TOKENS = 512
"""The stock pipelines pad or cut every prompt to this many tokens."""


class TextEncoder:
    """Callable ``prompt -> (tokens [1, n, D], number of zero rows the model expects after them)``."""

    def __init__(self, tokenizer: Any, encoder: Any) -> None:
        self.tokenizer = tokenizer
        self.encoder = encoder

    def __call__(self, prompt: str) -> tuple[Tensor, int]:
        from diffusers.pipelines.wan.pipeline_wan import prompt_clean

        ids = self.tokenizer(prompt_clean(prompt), max_length=MAX_TEXT_TOKENS, truncation=True).input_ids
        if not ids:
            return torch.zeros(1, 0, self.encoder.config.d_model, dtype=self.encoder.dtype), MAX_TEXT_TOKENS
        rows = torch.tensor([ids], device=self.encoder.device)
        return self.encoder(rows, torch.ones_like(rows)).last_hidden_state, MAX_TEXT_TOKENS - len(ids)
