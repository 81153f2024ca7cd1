"""What the stages ask of a model: text in, velocities, frames out. Every adapter speaks in sigma and latents."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from orchestrator.geometry import RUNNABLE, ModelGeometry, model

ALL_PARTS = frozenset({"text", "transformer", "vae"})

Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Self-attention over ``[B, heads, tokens, head_dim]`` queries, keys and values."""


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """Encoded text ``[1, n, D]`` without its padding, and how many zero rows the model expects after it."""

    tokens: Tensor
    num_pads: int


@dataclass(frozen=True, eq=False)
class Condition:
    """What a clip is made from. ``negative`` is None without classifier-free guidance."""

    positive: TextEmbedding
    negative: TextEmbedding | None
    guidance: float

    def pack(self) -> dict[str, Any]:
        """Plain numpy arrays and numbers, for another process. float32 holds every bf16 and fp16 value exactly."""
        branches = [self.positive] if self.negative is None else [self.positive, self.negative]
        return {
            "texts": [(branch.tokens.float().cpu().numpy(), branch.num_pads) for branch in branches],
            "dtype": str(self.positive.tokens.dtype).removeprefix("torch."),
            "guidance": self.guidance,
        }

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Condition:
        """Inverse of :meth:`pack`, on the CPU. The arrays are copied: shared memory of another process is read-only."""
        dtype = getattr(torch, packed["dtype"])
        branches = [TextEmbedding(torch.from_numpy(np.array(rows)).to(dtype), pads) for rows, pads in packed["texts"]]
        return Condition(branches[0], branches[1] if len(branches) == 2 else None, packed["guidance"])


class Model(Protocol):
    """One set of weights on one device. Latents are float32 ``[1, C, T, H, W]``."""

    geometry: ModelGeometry
    device: torch.device
    dtype: torch.dtype

    def encode_text(self, prompt: str, negative: str, guidance: float) -> Condition:
        """Needs the part "text". ``negative`` counts only when ``guidance`` is above 1."""
        ...

    def denoise(self, x: Tensor, sigma: float, condition: Condition) -> Tensor:
        """The guided velocity at noise level ``sigma``. Needs the part "transformer"."""
        ...

    def pixels(self, latent: Tensor) -> Tensor:
        """Video ``[1, 3, F, H, W]`` in [-1, 1] of a clean latent. Needs the part "vae"."""
        ...

    def decode(self, latent: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """Frames ``[F, H, W, 3]`` of a clean latent. Needs the part "vae"."""
        ...


def load(name: str, weights: str | None, device: str = "cpu", parts: frozenset[str] = ALL_PARTS) -> Model:
    """Load ``parts`` of a model; ``weights`` is a folder in diffusers format, None for the embedded model.

    Weights are float32 on a CPU and for the embedded model, bfloat16 elsewhere.
    Raises ValueError for a model without an adapter and for weights that do not fit the model's geometry.
    """
    geometry = model(name)
    if name not in RUNNABLE:
        raise ValueError(f"model {name!r} can be planned but not run; choose one of {', '.join(RUNNABLE)}")
    from stages.models import embedded, wan

    if weights is None and name != embedded.NAME:
        raise ValueError(f"model {name!r} needs weights: the path of a folder in diffusers format")
    dtype = torch.float32 if device == "cpu" or name == embedded.NAME else torch.bfloat16
    folder = embedded.FOLDER if weights is None else weights
    return wan.load_wan(geometry, folder, torch.device(device), dtype, parts)
