"""The all-to-all of native sequence parallelism against one rank."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from parallel.groups import Groups
from parallel.layout import layout
from parallel.native import Native
from parallel.seam import Seam
from tests.dist.gang import Gang

HEADS = 8


def inputs(num_tokens: int, head_dim: int = 6) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(1, HEADS, num_tokens, head_dim, generator=generator) for _ in range(3)]


def attended(
    groups: Groups, width: int, num_image: int, num_text: int, num_chunks: int | None, is_control: bool = False
) -> torch.Tensor | None:
    """Image rows that the group of the first ``width`` ranks finds together."""
    if groups.rank >= width:
        return None
    seam = Seam(F.scaled_dot_product_attention)
    seam.attach(layout(groups, 0, width, 1), None if is_control else Native(num_chunks))
    image, text = seam.cut(num_image, num_text)
    q, k, v = (
        torch.cat([x[:, :, :num_image][:, :, image], x[:, :, num_image:][:, :, text]], 2) for x in inputs(num_image + num_text)
    )
    found = seam(q, k, v)
    rows = found.transpose(1, 2).flatten(2)[:, : image.stop - image.start]
    return seam.join(rows)


@pytest.mark.parametrize("num_chunks", [None, 2])
@pytest.mark.parametrize("num_text", [0, 1, 7])
@pytest.mark.parametrize("num_image", [1, 2, 3, 16, 37])
def test_any_number_of_tokens_on_any_width_equals_one_rank(
    gang: Gang, num_image: int, num_text: int, num_chunks: int | None
) -> None:
    q, k, v = inputs(num_image + num_text)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)[:, :num_image]
    for width in (1, 2, 4, 2, 1):
        for found in gang.run(attended, width, num_image, num_text, num_chunks)[:width]:
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def packed(groups: Groups, dtype: torch.dtype, head_dim: int) -> torch.Tensor:
    """Attention whose inputs are views of one product, as the blocks give them."""
    generator = torch.Generator().manual_seed(groups.rank)
    qkv = torch.randn(1, 5 + groups.rank % 2, 3, HEADS, head_dim, generator=generator).to(dtype)
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    seam = Seam(lambda q, k, v: (q.float() + v.float()).to(dtype))
    seam.attach(layout(groups, 0, 4, 1), Native(2))
    seam.cut(22)
    seam._counts = (5, 6, 5, 6)
    return (seam(q, k, v) - (q.float() + v.float()).to(dtype)).abs().max()


@pytest.mark.parametrize("head_dim", [3, 8, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_value_returns_to_the_token_and_head_it_came_from(gang: Gang, dtype: torch.dtype, head_dim: int) -> None:
    assert max(gang.run(packed, dtype, head_dim)) == 0


def test_attention_that_stays_on_its_rank_differs(gang: Gang) -> None:
    q, k, v = inputs(37)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    found = gang.run(attended, 2, 37, 0, None, True)[0]
    assert (found - expected).abs().max() > 0.1
