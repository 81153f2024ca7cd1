"""What FlexAttention takes for a random pattern, part by part and by its settings: for ``experiments.bench.sparse``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from experiments.bench.sparse_rows import Layer, Row, seconds
from stages.sparse.kernel import attend, by_blocks, lists_of
from stages.sparse.pattern import Pattern, in_a_row

BLOCKS = ((128, 128), (128, 64))
"""Of queries and of keys."""
DENSITIES = (1.0, 0.5, 0.25, 0.1)
OPTIONS: Mapping[str, dict[str, Any]] = {
    "its own": {},
    "no TMA": {"USE_TMA": False},
    "4 warps": {"num_warps": 4},
    "2 stages": {"num_stages": 2},
    "tiles of 64 queries": {"BLOCK_M": 64},
    "prescaled": {"PRESCALE_QK": True},
    "borders looked for": {"IS_DIVISIBLE": False},
    "flash": {"BACKEND": "FLASH"},
}
"""Beside the kernel's own, at a density of 0.25."""


def pattern(layer: Layer, sizes: tuple[int, int], density: float) -> Pattern:
    """Kept blocks drawn by chance, the first of each row among them."""
    queries, keys = (in_a_row(layer.num_tokens, size, layer.device) for size in sizes)
    generator = torch.Generator(layer.device).manual_seed(0)
    drawn = torch.rand(layer.geometry.heads, queries.num, keys.num, generator=generator, device=layer.device)
    keep = drawn < density
    keep[:, :, 0] = True
    return Pattern(queries, keys, keep)


@torch.inference_mode()
def parts(layer: Layer, tensors: tuple[Tensor, Tensor, Tensor], sizes: tuple[int, int], density: float, dense_s: float) -> Row:
    """Attention within a pattern, and of it the lists and the gathering of tokens, beside dense attention."""
    q, k, v = (x[:, :, : layer.num_tokens] for x in tensors)
    given = pattern(layer, sizes, density)
    whole_s = seconds(layer.device, lambda: attend(q, k, v, given))
    queries, keys = given.queries, given.keys
    return {
        "blocks": list(sizes),
        "density": float(given.density),
        "attend_s": whole_s,
        "lists_s": seconds(layer.device, lambda: lists_of(given)),
        "gather_s": seconds(layer.device, lambda: (queries.put(queries.take(q)), keys.take(k), keys.take(v))),
        "speed": dense_s / whole_s,
    }


@torch.inference_mode()
def option(layer: Layer, tensors: tuple[Tensor, Tensor, Tensor], name: str, run: Callable[..., Any] | None = None) -> Row:
    """One setting of the kernel at blocks of 128 and a density of 0.25; what it raises is told."""
    q, k, v = (x[:, :, : layer.num_tokens] for x in tensors)
    given = pattern(layer, (128, 128), 0.25)

    def call() -> Tensor:
        return by_blocks(q, k, v, given, run, OPTIONS[name])

    try:
        found_s, expected = seconds(layer.device, call), by_blocks(q, k, v, given, run)
        return {"option": name, "attend_s": found_s, "error": float((call() - expected).norm() / expected.norm())}
    except Exception as problem:  # noqa: BLE001  (whatever a compiler raises: this setting is not for this machine)
        return {"option": name, "refused": " ".join(str(problem).split())[:300]}
