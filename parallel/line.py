"""The ranks of a slice in a row: each hands what it made to the next one, and the last to the first.

What goes down the line lies on the devices; what goes back lies on the hosts, so that on GPUs each pair of neighbours sends in
one direction only, which NCCL can do out of step.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.groups import Group, told

DOWN, BACK = 1, 2
"""What tells the two apart where a line is of two ranks."""


class Line:
    """This rank's place in the row. A slice of one rank is first and last, and has nothing to send."""

    def __init__(self, group: Group | None, most: int, most_back: int | None = None) -> None:
        """``most`` things are on their way from each rank at once (``most_back`` from the last, where that is not None): before
        another is sent the oldest must have been taken.

        On hosts (gloo) the caller waits for that; on GPUs (NCCL) its stream does, and the caller goes on.
        """
        self.group = group
        self.rank, self.size = (0, 1) if group is None else (group.rank, group.size)
        self._most = most if most_back is None or not self.is_last else most_back
        self._under_way: deque[list[tuple[Any, Tensor]]] = deque()

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    @property
    def is_last(self) -> bool:
        return self.rank == self.size - 1

    def hand_on(self, tensors: tuple[Tensor, ...]) -> None:
        """To the next rank, without waiting for it."""
        self._send(tensors, self.rank + 1, DOWN)

    def take(self, like: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What the rank before handed on, of the same sizes and types as ``like``."""
        return tuple(self._receive(x, self.rank - 1, DOWN) for x in like)

    def send_back(self, x: Tensor) -> None:
        """From the last rank to the first, by the hosts. Waits for the device."""
        self._send((x.cpu(),), 0, BACK)

    def take_back(self, like: Tensor) -> Tensor:
        """On the host, what the last rank sent first of all that has not been taken."""
        return self._receive(like.cpu(), self.size - 1, BACK)

    def share(self, x: Tensor) -> None:
        """The last rank's ``x``, which lies on the host, into that of all."""
        if self.group is not None:
            with told("sharing what the last of them made"):
                dist.broadcast(x, self.group.ranks[-1], group=self.group.handle)

    def settle(self) -> None:
        """What comes after this waits until all that was sent has been taken: the host, or on GPUs (NCCL) its stream."""
        while self._under_way:
            self._finish()

    def _send(self, tensors: tuple[Tensor, ...], rank: int, tag: int) -> None:
        group = self._group
        while len(self._under_way) >= self._most:
            self._finish()
        whole = [x.contiguous() for x in tensors]
        with told("handing on a block"):
            sent = [(dist.isend(x, group.ranks[rank], group=group.handle, tag=tag), x) for x in whole]
        self._under_way.append(sent)

    def _finish(self) -> None:
        with told("handing on a block"):
            for work, _ in self._under_way.popleft():
                work.wait()

    def _receive(self, like: Tensor, rank: int, tag: int) -> Tensor:
        group, found = self._group, torch.empty_like(like, memory_format=torch.contiguous_format)
        with told("waiting for a block"):
            work: Any = dist.irecv(found, group.ranks[rank], group=group.handle, tag=tag)
            work.wait()
        return found

    @property
    def _group(self) -> Group:
        if self.group is None:
            raise RuntimeError("a line of one rank has nobody to send to")
        return self.group
