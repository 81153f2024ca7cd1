"""The same exchange as ``native``, written straight into the other GPUs' memory instead of through NCCL.

Each rank copies the heads that a peer attends to into that peer's buffer, over NVLink, already in the order in which attention
reads them, and what attention found goes back the same way: nothing is packed or unpacked. Buffers are torch's symmetric memory
(CUDA peer access within one host; multicast is not used).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parallel.groups import Group
from parallel.native import lay_out
from parallel.seam import Attention
from parallel.shares import piece

LEAST_ELEMENTS = 1 << 24
"""Of a buffer: growing means meeting all ranks again."""


@dataclass(eq=False)
class Peer:
    """The exchange. All ranks of a group must call it with the same ``counts``."""

    _buffers: dict[tuple[Any, ...], _Buffer] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "peer"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        size, heads, head_dim = group.size, q.shape[1] // group.size, q.shape[3]
        mine, num, total = piece(counts, group.rank), counts[group.rank], sum(counts)
        inbox, outbox = (3, total, heads, head_dim), (max(counts), size, heads, head_dim)
        buffer = self._buffer(group, q.dtype, math.prod(inbox), math.prod(outbox))
        for peer in buffer.peers:
            target = buffer.of(peer, inbox)
            for index, x in enumerate((q, k, v)):
                lay_out(target[index, mine], x[0, peer * heads : (peer + 1) * heads].transpose(0, 1))
        buffer.meet()
        found = local(*(x.transpose(0, 1).unsqueeze(0) for x in buffer.of(group.rank, inbox)))[0].transpose(0, 1)
        for peer in buffer.peers:
            target = buffer.of(peer, outbox, buffer.num_inbox)
            lay_out(target[: counts[peer], group.rank], found[piece(counts, peer)])
        buffer.meet()
        own = buffer.of(group.rank, outbox, buffer.num_inbox)[:num]
        return own.flatten(1, 2).transpose(0, 1).unsqueeze(0)

    def _buffer(self, group: Group, dtype: torch.dtype, num_inbox: int, num_outbox: int) -> _Buffer:
        key = (group.key, dtype)
        found = self._buffers.get(key)
        if found is None or found.num_inbox < num_inbox or found.num_outbox < num_outbox:
            self._buffers[key] = found = _Buffer(group, dtype, _rounded(num_inbox), _rounded(num_outbox))
        return found


def _rounded(num: int) -> int:
    return max(LEAST_ELEMENTS, 1 << (num - 1).bit_length())


class _Buffer:
    """This rank's inbox and outbox, and those of its peers."""

    def __init__(self, group: Group, dtype: torch.dtype, num_inbox: int, num_outbox: int) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self.num_inbox, self.num_outbox = num_inbox, num_outbox
        self.dtype = dtype
        self.memory = symmetric.empty(num_inbox + num_outbox, dtype=dtype, device=group.device)
        self.handle: Any = symmetric.rendezvous(self.memory, group.handle)
        self.peers = [(group.rank + step) % group.size for step in range(1, group.size + 1)]
        """All ranks, this one last: so no peer is written to by all at once."""

    def of(self, rank: int, shape: tuple[int, ...], start: int = 0) -> Tensor:
        found: Tensor = self.handle.get_buffer(rank, shape, self.dtype, start)
        return found

    def meet(self) -> None:
        """On the GPU's own stream: no rank goes on before all have come here. The host does not wait."""
        self.handle.barrier(channel=0)
