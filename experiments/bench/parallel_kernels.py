"""Attention kernels at the number of heads that one rank has: equality to exact arithmetic, and rate."""

from __future__ import annotations

import statistics

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.bench.parallel_cases import KERNEL_TOKENS, REAL, degrees
from experiments.bench.parallel_rig import Rig, Row
from stages import attention

NUM_EXACT = 128
"""Queries that are compared."""
HEAD_DIM = 128
MOST_RANKS = 8


def kernel_cases(kinds: tuple[str, ...], is_tiny: bool) -> list[tuple[str, int, int]]:
    """Model, tokens and heads: all of them, those of each rank, and those of a chunk of these."""
    found = []
    for kind in kinds:
        heads = REAL[kind].geometry.heads
        parts = {heads // degree for degree in degrees(MOST_RANKS)} | {max(1, heads // MOST_RANKS // 2)}
        found += [(kind, 300 if is_tiny else KERNEL_TOKENS[kind], part) for part in sorted(parts, reverse=True)]
    return found


def kernels(rig: Rig, kinds: tuple[str, ...]) -> None:
    """Each rank measures its share of the cases; rank 0 keeps all."""
    todo = kernel_cases(kinds, rig.is_tiny)
    if not rig.has_time(0.5 * len(todo) / rig.num_ranks):
        rig.keep({"section": "kernels", "skipped": "no time"})
        return
    mine = [_measured(rig, *case) for case in todo[rig.rank :: rig.num_ranks]]
    for row in (row for rows in rig.gather(mine) for row in rows):
        rig.keep(row)


def _measured(rig: Rig, kind: str, tokens: int, heads: int) -> Row:
    row: Row = {"section": "kernels", "model": kind, "tokens": tokens, "heads": heads, "tflops": {}, "distance": {}, "errors": {}}
    dtype = torch.bfloat16 if rig.is_cuda else torch.float32
    q, k, v = (torch.randn(1, tokens, heads, HEAD_DIM, device=rig.device, dtype=dtype).transpose(1, 2) for _ in range(3))
    exact = F.scaled_dot_product_attention(*(x.float() for x in (q[:, :, :NUM_EXACT], k, v)))
    names = [name for name in attention.installed() if name not in attention.TOO_SLOW] if rig.is_cuda else ["math"]
    for name in names:
        try:
            kernel = attention.KERNELS[name][1]()
            found = kernel(q, k, v)
            row["distance"][name] = float((found[:, :, :NUM_EXACT].float() - exact).norm() / exact.norm())
            seconds = statistics.median(rig.series(lambda: _attend(kernel, q, k, v), 5))  # noqa: B023 - called at once
            row["tflops"][name] = round(4.0 * tokens**2 * heads * HEAD_DIM / seconds / 1e12, 1)
        except Exception as error:  # noqa: BLE001 - a kernel that refuses is a row of the table
            row["errors"][name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    return row


def _attend(kernel: attention.Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return kernel(q, k, v)
