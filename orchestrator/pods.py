"""The remote wrappers of a worker: a sketch actor, one rank of a heavy pod, a decode actor. Plain classes until Ray takes them.

Boundaries go in and out packed (numpy arrays), as values of Ray's object store that the driver never opens.
"""

from __future__ import annotations

import os
import platform
import signal
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.arms import Arm
from orchestrator.checkpoints import Checkpoints, Saved, load
from orchestrator.doing import Doing, Pace
from orchestrator.keeper import Keeper
from orchestrator.policy import Policy, Sizing
from orchestrator.store import staged
from orchestrator.types import Clip, Decision, Item, Slice
from orchestrator.work import Worker, told

if TYPE_CHECKING:
    from parallel.groups import Group, Groups
    from stages.worker import ClipWorker

Packed = Any
"""A boundary as numpy arrays, numbers and frozen values; or where one lies on disk (:class:`orchestrator.checkpoints.Saved`)."""

COME_TIMEOUT_S = 900.0
"""How long the ranks of a pod wait for the last of them to come."""


class Workshop(Protocol):
    """Makes an actor's worker and reads boundaries. Travels to the actors by pickle."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Groups | None = None) -> Worker:
        """``groups``: of the pod that the worker is for, if any."""
        ...

    def unpack(self, packed: Packed) -> Any:
        """Raises CheckpointLost for a boundary on disk that is not there."""
        ...


@dataclass(frozen=True)
class ClipWorkshop:
    """The real one: every actor loads the parts of the arms' models that its phase needs, before it says it is ready."""

    arms: Mapping[str, Arm]
    attention: str = "auto"
    compile_blocks: bool | None = None
    shards: Mapping[str, int] = field(default_factory=dict)
    """Over how many of a pod's ranks the weights of an arm's transformer are spread; 1, whole on each, where none is given."""
    checkpoints: Path | None = None
    """The folder that boundaries are kept in; None: nowhere."""

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Groups | None = None) -> Worker:
        shards = {} if groups is None else spread(self.shards, groups)
        kind, keeper = self.worker_class(), None if self.checkpoints is None else Keeper(Checkpoints(self.checkpoints))
        worker = kind(self.arms, parts, device, num_threads, self.attention, self.compile_blocks, shards, keeper)
        worker.warm_up()
        return worker

    def worker_class(self) -> type[ClipWorker]:
        from stages.worker import ClipWorker

        return ClipWorker

    def unpack(self, packed: Packed) -> Any:
        from stages.denoise import Boundary

        return Boundary.unpack(load(packed) if isinstance(packed, Saved) else packed)


