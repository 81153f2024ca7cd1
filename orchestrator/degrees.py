"""On how many ranks a model may run: the one home of the rules for heads, guidance, memory and backends.

A *width* is a slice's ranks; slices nest, so it is a power of two. With two branches of guidance each half of a slice forwards
one, and the *degree*, the ranks that share one forward's tokens and heads, is half the width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.cost import split
from orchestrator.model_geometry import ModelGeometry
from parallel import backends

WEIGHT_BYTES = 2
ACTIVATION_WIDTHS = 18
"""16-bit tensors of a token's width alive at once in a block: residual, q-k-v twice, attention, feed-forward, and their casts."""
RESERVE_BYTES = 3 * 2**30
"""The driver, cuBLAS and cuDNN workspaces, fragmentation, the prompt's keys and values."""
GPU_GB = (
    ("B200", 180),
    ("H200", 141),
    ("H100", 80),
    ("H800", 80),
    ("A100", 80),
    ("A800", 80),
    ("5090", 32),
    ("L40S", 48),
    ("4090", 24),
)
"""By a part of the device's name, which may also say it itself (``NVIDIA A100-SXM4-40GB``)."""


class Limits(BaseModel):
    """What a pod has to offer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_width: int = Field(8, ge=1)
    """Its ranks."""
    backend: str = backends.AUTO
    """A name of ``parallel.backends``."""
    on_gpu: bool = True
    memory_gb: float | None = Field(None, gt=0)
    """Of one rank, in 10^9 bytes; None: enough for anything."""
    kept_tensors: float = Field(0.0, ge=0)
    """Tensors of a token's width that a cache keeps there of every token, for each branch of guidance."""

    @property
    def device_type(self) -> str:
        return "cuda" if self.on_gpu else "cpu"


def device_limits(device: str, max_width: int = 8, backend: str = backends.AUTO) -> Limits:
    """Those of a pod of devices of this name, as :func:`orchestrator.calibration.device_name` gives it."""
    on_gpu = not device.upper().startswith("CPU")
    return Limits(max_width=max_width, backend=backend, on_gpu=on_gpu, memory_gb=gpu_gb(device) if on_gpu else None)


def gpu_gb(device: str) -> float | None:
    """Memory of a GPU by name; None when the name is not known."""
    if said := re.search(r"(\d+)\s?GB", device):
        return float(said[1])
    return next((float(size) for part, size in GPU_GB if part in device.upper()), None)


def legal_widths(
    geometry: ModelGeometry, limits: Limits, num_branches: int = 1, num_tokens: Sequence[int] = ()
) -> tuple[int, ...]:
    """Every width that breaks no rule of :func:`mistakes`, the narrowest first; empty when there is none."""
    widths = powers(limits.max_width)
    return tuple(width for width in widths if not mistakes(geometry, width, limits, num_branches, num_tokens))


def powers(most: int) -> tuple[int, ...]:
    """1, 2, 4, .. up to ``most``."""
    return tuple(1 << i for i in range(max(most, 1).bit_length()))


def mistakes(
    geometry: ModelGeometry, width: int, limits: Limits, num_branches: int = 1, num_tokens: Sequence[int] = ()
) -> list[str]:
    """Why a slice of ``width`` ranks cannot run the model, each with its arithmetic; empty if it can.

    ``num_tokens`` are of the grids to run. Raises ValueError for an unknown backend.
    """
    if width < 1 or width & (width - 1):
        return [f"width {width}: slices nest, so it must be a power of two"]
    _, degree = split(width, num_branches)
    joined = [num + text for num in num_tokens for text in _text_counts(geometry)]
    of_backend = backends.mistakes(
        limits.backend, heads=geometry.heads, num_tokens=joined, degree=degree, device_type=limits.device_type
    )
    found = [f"width {width}: {line}" for line in of_backend]
    if (fewest := min(num_tokens, default=degree)) < degree:
        found.append(f"width {width}: a grid of {fewest} tokens leaves some of {degree} ranks without any")
    if width > limits.max_width:
        found.append(f"width {width}: the pod has {limits.max_width} ranks")
    return [*found, *_memory_mistakes(geometry, width, limits, num_branches, num_tokens)]


def _text_counts(geometry: ModelGeometry) -> tuple[int, ...]:
    """How many text tokens may join a grid's: from prompt to prompt any number, of which an odd and an even one stand for all."""
    return (geometry.text_tokens, geometry.text_tokens - 1) if geometry.text_tokens else (0,)


