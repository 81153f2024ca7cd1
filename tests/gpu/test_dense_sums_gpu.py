"""Dense attention that tells each query's sum of weights, on a GPU: what the mask gives, whichever kernel finds it."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from stages.sparse.dense import dense_with_sums
from stages.sparse.kernel import by_mask_with_sums
from stages.sparse.pattern import Pattern, in_a_row

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]

HEADS = 3
KERNELS = {
    "any": contextlib.nullcontext,
    "cudnn": lambda: sdpa_kernel(SDPBackend.CUDNN_ATTENTION),
    "flash": lambda: sdpa_kernel(SDPBackend.FLASH_ATTENTION),
    "pattern": lambda: sdpa_kernel(SDPBackend.MATH),
}
"""What torch may use meanwhile; with neither of the two it is the kernel of patterns."""


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("num_tokens", "head_dim"), [(1365, 64), (1400, 128), (77, 128)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_it_is_what_the_mask_gives(kernel: str, num_tokens: int, head_dim: int, dtype: torch.dtype) -> None:
    q, k, v = torch.randn(3, 1, HEADS, num_tokens, head_dim, generator=torch.Generator().manual_seed(1)).to(dtype)
    blocks = in_a_row(num_tokens, 128, q.device)
    everything = Pattern(blocks, blocks, torch.ones(HEADS, blocks.num, blocks.num, dtype=torch.bool))
    expected, expected_sums = by_mask_with_sums(q.float(), k.float(), v.float(), everything)
    with KERNELS[kernel]():
        found, sums = dense_with_sums(q.cuda(), k.cuda(), v.cuda())
    assert (found.dtype, sums.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(found.float().cpu(), expected, atol=2e-2, rtol=2e-2)
    torch.testing.assert_close(sums.cpu(), expected_sums, atol=2e-2, rtol=2e-3)


def test_heads_laid_out_as_a_block_lays_them_out_do_as_well() -> None:
    q, k, v = (x.cuda().bfloat16() for x in torch.randn(3, 1, 1365, HEADS, 128, generator=torch.Generator().manual_seed(2)))
    plain = dense_with_sums(*(x.transpose(1, 2).contiguous() for x in (q, k, v)))
    for found, expected in zip(dense_with_sums(*(x.transpose(1, 2) for x in (q, k, v))), plain, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
