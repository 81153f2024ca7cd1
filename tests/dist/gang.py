"""Long-lived ranks over gloo: real processes that run a test's functions on their groups."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch

from parallel.groups import Groups, join_store, open_store

TIMEOUT = timedelta(seconds=60)
PATIENCE_S = 200.0
"""How long a test waits for its ranks."""


class Gang:
    """``num_ranks`` processes with the groups of one pod. Made once for many tests, as starting them takes seconds."""

    def __init__(self, num_ranks: int, timeout: timedelta = TIMEOUT) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(num_ranks)]
        self.pipes: list[Connection] = [ours for ours, _ in pairs]
        port = free_port()
        self.processes = [
            context.Process(target=_serve, args=(theirs, rank, num_ranks, port, timeout), daemon=True)
            for rank, (_, theirs) in enumerate(pairs)
        ]
        for process in self.processes:
            process.start()
        for _, theirs in pairs:
            theirs.close()
        self._answers(range(num_ranks))

    def run(self, function: Callable[..., Any], *args: Any, ranks: range | None = None) -> list[Any]:
        """``function(groups, *args)`` on all ranks, or some; their answers in order. The first rank's exception is raised."""
        found = self.outcomes(function, *args, ranks=ranks)
        for outcome in found:
            if isinstance(outcome, BaseException):
                raise outcome
        return found

    def outcomes(self, function: Callable[..., Any], *args: Any, ranks: range | None = None) -> list[Any]:
        """Answers or exceptions; EOFError for a rank that died."""
        chosen = range(len(self.pipes)) if ranks is None else ranks
        for rank in chosen:
            self.pipes[rank].send((function, args))
        return self._answers(chosen)

    def _answers(self, ranks: range) -> list[Any]:
        return [self._answer(rank) for rank in ranks]

    def _answer(self, rank: int) -> Any:
        try:
            if not self.pipes[rank].poll(PATIENCE_S):
                return TimeoutError(f"rank {rank} did not answer in {PATIENCE_S:.0f} s")
            return self.pipes[rank].recv()
        except (EOFError, ConnectionResetError) as problem:
            return EOFError(f"rank {rank} is gone: {problem}")

    def close(self) -> None:
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def met(rank: int, num_ranks: int, port: int, device: torch.device, timeout: timedelta) -> Groups:
    """The groups of a pod on this machine, whose first rank opens the rendezvous at ``port``. Its GPU is made current."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    store = open_store("127.0.0.1", timeout, port)[0] if rank == 0 else join_store("127.0.0.1", port, timeout)
    return Groups(store, rank, num_ranks, device, timeout)


def _serve(pipe: Connection, rank: int, num_ranks: int, port: int, timeout: timedelta) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    groups = met(rank, num_ranks, port, torch.device("cpu"), timeout)
    pipe.send(None)
    while True:
        try:
            function, args = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(function(groups, *args))
        except Exception as problem:  # noqa: BLE001 - the test looks at it
            problem.add_note(traceback.format_exc())
            pipe.send(problem)
