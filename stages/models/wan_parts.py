"""The parts of a Wan checkpoint in diffusers format. ``stages.models.checkpoint`` has checked the folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from orchestrator.geometry import ModelGeometry
from parallel.seam import Seam
from stages.attention import choose
from stages.models.adapter import load_halves
from stages.models.base import Loading
from stages.models.pretrained import pretrained
from stages.models.wan_image import ImageTokens
from stages.models.wan_text import TextEncoder
from stages.models.wan_transformer import WanTransformer


@dataclass(frozen=True)
class Index:
    """What ``model_index.json`` says."""

    components: frozenset[str]
    boundary: float | None
    """Noise level from which the high-noise expert works, of two."""
    expand_timesteps: bool
    """A first frame may be given clean, with timesteps of its own (Wan 2.2 TI2V)."""


def read_index(folder: Path) -> Index:
    rows = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    components = frozenset(name for name, row in rows.items() if isinstance(row, list) and row[0] is not None)
    return Index(components, rows.get("boundary_ratio"), bool(rows.get("expand_timesteps")))


def load_text(folder: Path, loading: Loading) -> TextEncoder:
    from transformers import AutoTokenizer, UMT5EncoderModel
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    encoder = pretrained(UMT5EncoderModel, folder / "text_encoder", loading.dtype)
    return TextEncoder(tokenizer, encoder.to(loading.device))


def load_image_tokens(folder: Path, loading: Loading) -> ImageTokens:
    """The processor is the one on PIL, whether torchvision is there or not, so that an image gives the same tokens anywhere."""
    from transformers import CLIPImageProcessorPil, CLIPVisionModel

    processor = CLIPImageProcessorPil.from_pretrained(folder / "image_processor", local_files_only=True)
    encoder = pretrained(CLIPVisionModel, folder / "image_encoder", loading.dtype)
    return ImageTokens(processor, encoder.to(loading.device))


class LateExperts(Sequence[WanTransformer]):
    """The first is there; each after it is read when it is first asked for."""

    def __init__(self, first: WanTransformer, later: Sequence[Callable[[], WanTransformer]]) -> None:
        self._made: list[WanTransformer] = [first]
        self._later = list(later)

    def __len__(self) -> int:
        return len(self._made) + len(self._later)

    @overload
    def __getitem__(self, index: int) -> WanTransformer: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[WanTransformer]: ...
    def __getitem__(self, index: int | slice) -> WanTransformer | Sequence[WanTransformer]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index]
        while len(self._made) <= place:
            self._made.append(self._later.pop(0)())
        return self._made[place]

    @property
    def num_read(self) -> int:
        return len(self._made)


def load_experts(folder: Path, geometry: ModelGeometry, loading: Loading) -> Sequence[WanTransformer]:
    """The transformer, or the high-noise and then the low-noise one. They share one seam, and so one compiled block."""
    weights = _load_weights(folder / "transformer", loading, "high")
    heads, head_dim = weights.config.num_attention_heads, weights.config.attention_head_dim
    seam = Seam(choose(loading.attention, loading.device, heads, head_dim, loading.dtype))
    first = WanTransformer(weights, seam, loading.compile, loading.shard)
    if geometry.boundary is None:
        return (first,)

    def low() -> WanTransformer:
        return WanTransformer(_load_weights(folder / "transformer_2", loading, "low"), seam, loading.compile, loading.shard)

    return LateExperts(first, [low]) if loading.late else (first, low())


def _load_weights(folder: Path, loading: Loading, expert: Literal["high", "low"]) -> Any:
    from diffusers import WanTransformer3DModel

    weights: Any = pretrained(WanTransformer3DModel, folder, loading.dtype)
    if loading.lora:
        from stages.models import lora

        lora.merge(weights, loading.lora, expert)
    return weights.to(loading.home).requires_grad_(False)


def load_vae(folder: Path, loading: Loading, *, encodes: bool, decodes: bool) -> Any:
    """An ``AutoencoderKLWan`` with the halves that are asked for, in the model's dtype."""
    from diffusers import AutoencoderKLWan

    return load_halves(AutoencoderKLWan, folder, loading, encodes=encodes, decodes=decodes)