def spread(shards: Mapping[str, int], groups: Groups) -> dict[str, Group | None]:
    """The aligned slice around this rank that holds an arm's weights with it."""
    return {name: groups.slice(groups.rank // width * width, width) for name, width in shards.items()}


def shards_of(policy: Policy) -> dict[str, int]:
    """Ranks that each arm's weights must be spread over: of arms that do not fit on one."""
    arms = policy.arms if isinstance(policy, Sizing) else {}
    return {name: arm.least_width for name, arm in arms.items() if arm.least_width > 1}


@dataclass(frozen=True)
class Place:
    """Where a worker runs."""

    device: str
    host: str
    node: str = ""
    """Ray's id of it."""


@dataclass(frozen=True)
class Meeting:
    """What the ranks of a pod have in common."""

    num_ranks: int
    backend: str = "native"
    timeout_s: float = 600.0
    """How long a rank waits for the others in every collective."""


class Member:
    """What the actors share: they make their worker on their own device, and they can be watched."""

    def __init__(self, workshop: Workshop, parts: frozenset[str], num_threads: int) -> None:
        self.workshop = workshop
        self.parts = parts
        self.num_threads = num_threads
        self.device = "cpu"
        self._notice = threading.Event()
        # The main thread has nothing else to do: an actor with concurrency groups works in others.
        signal.signal(signal.SIGTERM, lambda number, frame: self._notice.set())

    def ready(self) -> Place:
        """Make the worker; its errors are this call's."""
        self.device = own_device()
        return self._make()

    def _make(self, groups: Groups | None = None) -> Place:
        self.worker = self.workshop.make(self.parts, self.device, self.num_threads, groups)
        return Place(device_name(self.device), platform.node(), own_node())

    def settle(self) -> None:
        """Wait for the checkpoint that the worker still writes, if it keeps any."""
        getattr(self.worker, "settle", lambda: None)()

    def watch(self, noticed: bool = False) -> str:
        """Fails when the actor dies, busy or idle; returns at a notice that the process is to end, unless ``noticed``."""
        (threading.Event() if noticed else self._notice).wait()
        return "SIGTERM"


class DecodeActor(Member):
    def decode(self, packed: Packed, order: bytes) -> Clip:
        item, place = told(order)
        boundary = self.workshop.unpack(packed)
        with staged(place) as path:
            return self.worker.decode(item, boundary, path)


class SketchActor(DecodeActor):
    """It may be asked to decode too, where the crew has no workers for that alone."""

    def sketch(self, order: bytes) -> tuple[tuple[Decision, dict[str, float]], Packed]:
        decision, timings_s, boundary = self.worker.sketch(*told(order))
        return (decision, timings_s), boundary.pack()


class PodRank(Member):
    """One rank of a heavy pod. All ranks of a slice do the work of a clip together; the slice's first rank answers.

    The pod's process groups, one for each aligned slice of two or more ranks, are made once, at the start.
    """

    _doing: Doing | None = None
    _pace: Pace

    def open_store(self) -> tuple[str, int]:
        """Open the pod's rendezvous on this node's own address (rank 0 only); the others join at the answer."""
        import ray

        from parallel.groups import open_store

        host = ray.util.get_node_ip_address()
        self.store, port = open_store(host, timedelta(seconds=COME_TIMEOUT_S))
        return host, port

    def form(self, rank: int, address: tuple[str, int], meeting: Meeting) -> Place:
        """Meet the other ranks, build the groups, make the worker. Raises GroupError when the ranks do not add up."""
        import torch

        from parallel import backends
        from parallel.groups import Groups, join_store

        self.device, patience = own_device(), timedelta(seconds=COME_TIMEOUT_S)
        host, port = address
        if rank > 0:
            self.store = join_store(host, port, patience)
        self.store.set(f"here/{rank}", "")
        self.store.wait([f"here/{other}" for other in range(meeting.num_ranks)], patience)
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface_of(own_address(host)))
        timeout = timedelta(seconds=meeting.timeout_s)
        self.groups = Groups(self.store, rank, meeting.num_ranks, torch.device(self.device), timeout)
        self.exchange = backends.make(meeting.backend, self.groups)
        return self._make(self.groups)

    def refine(self, packed: Packed, order: bytes) -> tuple[dict[str, float] | None, Packed]:
        """``order``: item, slice, and the stages from ``begin`` (counted from 0) to ``stop``. Seconds and the boundary there."""
        item, piece, begin, stop = told(order)
        self._doing, self._pace = Doing(item.item_key, begin + 1), Pace(self.device)
        boundary, timings_s = self.worker.refine(
            item, self.workshop.unpack(packed), partial(self._note, item), stop=stop, team=self._team(piece)
        )
        return (timings_s, boundary.pack()) if self._answers(piece) else (None, None)

    def decode(self, packed: Packed, order: bytes) -> Clip | None:
        item, place, piece = told(order)
        self._doing = Doing(item.item_key, 0)
        boundary, team = self.workshop.unpack(packed), self._team(piece)
        if self._answers(piece):
            with staged(place) as path:
                return self.worker.decode(item, boundary, path, team)
        self.worker.help_decode(item, boundary, team)
        return None

    def doing(self) -> Doing | None:
        """What this rank does, or did last. Answers while it works."""
        return self._doing

    def _note(self, item: Item, done: Any) -> None:
        self._pace.step()
        self._doing = Doing(item.item_key, done.stage + 1, done.step + 1)

    def _answers(self, piece: Slice) -> bool:
        return self.groups.rank == piece.start

    def _team(self, piece: Slice) -> Any:
        """None for a slice of one rank. Makes this rank's GPU current: each thread of an actor has a current one of its own."""
        import torch

        if self.device != "cpu":
            torch.cuda.set_device(self.device)
        if piece.width == 1:
            return None
        from stages.worker import Team

        return Team(self.groups, self.exchange, piece.start, piece.width)


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


def own_node() -> str:
    """Ray's id of this node."""
    import ray

    return str(ray.get_runtime_context().get_node_id())


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
