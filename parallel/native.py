"""Sequence parallelism by all-to-all (DeepSpeed-Ulysses, arXiv 2309.14509) over torch's own collectives, for any token count.

Before attention every rank gives each other rank a share of the heads of its tokens, so that it has all tokens of its own share
of the heads; afterwards the way back. Shares of tokens may differ by one: the splits say so, nothing is padded. Heads go in
chunks, so that the next chunk travels while this one is attended to.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Group, told
from parallel.seam import Attention

OVERLAP_ELEMENTS = 40_000_000
"""Of all ranks' queries, from which two chunks are faster than one: below, launching costs more than the hiding gains."""
WIDE = torch.complex128


@dataclass(frozen=True)
class Native:
    """The exchange."""

    num_chunks: int | None = None
    """Of each rank's heads. None: two for long sequences on GPUs, otherwise one."""
    name: str = "native"

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, local: Attention, group: Group, counts: tuple[int, ...]) -> Tensor:
        heads = q.shape[1] // group.size
        bounds = chunks(heads, self.num_chunks if self.num_chunks or not q.is_cuda else num_overlapping(q, sum(counts)))
        arriving = [_Arriving((q, k, v), bound, group, counts) for bound in bounds]
        leaving = [_Leaving(local(*chunk.wait()), bound, group, counts) for chunk, bound in zip(arriving, bounds, strict=True)]
        out = q.new_empty(q.shape[2], group.size, heads, q.shape[3])
        for chunk in leaving:
            chunk.into(out)
        return out.flatten(1, 2).transpose(0, 1).unsqueeze(0)


def num_overlapping(q: Tensor, num_tokens: int) -> int:
    """Chunks that pay on a GPU, for queries ``[1, heads, ...]`` of all tokens."""
    return 2 if num_tokens * q.shape[1] * q.shape[3] >= OVERLAP_ELEMENTS else 1


def chunks(heads: int, num: int | None) -> list[slice]:
    """``num`` pieces of a rank's heads, as equal as can be; fewer where there are fewer heads, one for None."""
    num = min(num or 1, heads)
    ends = [heads * i // num for i in range(num + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def _splits(counts: tuple[int, ...]) -> list[int] | None:
    """None where all are equal, which has a faster path."""
    return None if min(counts) == max(counts) else list(counts)


class _Arriving:
    """A chunk's queries, keys and values on their way from all ranks."""

    def __init__(self, qkv: tuple[Tensor, ...], chunk: slice, group: Group, counts: tuple[int, ...]) -> None:
        num, width = qkv[0].shape[2], chunk.stop - chunk.start
        sent = qkv[0].new_empty(group.size, num, len(qkv), width, qkv[0].shape[3])
        for index, x in enumerate(qkv):
            lay_out(sent[:, :, index], torch.unflatten(x[0], 0, (group.size, -1))[:, chunk].transpose(1, 2))
        self.found = sent.new_empty(sum(counts), *sent.shape[2:])
        self._sent = sent.flatten(0, 1)
        self._work = _swap(self.found, self._sent, _splits(counts), None, group)

    def wait(self) -> tuple[Tensor, ...]:
        """``[1, chunk's heads, all tokens, head_dim]`` each."""
        with told("exchanging queries, keys and values"):
            self._work.wait()
        return tuple(x.transpose(0, 1).unsqueeze(0) for x in self.found.unbind(1))


class _Leaving:
    """What attention made of a chunk, on its way back to the tokens' own ranks."""

    def __init__(self, found: Tensor, chunk: slice, group: Group, counts: tuple[int, ...]) -> None:
        self._chunk = chunk
        self._sent = found[0].transpose(0, 1).contiguous()
        num = counts[group.rank]
        self._back = self._sent.new_empty(group.size * num, *self._sent.shape[1:])
        self._work = _swap(self._back, self._sent, None, _splits(counts), group)

    def into(self, out: Tensor) -> None:
        """``out [this rank's tokens, ranks, heads of each, head_dim]``."""
        with told("exchanging what attention found"):
            self._work.wait()
        lay_out(out[:, :, self._chunk], torch.unflatten(self._back, 0, (out.shape[1], -1)).transpose(0, 1))


def lay_out(target: Tensor, source: Tensor) -> None:
    """Copies between layouts, 16 bytes at a time where both allow: several times as fast as value by value."""
    if _is_wide(target) and _is_wide(source):
        target.view(WIDE).copy_(source.view(WIDE))
    else:
        target.copy_(source)


def _is_wide(x: Tensor) -> bool:
    per_wide = WIDE.itemsize // x.itemsize
    steps = (x.storage_offset(), x.shape[-1], *x.stride()[:-1])
    return x.stride(-1) == 1 and not any(step % per_wide for step in steps)


def _swap(received: Tensor, sent: Tensor, receive_splits: list[int] | None, send_splits: list[int] | None, group: Group) -> Any:
    """Rows to all ranks, in equal pieces where no splits are given."""
    receive = receive_splits if send_splits is None else _equal(received, group)
    send = send_splits if receive_splits is None else _equal(sent, group)
    with told("exchanging tokens"):
        work = dist.all_to_all_single(received, sent, receive, send, group=group.handle, async_op=True)
    if work is None:
        raise RuntimeError("the exchange of tokens was not started")
    return work


def _equal(rows: Tensor, group: Group) -> list[int]:
    return [rows.shape[0] // group.size] * group.size
