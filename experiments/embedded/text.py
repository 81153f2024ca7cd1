"""Words to vectors: a word-level tokenizer over the closed vocabulary and a small UMT5 encoder."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from experiments.embedded.captions import vocabulary

TEXT_DIM = 128
MAX_WORDS = 40  # of a caption, the end mark included
PADDED_WORDS = 512  # what the stock pipeline pads to
SPECIAL = ("<pad>", "</s>", "<unk>")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-case words and commas; anything outside the captions' vocabulary is ``<unk>``."""
    words = {word: index for index, word in enumerate((*SPECIAL, *vocabulary()))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"[^a-z0-9,-]+"), "removed"), pre_tokenizers.Split(",", "isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", words["</s>"])])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=PADDED_WORDS
    )


def build_encoder(num_words: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=num_words, d_model=TEXT_DIM, d_kv=32, d_ff=256, num_layers=2, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", pad_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip


def token_ids(tokenizer: Any, captions: Sequence[str]) -> Tensor:
    """[B, MAX_WORDS] ids, padded with 0."""
    rows = tokenizer(list(captions), padding="max_length", max_length=MAX_WORDS, truncation=True).input_ids
    return torch.tensor(rows)


def encode(encoder: UMT5EncoderModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [B, MAX_WORDS + 1, D] and a bias [B, 1, 1, MAX_WORDS + 1] on cross-attention's logits.

    The stock pipeline appends zero rows up to 512 and attends to them. They are all alike, so one zero row whose logit is
    raised by the logarithm of their number stands for them exactly; the padding of this batch is masked out.
    """
    mask = ids != 0
    rows = encoder(ids, mask.long()).last_hidden_state * mask.unsqueeze(2)
    rows = torch.cat([rows, torch.zeros_like(rows[:, :1])], 1)
    bias = torch.zeros(len(ids), ids.shape[1] + 1, device=ids.device)
    bias[:, :-1].masked_fill_(~mask, -math.inf)
    bias[:, -1] = torch.log(PADDED_WORDS - mask.sum(1).float())
    return rows, bias[:, None, None]
