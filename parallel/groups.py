"""The process groups of a pod, made and warmed once: one for each aligned slice of 2, 4, 8, ... ranks."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.errors import GroupError, GroupMismatch

_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13

STORY_BYTES = 256
"""Of what a rank says it is about to do."""


@dataclass(frozen=True, eq=False)
class Group:
    """Adjacent ranks of a pod, and this process's place among them."""

    ranks: range
    """In the pod."""
    rank: int
    """This process's place, from 0."""
    handle: Any
    device: torch.device

    @property
    def size(self) -> int:
        return len(self.ranks)

    @property
    def key(self) -> tuple[int, int, int]:
        """Tells the groups of one process apart."""
        return self.ranks.start, self.size, self.rank

    def gather_rows(self, rows: Tensor, counts: tuple[int, ...]) -> Tensor:
        """``rows [counts[rank], ...]`` of all ranks one after the other, ``[sum(counts), ...]``, on every rank."""
        most = max(counts)
        mine = rows.contiguous()
        if len(rows) < most:
            mine = torch.cat([mine, mine.new_zeros(most - len(rows), *mine.shape[1:])])
        found = mine.new_empty(self.size * most, *mine.shape[1:])
        with told("gathering rows"):
            _all_gather(found, mine, group=self.handle)
        if min(counts) == most:
            return found
        parts = found.view(self.size, most, *found.shape[1:])
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    def agree(self, story: str) -> None:
        """Raises GroupMismatch, on every rank, when ranks are about to do different work. Never touches a GPU."""
        row = torch.zeros(STORY_BYTES, dtype=torch.uint8)
        text = _short(story)
        row[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        found = [torch.empty_like(row) for _ in range(self.size)]
        with told("agreeing on the work"):
            dist.all_gather(found, row, group=self.handle)
        stories = [bytes(said.tolist()).rstrip(b"\0").decode(errors="replace") for said in found]
        if len(set(stories)) > 1:
            rows = "; ".join(f"rank {rank}: {said}" for rank, said in zip(self.ranks, stories, strict=True))
            raise GroupMismatch(f"the ranks of one slice are about to do different work: {rows}")


def _short(story: str) -> bytes:
    """As many bytes as fit; a story that is cut ends in a hash of all of it."""
    text = story.encode()
    if len(text) <= STORY_BYTES:
        return text
    digest = hashlib.sha256(text).hexdigest()[:16].encode()
    return text[: STORY_BYTES - len(digest)] + digest


class told:
    """A failing collective becomes a GroupError that says what was being done."""

    def __init__(self, doing: str) -> None:
        self.doing = doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, problem: BaseException | None, trace: Any) -> None:
        if isinstance(problem, RuntimeError) and not isinstance(problem, GroupError | torch.OutOfMemoryError):
            raise GroupError(f"the other ranks were lost while {self.doing}: {' '.join(str(problem).split())}") from problem


def aligned_ranks(num_ranks: int) -> list[range]:
    """The ranks of every aligned slice of 2, 4, 8, ... ranks, in the one order in which all ranks must make the groups."""
    widths = [2**power for power in range(1, num_ranks.bit_length()) if 2**power <= num_ranks]
    return [range(start, start + width) for width in widths for start in range(0, num_ranks - width + 1, width)]


class Groups:
    """All groups of this process's pod."""

    def __init__(self, store: Any, rank: int, num_ranks: int, device: torch.device, timeout: timedelta) -> None:
        """Meets the other ranks. ``timeout`` is how long a rank waits for the others, here and in every collective.

        Raises GroupError when they do not come or do not add up.
        """
        self.rank = rank
        self.num_ranks = num_ranks
        self.device = device
        self.timeout = timeout
        backend = "gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl"
        with told("meeting"):
            dist.init_process_group(backend, store=store, rank=rank, world_size=num_ranks, timeout=timeout)
            handles = {piece: dist.new_group(list(piece), timeout=timeout) for piece in aligned_ranks(num_ranks)}
        self._groups = {
            piece: Group(piece, rank - piece.start, handle, device) for piece, handle in handles.items() if rank in piece
        }
        for group in self._groups.values():
            self._warm(group)

    def _warm(self, group: Group) -> None:
        """First use makes the connections: both of the host's and of the GPU's."""
        met = group.gather_rows(torch.ones(1, device=self.device), (1,) * group.size)
        swapped = torch.empty_like(met)
        with told("meeting"):
            dist.all_to_all_single(swapped, met, group=group.handle)
        if int(swapped.sum()) != group.size:
            raise GroupError(f"rank {self.rank} met {int(swapped.sum())} ranks of {list(group.ranks)}")
        group.agree("meeting")

    def slice(self, start: int, width: int) -> Group | None:
        """The group of an aligned slice that this rank is in; None for a width of 1.

        Raises ValueError for a slice that is not aligned or that this rank is not in.
        """
        if width == 1:
            return None
        found = self._groups.get(range(start, start + width))
        if found is None:
            have = ", ".join(f"{piece.start}-{piece.stop - 1}" for piece in self._groups)
            raise ValueError(f"rank {self.rank} has no group of ranks {start}-{start + width - 1}; it has {have or 'none'}")
        return found

    def close(self) -> None:
        dist.destroy_process_group()


def open_store(host: str, timeout: timedelta, port: int = 0) -> tuple[Any, int]:
    """A rendezvous on this process, at ``port`` of ``host`` and of no other address; 0: a free one. The store and the port."""
    server = socket.create_server((host, port))
    port = int(server.getsockname()[1])
    store = dist.TCPStore(  # type: ignore[attr-defined]
        host, port, is_master=True, wait_for_workers=False, timeout=timeout, master_listen_fd=server.detach()
    )
    return store, port


def join_store(host: str, port: int, timeout: timedelta) -> Any:
    """The rendezvous that rank 0 opened."""
    return dist.TCPStore(host, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
