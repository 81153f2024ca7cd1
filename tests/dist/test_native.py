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

HEADS, HEAD_DIM = 8, 6


def inputs(num_tokens: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    return [torch.randn(1, HEADS, num_tokens, HEAD_DIM, generator=generator) for _ in range(3)]


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


def test_attention_that_stays_on_its_rank_differs(gang: Gang) -> None:
    q, k, v = inputs(37)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    found = gang.run(attended, 2, 37, 0, None, True)[0]
    assert (found - expected).abs().max() > 0.1
