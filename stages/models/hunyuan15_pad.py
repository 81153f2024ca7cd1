"""The work before each convolution of HunyuanVideo-1.5's decoder as one Triton kernel: read once, written once.

Imported on a GPU only; ``hunyuan15_vae.ready`` says in plain torch what it computes.
"""

# mypy: disable-error-code="import-not-found, no-untyped-def, untyped-decorator"
# Triton is there with CUDA only, and its language has no types.
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 4096
"""Values per program, about: several cells where they have few channels."""


@triton.jit
def _ready(
    x,
    gamma,
    tail,
    out,
    height,
    width,
    dim,
    scale,
    BLOCK: tl.constexpr,
    CELLS: tl.constexpr,
    NORMS: tl.constexpr,
    OLD: tl.constexpr,
):
    line = tl.program_id(0)
    frame, row = line // (height + 2), line % (height + 2)
    columns = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    channels = tl.arange(0, BLOCK)
    real = (columns < width + 2)[:, None] & (channels < dim)[None, :]
    target = (line.to(tl.int64) * (width + 2) + columns)[:, None] * dim + channels[None, :]
    if frame < OLD:
        tl.store(out + target, tl.load(tail + target, mask=real, other=0.0), mask=real)
    else:
        source_row = tl.minimum(tl.maximum(row - 1, 0), height - 1)
        source_columns = tl.minimum(tl.maximum(columns - 1, 0), width - 1)
        cells = (tl.maximum(frame - 2, 0) * height + source_row).to(tl.int64) * width + source_columns
        v = tl.load(x + cells[:, None] * dim + channels[None, :], mask=real, other=0.0)
        if NORMS:
            v = v.to(tl.float32)
            length = tl.maximum(tl.sqrt(tl.sum(v * v, 1)), 1e-12)
            v = v * (scale / length)[:, None] * tl.load(gamma + channels, mask=channels < dim, other=0.0).to(tl.float32)[None, :]
            v = v * tl.sigmoid(v)
        tl.store(out + target, v.to(out.dtype.element_ty), mask=real)


def ready(x: Tensor, gamma: Tensor | None, tail: Tensor | None) -> Tensor:
    """``x [1, C, T, H, W]`` laid out channels-last, ``tail [1, C, 2, H + 2, W + 2]`` likewise."""
    _, dim, num, height, width = x.shape
    out = torch.empty(1, num + 2, height + 2, width + 2, dim, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(dim)
    cells = max(1, min(TILE // block, triton.next_power_of_2(width + 2)))
    rows = x.permute(0, 2, 3, 4, 1).contiguous()
    before = rows if tail is None else tail.permute(0, 2, 3, 4, 1).contiguous()
    grid = ((num + 2) * (height + 2), triton.cdiv(width + 2, cells))
    sizes = (height, width, dim, dim**0.5, block, cells)
    with torch.cuda.device(x.device):  # a thread's own device is the first GPU, whichever x is on
        _ready[grid](rows, rows if gamma is None else gamma, before, out, *sizes, gamma is not None, 0 if tail is None else 2)
    return out.permute(0, 4, 1, 2, 3)
