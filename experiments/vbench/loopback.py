"""Runs in VBench's own environment: a module or script whose rendezvous is on the loopback alone.

    python -P loopback.py MODULE|SCRIPT.py [ARGUMENT...]

torch's store listens on every interface and has no option about it, but takes a socket that listens already.
"""

from __future__ import annotations

import runpy
import socket
import sys
from typing import Any

import torch.distributed as dist

HERE = "127.0.0.1"
OWN: Any = vars(dist)["TCPStore"]


class Store(OWN):  # type: ignore[misc]
    """torch's, whose server listens at 127.0.0.1."""

    def __init__(
        self, host_name: str, port: int, world_size: int | None = None, is_master: bool = False, *rest: Any, **more: Any
    ) -> None:
        if is_master:
            host_name = HERE
            listening = socket.create_server((HERE, port))
            port = listening.getsockname()[1]
            more["master_listen_fd"] = listening.detach()  # the store's from here on
        super().__init__(host_name, port, world_size, is_master, *rest, **more)


def replace_store() -> None:
    """Wherever torch's own is already known by name, and so wherever it will be."""
    for module in [module for name, module in sys.modules.items() if name.startswith("torch")]:
        if vars(module).get("TCPStore") is OWN:
            module.TCPStore = Store  # type: ignore[attr-defined]


def main() -> None:
    replace_store()
    sys.argv = sys.argv[1:]
    what = sys.argv[0]
    if what.endswith(".py"):
        runpy.run_path(what, run_name="__main__")
    else:
        runpy.run_module(what, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
