"""Exchanges alone: NCCL's all-to-all and all-gather, and the same by copies straight into the peers' memory."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from experiments.bench.parallel_cases import degrees
from experiments.bench.parallel_rig import Rig, Row
from parallel.groups import Group
from parallel.shares import shares

MEGABYTES = (1, 8, 64)
"""Per rank: what it holds before the exchange."""
NUM_CALLS = 20
WIDTH = 5120
"""Values of a token."""


def wires(rig: Rig) -> None:
    """Every width and size; a rank sends (width - 1) / width of what it holds."""
    ways: dict[str, Callable[[Rig, Group, int], Row]] = {
        "all-to-all, equal": functools.partial(_all_to_all, uneven=0),
        "all-to-all, uneven": functools.partial(_all_to_all, uneven=1),
        "all-gather": _all_gather,
        "peer copies": functools.partial(_peers, by_kernel=False),
        "peer kernels": functools.partial(_peers, by_kernel=True),
    }
    for way, measure in ways.items():
        for degree in degrees(rig.num_ranks)[1:]:
            for size in MEGABYTES[:1] if rig.is_tiny else MEGABYTES:
                row = {"section": "wires", "way": way, "degree": degree, "mb": size}
                rig.attempt(row, 3.0, lambda: _measured(rig, degree, size, measure))  # noqa: B023 - called at once


def _measured(rig: Rig, degree: int, size: int, measure: Callable[[Rig, Group, int], Row]) -> Row:
    layout = rig.layout(degree)
    if layout is None:
        raise ValueError("one rank exchanges nothing")
    return measure(rig, layout.whole, size << 20)


def _calls(rig: Rig, call: Callable[[], object], degree: int, num_bytes: int) -> Row:
    """Per call, of many in a row; GB/s that a rank sends."""

    def many() -> None:
        for _ in range(2 if rig.is_tiny else NUM_CALLS):
            call()

    timed = rig.timed(many, degree)
    seconds = timed["median_s"] / (2 if rig.is_tiny else NUM_CALLS)
    return {"call_s": seconds, "gb_per_s": num_bytes * (degree - 1) / degree / seconds / 1e9}


def _all_to_all(rig: Rig, group: Group, num_bytes: int, uneven: int) -> Row:
    """Uneven: one token more for the first rank, as shares of a count that does not divide are."""
    total = num_bytes // 2 // WIDTH // group.size * group.size + uneven
    counts = list(shares(total, group.size))
    sent = torch.ones(total, WIDTH, device=rig.device, dtype=torch.bfloat16)
    received = sent.new_empty(counts[group.rank] * group.size, WIDTH)
    splits = ([counts[group.rank]] * group.size, counts) if uneven else (None, None)
    return _calls(rig, lambda: dist.all_to_all_single(received, sent, *splits, group=group.handle), group.size, num_bytes)


def _all_gather(rig: Rig, group: Group, num_bytes: int) -> Row:
    sent = torch.ones(num_bytes // 2 // group.size, device=rig.device, dtype=torch.bfloat16)
    received = sent.new_empty(len(sent) * group.size)
    return _calls(rig, lambda: dist.all_gather_into_tensor(received, sent, group=group.handle), group.size, num_bytes)


class Peers:
    """Equal pieces straight into the peers' memory, one stream each. Multicast stays off: only plain peer mappings."""

    def __init__(self, group: Group, num_bytes: int, by_kernel: bool) -> None:
        """Raises RuntimeError unless multicast is off in the environment, as a host's GPUs may be shared."""
        import torch.distributed._symmetric_memory as symmetric

        if os.environ.get("TORCH_SYMM_MEM_DISABLE_MULTICAST") != "1":
            raise RuntimeError("TORCH_SYMM_MEM_DISABLE_MULTICAST must be 1")
        self.group, self.by_kernel = group, by_kernel
        self.received = symmetric.empty(num_bytes // 2, dtype=torch.bfloat16, device=group.device)
        self.handle: Any = symmetric.rendezvous(self.received, group.handle)
        piece = num_bytes // 2 // group.size
        places = [self.handle.get_buffer(peer, (num_bytes // 2,), torch.bfloat16) for peer in range(group.size)]
        self.places = [place[group.rank * piece : (group.rank + 1) * piece] for place in places]
        self.streams = [torch.cuda.Stream(group.device) for _ in range(group.size)]

    def __call__(self, sent: Tensor) -> Tensor:
        """``sent [size, n]`` to what all ranks sent to this one."""
        main = torch.cuda.current_stream()
        self.handle.barrier(channel=0)
        for step in range(self.group.size):
            peer = (self.group.rank + step) % self.group.size
            stream = self.streams[step]
            stream.wait_stream(main)
            with torch.cuda.stream(stream):
                self._put(sent[peer], self.places[peer])
            main.wait_stream(stream)
        self.handle.barrier(channel=1)
        return self.received

    def _put(self, piece: Tensor, place: Tensor) -> None:
        torch.mul(piece, 1, out=place) if self.by_kernel else place.copy_(piece)


def _peers(rig: Rig, group: Group, num_bytes: int, by_kernel: bool) -> Row:
    if not rig.is_cuda:
        raise RuntimeError("peer copies need GPUs")
    piece = num_bytes // 2 // group.size
    sent = torch.arange(group.size, device=rig.device, dtype=torch.bfloat16)[:, None] + 10.0 * group.rank
    exchange = Peers(group, num_bytes, by_kernel)
    sent = sent.expand(group.size, piece).contiguous()
    found = exchange(sent).view(group.size, piece)[:, 0].tolist()
    expected = [10.0 * peer + group.rank for peer in range(group.size)]
    if found != expected:
        raise RuntimeError(f"peer copies brought {found}, not {expected}")
    return _calls(rig, lambda: exchange(sent), group.size, num_bytes)
