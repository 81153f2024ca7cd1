"""The exchange of ``native``, written straight into the other GPUs' memory instead of through NCCL.

Each rank copies the heads that a peer attends to into that peer's buffer, over NVLink, already in the order in which attention
reads them, and what attention found goes back the same way: nothing is packed or unpacked. For long sequences heads go in
chunks on a stream of their own, so that one is attended to while others are on their way. Buffers are torch's symmetric memory
(CUDA peer access within one host; multicast is not used).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from parallel.groups import Group
from parallel.native import chunks, lay_out, num_overlapping
from parallel.seam import Attention
from parallel.shares import piece

LEAST_ELEMENTS = 1 << 24
"""Of an inbox: a further size means meeting all ranks again."""
NUM_VIEWS = 4096
"""Views of the buffers kept: making one costs the host several microseconds."""


@dataclass(eq=False)
class Peer:
    """The exchange. All ranks of a group must call it with the same ``counts``."""

    num_chunks: int | None = None
    """Of each rank's heads. None: two for long sequences, otherwise one."""
    _buffers: dict[tuple[Any, ...], _Buffer] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "peer"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        heads, spare = divmod(q.shape[1], group.size)
        if spare:
            raise ValueError(f"{q.shape[1]} heads cannot be shared evenly by {group.size} ranks")
        bounds = chunks(heads, self.num_chunks or num_overlapping(q, sum(counts)))
        buffer = self.buffer(group, q.dtype, sum(counts) * heads * q.shape[3] * 3, max(counts) * q.shape[1] * q.shape[3])
        crossing = _Crossing(buffer, group, counts, heads, q.shape[3])
        if len(bounds) > 1:
            crossing.overlapped((q, k, v), local, bounds)
        else:
            crossing.at_once((q, k, v), local, bounds[0])
        # A copy: compiled blocks take what attention returns for their own, and keep results in it that outlive this attention.
        return crossing.found().clone().flatten(1, 2).transpose(0, 1).unsqueeze(0)

    def allocate(self, group: Group) -> None:
        """Try whether this rank's GPU has memory that others could reach. Raises what torch raises; meets nobody."""
        _memory(1, torch.uint8, group)

    def buffer(self, group: Group, dtype: torch.dtype, num_inbox: int = 0, num_outbox: int = 0) -> _Buffer:
        """For so many elements. All ranks of the group call this alike: they meet for each new size.

        What has been made is kept, and its size alone says which one is used: recordings (CUDA graphs) hold the addresses, and a
        rank that replays one must meet others that have let theirs go and launch anew. All sizes together are less than twice
        the largest.
        """
        num = _rounded(max(num_inbox, 2 * num_outbox))
        key = (group.key, dtype, num)
        if key not in self._buffers:
            self._buffers[key] = _Buffer(group, dtype, num, num // 2)
        return self._buffers[key]


def _stream(device: torch.device) -> torch.cuda.Stream | None:
    return torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def _rounded(num: int) -> int:
    return max(LEAST_ELEMENTS, 1 << (num - 1).bit_length())


def _memory(num: int, dtype: torch.dtype, group: Group) -> Tensor:
    import torch.distributed._symmetric_memory as symmetric

    found: Tensor = symmetric.empty(num, dtype=dtype, device=group.device)
    return found


class _Buffer:
    """This rank's inbox and outbox, and those of its peers."""

    def __init__(self, group: Group, dtype: torch.dtype, num_inbox: int, num_outbox: int) -> None:
        import torch.distributed._symmetric_memory as symmetric

        self.num_inbox, self.num_outbox = num_inbox, num_outbox
        self.dtype = dtype
        self.memory = _memory(num_inbox + num_outbox, dtype, group)
        self.handle: Any = symmetric.rendezvous(self.memory, group.handle)
        self.side: torch.cuda.Stream | None = _stream(group.device)
        self.peers = [(group.rank + step) % group.size for step in range(1, group.size + 1)]
        """All ranks, this one last: so no peer is written to by all at once."""
        self.of = functools.lru_cache(maxsize=NUM_VIEWS)(self._of)

    def _of(self, rank: int, shape: tuple[int, ...], start: int) -> Tensor:
        found: Tensor = self.handle.get_buffer(rank, shape, self.dtype, start)
        return found

    def meet(self) -> None:
        """On the current stream: no rank's goes on before all have come here. The host does not wait."""
        self.handle.barrier(channel=0)


@dataclass(frozen=True)
class _Crossing:
    """One attention.

    Nothing is overwritten too early: a rank writes into another's inbox after the last meeting of the attention before, to which
    that one came when it had read all of it; and into an outbox after this attention's first meeting, to which its owner comes
    when what followed the attention before has read it.
    """

    buffer: _Buffer
    group: Group
    counts: tuple[int, ...]
    heads: int
    head_dim: int

    def at_once(self, qkv: Sequence[Tensor], local: Attention, chunk: slice) -> None:
        self.send(qkv, chunk)
        self.buffer.meet()
        self.send_back(local(*self.arrived(chunk)), chunk)
        self.buffer.meet()

    def overlapped(self, qkv: Sequence[Tensor], local: Attention, bounds: Sequence[slice]) -> None:
        main, side = torch.cuda.current_stream(), self.buffer.side
        if side is None:
            raise RuntimeError("chunks that overlap need a GPU's streams")
        side.wait_stream(main)
        here = []
        with torch.cuda.stream(side):
            for chunk in bounds:
                self.send(qkv, chunk)
                self.buffer.meet()
                here.append(side.record_event())
        kept = []  # until the side stream has read them
        for chunk, event in zip(bounds, here, strict=True):
            main.wait_event(event)
            kept.append(local(*self.arrived(chunk)))
            side.wait_stream(main)
            with torch.cuda.stream(side):
                self.send_back(kept[-1], chunk)
        with torch.cuda.stream(side):
            self.buffer.meet()
        main.wait_stream(side)

    def send(self, qkv: Sequence[Tensor], chunk: slice) -> None:
        """This rank's tokens of each peer's heads of the chunk, to it."""
        mine = piece(self.counts, self.group.rank)
        for peer in self.buffer.peers:
            target, first = self._inbox(peer, chunk), peer * self.heads
            for index, x in enumerate(qkv):
                lay_out(target[index, mine], x[0, first + chunk.start : first + chunk.stop].transpose(0, 1))

    def arrived(self, chunk: slice) -> tuple[Tensor, ...]:
        """Queries, keys and values ``[1, chunk's heads, all tokens, head_dim]``."""
        return tuple(x.transpose(0, 1).unsqueeze(0) for x in self._inbox(self.group.rank, chunk))

    def send_back(self, found: Tensor, chunk: slice) -> None:
        """What attention found for each peer's tokens, to it."""
        rows = found[0].transpose(0, 1)
        for peer in self.buffer.peers:
            target = self._outbox(peer)[:, self.group.rank, chunk]
            lay_out(target, rows[piece(self.counts, peer)])

    def found(self) -> Tensor:
        """``[this rank's tokens, ranks, heads of each, head_dim]``; overwritten by the next attention."""
        return self._outbox(self.group.rank)

    def _inbox(self, rank: int, chunk: slice) -> Tensor:
        per_head = 3 * sum(self.counts) * self.head_dim
        shape = (3, sum(self.counts), chunk.stop - chunk.start, self.head_dim)
        return self.buffer.of(rank, shape, per_head * chunk.start)

    def _outbox(self, rank: int) -> Tensor:
        shape = (self.counts[rank], self.group.size, self.heads, self.head_dim)
        return self.buffer.of(rank, shape, self.buffer.num_inbox)
