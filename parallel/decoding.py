"""Video that several ranks make and one of them hands out."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Group, told


def least(group: Group | None, value: int) -> int:
    """The smallest of all ranks' values, on every rank. Never touches a GPU."""
    if group is None:
        return value
    found = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size)]
    with told("agreeing on the length of runs"):
        dist.all_gather(found, torch.tensor([value]), group=group.handle)
    return min(int(row) for row in found)


def to_first(group: Group, rows: Tensor, counts: Sequence[int]) -> Tensor | None:
    """``rows [counts[rank], ...]`` of all ranks one after the other on rank 0; None on the others."""
    rank = group.rank
    found = rows.new_empty(sum(counts) if rank == 0 else 0, *rows.shape[1:])
    received = list(counts) if rank == 0 else [0] * group.size
    sent = [counts[rank]] + [0] * (group.size - 1)
    with told("gathering video"):
        dist.all_to_all_single(found, rows.contiguous(), received, sent, group=group.handle)
    return found if rank == 0 else None


def in_turns(
    group: Group | None, shapes: Sequence[Sequence[int]], make: Callable[[int], Tensor], like: Tensor
) -> Iterator[Tensor]:
    """``make(0), make(1), ...``, of ``shapes`` and of the type of ``like``: made by ranks in turns, yielded in order by rank 0.

    The other ranks yield nothing and are to be drained all the same. Rank 0 holds one of each rank, and makes its next one
    while those are in use.
    """
    if group is None:
        yield from map(make, range(len(shapes)))
        return
    with _Beside(group.device) as beside:
        made = beside.start(make, group.rank, len(shapes))
        for start in range(0, len(shapes), group.size):
            turn = shapes[start : start + group.size]
            found = _gathered(group, turn, like.new_empty(0) if made is None else beside.ready(made))
            made = beside.start(make, start + group.size + group.rank, len(shapes))
            yield from found


def _gathered(group: Group, shapes: Sequence[Sequence[int]], mine: Tensor) -> list[Tensor]:
    """The tensors that the first ranks made, on rank 0."""
    sizes = [math.prod(shape) for shape in shapes]
    found = to_first(group, mine.flatten(), sizes + [0] * (group.size - len(sizes)))
    return [] if found is None else [part.view(*shape) for part, shape in zip(torch.split(found, sizes), shapes, strict=True)]


@functools.cache
def _second_stream(device: torch.device) -> Any:
    """One per device: memory that a stream has freed can only be had again by the same one."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


class _Beside:
    """Makes tensors beside what the caller does meanwhile: on a GPU they have a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = _second_stream(device) if device.type == "cuda" else None

    def __enter__(self) -> _Beside:
        return self

    def __exit__(self, *problem: object) -> None:
        """Whatever the stream reads may be freed from here on."""
        if self._stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def start(self, make: Callable[[int], Tensor], index: int, num: int) -> Tensor | None:
        """``make(index)``, soon; None beyond the last."""
        if index >= num:
            return None
        if self._stream is None:
            return make(index)
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            return make(index)

    def ready(self, made: Tensor) -> Tensor:
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            made.record_stream(current)
        return made


def handed_on(group: Group | None, runs: Iterator[Tensor]) -> Tensor:
    """The whole video ``[1, 3, F, H, W]`` of ``runs`` along dimension 2, which rank 0 of the group has, on every rank."""
    found = list(runs)
    if group is None:
        return torch.cat(found, dim=2)
    video = torch.cat(found, dim=2).contiguous() if found else None
    sizes = torch.tensor([0] * 5 if video is None else video.shape)
    with told("handing video on"):
        dist.broadcast(sizes, group_src=0, group=group.handle)
        video = torch.empty(sizes.tolist(), device=group.device) if video is None else video
        dist.broadcast(video, group_src=0, group=group.handle)
    return video
