"""Writing into peers' buffers against one rank. Memory that processes share stands for the GPUs'."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from parallel import peer
from parallel.groups import Group, Groups
from parallel.layout import layout
from parallel.peer import Peer
from parallel.seam import Seam
from parallel.trial import passing
from tests.dist.gang import Gang

HEADS, HEAD_DIM = 8, 4


class SharedBuffer(peer._Buffer):
    """Buffers in files that all ranks map; meetings over gloo."""

    folder = ""

    def __init__(self, group: Group, dtype: torch.dtype, num_inbox: int, num_outbox: int) -> None:
        self.num_inbox, self.num_outbox, self.dtype, self.group, self.side = num_inbox, num_outbox, dtype, group, None
        self.peers = [(group.rank + step) % group.size for step in range(1, group.size + 1)]
        name = f"{self.folder}/{group.ranks.start}-{group.size}-{num_inbox + num_outbox}"
        self.memories = [
            torch.from_file(f"{name}-{rank}", shared=True, size=num_inbox + num_outbox, dtype=dtype) for rank in range(group.size)
        ]
        self.of = self._of  # type: ignore[assignment]

    def _of(self, rank: int, shape: tuple[int, ...], start: int) -> torch.Tensor:
        return self.memories[rank][start : start + math.prod(shape)].view(shape)

    def meet(self) -> None:
        dist.barrier(group=self.group.handle)


def share_files(folder: str) -> None:
    SharedBuffer.folder, peer._Buffer, peer.LEAST_ELEMENTS = folder, SharedBuffer, 64  # type: ignore[misc]


def attended(groups: Groups, folder: str, width: int, sizes: list[tuple[int, int]]) -> Any:
    """The largest difference to one rank over several attentions, one after the other, on the first ``width`` ranks."""
    if groups.rank >= width:
        return 0.0
    share_files(folder)
    seam, gaps = Seam(F.scaled_dot_product_attention), []
    seam.attach(layout(groups, 0, width, 1), Peer(num_chunks=1))
    for num_image, num_text in sizes:
        generator = torch.Generator().manual_seed(num_image)
        q, k, v = (torch.randn(1, HEADS, num_image + num_text, HEAD_DIM, generator=generator) for _ in range(3))
        image, text = seam.cut(num_image, num_text)
        own = [torch.cat([x[:, :, image], x[:, :, num_image:][:, :, text]], 2) for x in (q, k, v)]
        expected = F.scaled_dot_product_attention(q, k, v)
        expected = torch.cat([expected[:, :, image], expected[:, :, num_image:][:, :, text]], 2)
        gaps.append(float((seam(*own) - expected).abs().max()))
    return max(gaps)


@pytest.mark.parametrize("width", [2, 4])
def test_any_number_of_tokens_equals_one_rank(gang: Gang, tmp_path: Any, width: int) -> None:
    sizes = [(37, 0), (16, 7), (37, 3), (4, 0), (131, 1), (5, 2)]
    assert max(gang.run(attended, str(tmp_path), width, sizes)) < 1e-5


def one_after_the_other(groups: Groups, folder: str) -> tuple[bool, bool]:
    """Whether a result is still the same after another attention, and whether the buffer that it came through is still in use."""
    share_files(folder)
    exchange, seam, group = Peer(num_chunks=1), Seam(F.scaled_dot_product_attention), groups.slice(0, 4)
    assert group is not None
    seam.attach(layout(groups, 0, 4, 1), exchange)
    results, copies, buffers = [], [], []
    for seed, num in enumerate((16, 512, 16)):
        seam.cut(num)
        generator = torch.Generator().manual_seed(seed)
        results.append(seam(*torch.randn(3, 1, HEADS, num // 4, HEAD_DIM, generator=generator)))
        copies.append(results[-1].clone())
        buffers.append(exchange.buffer(group, torch.float32, 3 * num * HEADS // 4 * HEAD_DIM))
    return all(map(torch.equal, results, copies)), buffers[0] is buffers[2] is not buffers[1]


def test_results_outlive_the_next_attention_and_buffers_outlive_larger_ones(gang: Gang, tmp_path: Any) -> None:
    assert gang.run(one_after_the_other, str(tmp_path)) == [(True, True)] * 4


def tried(groups: Groups, folder: str, unable: int) -> tuple[str, bool]:
    """The exchange that is used after a trial, and whether ranks met for buffers, where one rank has no such memory."""
    share_files(folder)
    exchange, before = Peer(num_chunks=1), peer._memory

    def memory(num: int, dtype: torch.dtype, group: Group) -> torch.Tensor:
        if groups.rank == unable:
            raise RuntimeError("no peer access")
        return torch.empty(num, dtype=dtype)

    peer._memory = memory
    try:
        return passing(exchange, groups).name, bool(exchange._buffers)
    finally:
        peer._memory = before


def test_where_one_rank_lacks_the_memory_no_rank_waits_for_it(gang: Gang, tmp_path: Any) -> None:
    assert gang.run(tried, str(tmp_path), 2) == [("native", False)] * 4
    assert gang.run(tried, str(tmp_path), 9) == [("peer", True)] * 4