def _memory_mistakes(
    geometry: ModelGeometry, width: int, limits: Limits, num_branches: int, num_tokens: Sequence[int]
) -> list[str]:
    if limits.memory_gb is None:
        return []
    most = max(num_tokens, default=0)
    weights_gb, working_gb = memory_gb(geometry, width, num_branches, most)
    kept_gb = limits.kept_tensors * kept_bytes(geometry, width, num_branches, most) / 1e9
    total_gb = weights_gb + working_gb + kept_gb
    if total_gb <= limits.memory_gb:
        return []
    shards = f" / {width} ranks" if width > 1 else ""
    kept = f" + {kept_gb:.1f} GB that its cache keeps" if kept_gb else ""
    return [
        f"width {width}: {all_weights_gb(geometry):.1f} GB of weights{shards} + {working_gb:.1f} GB of working memory{kept} = "
        f"{total_gb:.1f} GB, and a GPU has {limits.memory_gb:.0f} GB"
    ]


def kept_bytes(geometry: ModelGeometry, width: int, num_branches: int, num_tokens: int) -> int:
    """Of one tensor of a token's width, in bf16, for all tokens that a rank of a slice has, in every branch that it makes."""
    side_by_side, degree = split(width, num_branches)
    return num_branches // side_by_side * _token_bytes(geometry) * _share(geometry, num_tokens, degree)


def _token_bytes(geometry: ModelGeometry) -> int:
    return geometry.heads * geometry.head_dim * 2


def _share(geometry: ModelGeometry, num_tokens: int, degree: int) -> int:
    """Tokens of video and text on one of ``degree`` ranks."""
    return -(-(num_tokens + geometry.text_tokens) // degree)


def memory_gb(geometry: ModelGeometry, width: int, num_branches: int, num_tokens: int) -> tuple[float, float]:
    """GB on each rank of a slice: of weights, sharded over it at need with one layer whole, and of everything else."""
    _, degree = split(width, num_branches)
    layer_gb = geometry.num_params * WEIGHT_BYTES / geometry.num_layers / 1e9 if width > 1 else 0.0
    return all_weights_gb(geometry) / width + layer_gb, working_bytes(geometry, num_tokens, degree) / 1e9


def all_weights_gb(geometry: ModelGeometry) -> float:
    """Of the transformer, or of both experts, in bf16."""
    return (1 if geometry.boundary is None else 2) * geometry.num_params * WEIGHT_BYTES / 1e9


def working_bytes(geometry: ModelGeometry, num_tokens: int, degree: int = 1) -> int:
    """What one forward of so many video tokens needs beside the weights, in bf16, on each of ``degree`` ranks."""
    return _share(geometry, num_tokens, degree) * _token_bytes(geometry) * ACTIVATION_WIDTHS + RESERVE_BYTES


def shard_ranks(geometry: ModelGeometry, limits: Limits, num_branches: int, num_tokens: int) -> int:
    """Ranks over which the weights are sharded so that ``num_tokens`` can run: 1, each has them all, unless memory asks for more.

    Raises ValueError, with the arithmetic of every width, when no slice is wide enough.
    """
    any_tokens = limits.model_copy(update={"backend": backends.AUTO})
    return require(geometry, any_tokens, num_branches, [num_tokens])[0]


def require(
    geometry: ModelGeometry, limits: Limits, num_branches: int = 1, num_tokens: Sequence[int] = (), asked: int | None = None
) -> tuple[int, ...]:
    """The legal widths, among which ``asked`` must be. Raises ValueError with the arithmetic and the widths that would do."""
    legal = legal_widths(geometry, limits, num_branches, num_tokens)
    refused = [asked] if asked is not None else list(powers(limits.max_width))
    if legal and (asked is None or asked in legal):
        return legal
    lines = [line for width in refused for line in mistakes(geometry, width, limits, num_branches, num_tokens)]
    told = ", ".join(map(str, legal)) if legal else f"none up to {limits.max_width}"
    more = _with_guidance(geometry, limits, num_branches, num_tokens, legal)
    raise ValueError(f"{geometry.name}: {'; '.join(lines)}; legal: {told}{more}")


def _with_guidance(
    geometry: ModelGeometry, limits: Limits, num_branches: int, num_tokens: Sequence[int], legal: Sequence[int]
) -> str:
    """Widths that a second branch would add, of models that can have one."""
    if num_branches > 1 or geometry.family == "hunyuan":
        return ""
    more = [width for width in legal_widths(geometry, limits, 2, num_tokens) if width not in legal and width > 1]
    return "; with guidance split also " + ", ".join(f"{width} = 2 x {width // 2}" for width in more) if more else ""
