"""Processes of a benchmark, one for each rank, which meet at a port of this host that rank 0 opens."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

HOST = "127.0.0.1"


def started(serve: Callable[..., None], num_ranks: int, *given: Any) -> tuple[list[SpawnProcess], list[Connection]]:
    """``serve(*given, rank, pipe)`` in a process for each rank, and the other ends of their pipes: :func:`introduce` them."""
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(num_ranks)]
    processes = [context.Process(target=serve, args=(*given, rank, pipe), daemon=True) for rank, (_, pipe) in enumerate(pairs)]
    for process, (_, theirs) in zip(processes, pairs, strict=True):
        process.start()
        theirs.close()
    return processes, [ours for ours, _ in pairs]


def introduce(pipes: list[Connection], timeout: timedelta) -> None:
    """Tells all others rank 0's port. Raises RuntimeError when it has opened none in time, or has ended."""
    try:
        port = pipes[0].recv() if pipes[0].poll(timeout.total_seconds()) else None
    except EOFError:
        port = None
    if port is None:
        raise RuntimeError(f"rank 0 of {len(pipes)} did not open a port")
    for pipe in pipes[1:]:
        pipe.send(port)


def met(device: str, rank: int, pipe: Connection, timeout: timedelta) -> tuple[Any, Any]:
    """In a rank's process: the store that all share, and its device: a GPU of its own, or one thread of a CPU."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    import torch

    from parallel.groups import join_store, open_store

    if device == "cpu":
        torch.set_num_threads(1)
    else:
        torch.cuda.set_device(rank)
    if rank == 0:
        store, port = open_store(HOST, timeout)
        pipe.send(port)
    else:
        store = join_store(HOST, pipe.recv(), timeout)
    return store, torch.device("cpu") if device == "cpu" else torch.device("cuda", rank)
