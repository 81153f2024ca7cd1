"""The remote wrappers of a worker: a sketch actor, one rank of a heavy pod, a decode actor. Plain classes until Ray takes them.

Boundaries go in and out packed (numpy arrays), as values of Ray's object store that the driver never opens.
"""

from __future__ import annotations

import os
import platform
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

from orchestrator.arms import Arm
from orchestrator.types import Clip, Decision, Item, Slice
from orchestrator.work import Worker

Packed = Any
"""A boundary as numpy arrays, numbers and frozen values."""

FORM_TIMEOUT_S = 60.0
"""How long ranks wait for each other, when a pod forms and in every collective."""


class Workshop(Protocol):
    """Makes an actor's worker and reads boundaries. Travels to the actors by pickle."""

    def make(self, parts: frozenset[str], device: str, num_threads: int) -> Worker: ...

    def unpack(self, packed: Packed) -> Any: ...


@dataclass(frozen=True)
class ClipWorkshop:
    """The real one: every actor loads the parts of the arms' models that its phase needs, before it says it is ready."""

    arms: Mapping[str, Arm]
    attention: str = "auto"
    compile_blocks: bool | None = None

    def make(self, parts: frozenset[str], device: str, num_threads: int) -> Worker:
        from stages.worker import ClipWorker

        worker = ClipWorker(self.arms, parts, device, num_threads, self.attention, self.compile_blocks)
        worker.warm_up()
        return worker

    def unpack(self, packed: Packed) -> Any:
        from stages.denoise import Boundary

        return Boundary.unpack(packed)


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    device: str
    host: str


class Member:
    """What the actors share: they make their worker on their own device, and they can be watched."""

    parts: frozenset[str]

    def __init__(self, workshop: Workshop, num_threads: int) -> None:
        self.workshop = workshop
        self.num_threads = num_threads
        self.device = "cpu"

    def ready(self) -> Place:
        """Make the worker; its errors are this call's."""
        self.device = own_device()
        self.worker = self.workshop.make(self.parts, self.device, self.num_threads)
        return Place(device_name(self.device), platform.node())

    def watch(self) -> None:
        """Never returns: this call fails when the actor dies, busy or idle."""
        threading.Event().wait()


class SketchActor(Member):
    parts = frozenset({"text", "transformer"})

    def sketch(self, item: Item) -> tuple[tuple[Decision, dict[str, float]], Packed]:
        decision, timings_s, boundary = self.worker.sketch(item)
        return (decision, timings_s), boundary.pack()


class DecodeActor(Member):
    parts = frozenset({"vae"})

    def decode(self, item: Item, packed: Packed, path: Path) -> Clip:
        return self.worker.decode(item, self.workshop.unpack(packed), path)


class PodRank(Member):
    """One rank of a heavy pod. All ranks of a slice are told of an item; the slice's first rank does the work and answers.

    The pod's process groups are made once, at the start: ``groups`` holds one for each aligned slice of two or more ranks,
    for the attention of a slice to use.
    """

    parts = frozenset({"transformer"})

    def open_store(self) -> tuple[str, int]:
        """Open the pod's rendezvous on this node's own address (rank 0 only); the others join at the answer."""
        import ray
        import torch.distributed as dist

        host = ray.util.get_node_ip_address()
        listener = socket.create_server((host, 0))
        port = int(listener.getsockname()[1])
        self.store = dist.TCPStore(  # type: ignore[attr-defined]
            host, port, is_master=True, wait_for_workers=False, timeout=_form_timeout(), master_listen_fd=listener.detach()
        )
        return host, port

    def form(self, rank: int, num_ranks: int, address: tuple[str, int]) -> Place:
        """Make the worker, meet the other ranks, build the groups. Raises RuntimeError when they do not add up."""
        import torch
        import torch.distributed as dist

        place = self.ready()
        host, port = address
        if rank > 0:
            self.store = dist.TCPStore(host, port, is_master=False, timeout=_form_timeout())  # type: ignore[attr-defined]
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(own_address(host)))
        backend = "gloo" if self.device == "cpu" else "nccl"
        dist.init_process_group(backend, store=self.store, rank=rank, world_size=num_ranks, timeout=_form_timeout())
        self.rank = rank
        self.groups = {piece: dist.new_group(list(piece)) for piece in aligned_ranks(num_ranks)}
        met = torch.ones(1, device=self.device)
        dist.all_reduce(met)
        if int(met) != num_ranks:
            raise RuntimeError(f"rank {rank} met {int(met)} ranks, the pod has {num_ranks}")
        return place

    def refine(self, item: Item, packed: Packed, piece: Slice) -> tuple[dict[str, float] | None, Packed]:
        if self.rank != piece.start:
            return None, None
        boundary, timings_s = self.worker.refine(item, self.workshop.unpack(packed))
        return timings_s, boundary.pack()


def _form_timeout() -> timedelta:
    return timedelta(seconds=FORM_TIMEOUT_S)


def aligned_ranks(num_ranks: int) -> list[range]:
    """The ranks of every aligned slice of 2, 4, 8, ... ranks, in the one order in which all ranks must make the groups."""
    widths = [2**power for power in range(1, num_ranks.bit_length()) if 2**power <= num_ranks]
    return [range(start, start + width) for width in widths for start in range(0, num_ranks - width + 1, width)]


def own_address(host: str) -> str:
    """This node's address on the network that ``host`` is on; loopback for loopback."""
    if host.startswith("127."):
        return host
    import ray

    return str(ray.util.get_node_ip_address())


def interface_of(address: str) -> str:
    """Name of the network interface with ``address``. Raises RuntimeError listing the addresses there are."""
    import psutil

    found = {entry.address: name for name, entries in psutil.net_if_addrs().items() for entry in entries}
    if address not in found:
        raise RuntimeError(f"no network interface has address {address}; there are: {', '.join(sorted(found))}")
    return str(found[address])


def own_device() -> str:
    """The device Ray gave this actor, made current; "cpu" without a GPU."""
    import ray

    ids = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    device = device_of(ids, os.environ.get("CUDA_VISIBLE_DEVICES"))
    if device != "cpu":
        import torch

        torch.cuda.set_device(device)
    return device


def device_of(gpu_ids: Sequence[str], visible: str | None) -> str:
    """The torch device of a Ray GPU id. Processes see all of the node's GPUs, so the id is a place among the visible ones.

    (Hiding the others behind CUDA_VISIBLE_DEVICES slows NCCL's start on NVSwitch machines and can hang it.)
    Raises ValueError when the GPU is not visible.
    """
    if not gpu_ids:
        return "cpu"
    seen = [part.strip() for part in visible.split(",")] if visible else []
    if seen and gpu_ids[0] not in seen:
        raise ValueError(f"GPU {gpu_ids[0]} given by Ray is not in CUDA_VISIBLE_DEVICES={visible}")
    return f"cuda:{seen.index(gpu_ids[0]) if seen else int(gpu_ids[0])}"


def device_name(device: str) -> str:
    """What a record calls the device."""
    if device == "cpu":
        return "cpu"
    import torch

    return str(torch.cuda.get_device_name(device))
