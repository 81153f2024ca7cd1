"""Attention runs in waves of one block per multiprocessor; the last wave is rarely full, so its seconds go up in steps."""

from __future__ import annotations

import math

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.model_geometry import ModelGeometry

QUERIES = 128
"""Queries of one head that a block takes."""
H200_SMS = 132
LOST = 0.5
"""Exponent of waves paid for over waves filled: 0 if an idle multiprocessor cost nothing, 1 if as much as a busy one.

Idle ones leave power and memory to the others, and the next kernel begins on them. Of the values tried this one predicts rows of
three models on 1, 2 and 4 H200s best from the others."""


class Waves(BaseModel):
    """Of one model on one kind of GPU. The fewer heads a GPU has, the fewer the waves, and the more the last one matters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heads: int = Field(ge=1)
    num_sms: int = Field(ge=1)
    """Multiprocessors."""
    even_tokens: float = Field(gt=0)
    """Tokens at which attention multiplies as often as the linear layers."""
    num_text: int = Field(0, ge=0)
    """Condition tokens that joined the video's in attention when it was measured."""

    def stretch(self, num_tokens: int, degree: int) -> float:
        """Seconds over those without an idle multiprocessor, at least 1, on ``degree`` GPUs that share heads."""
        blocks = (num_tokens + self.num_text) / QUERIES
        work = blocks * self.heads / degree
        waves = math.ceil(math.ceil(blocks) * math.ceil(self.heads / degree) / self.num_sms)
        share = num_tokens / (num_tokens + self.even_tokens)
        return 1.0 + share * (math.pow(waves * self.num_sms / work, LOST) - 1.0)


def waves_of(geometry: ModelGeometry, num_sms: int | None, num_text: int = 0) -> Waves | None:
    """None on a device without multiprocessors. Wan's video attends to itself alone, whatever its text."""
    if num_sms is None:
        return None
    pairs = 2 * geometry.heads * geometry.head_dim * geometry.num_layers
    joined = 0 if geometry.family == "wan" else num_text
    return Waves(heads=geometry.heads, num_sms=num_sms, even_tokens=geometry.linear_macs / pairs, num_text=joined)
