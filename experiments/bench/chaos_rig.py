"""A small Ray cluster on loopback with a sweep on it, and the means to kill any process of them: nothing else is ever touched."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # every socket on 127.0.0.1
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
}
TITLES = {"rank": "ray::PodRank", "sketch": "ray::SketchActor", "decode": "ray::DecodeActor"}
"""How Ray calls the processes of each kind of worker."""
WORK = {"rank": ".refine", "sketch": ".sketch", "decode": ".decode"}
"""What such a title ends in while the process is at work."""
TRACKER = "experiments.following"
CPUS_PER_NODE = 4
STORE_BYTES = 80 * 2**20


class Rig:
    """Nodes and a driver. The head holds no worker."""

    def __init__(self, num_nodes: int) -> None:
        self.folder = tempfile.mkdtemp(prefix="chaos-")  # Ray notes its newest cluster there, which is not for others to join
        os.environ.update(ENVIRONMENT | {"RAY_TMPDIR": self.folder})
        from ray.cluster_utils import Cluster

        self.cluster = Cluster()
        self.head = self.cluster.add_node(num_cpus=0, include_dashboard=False, object_store_memory=STORE_BYTES)
        self.nodes = [self._node() for _ in range(num_nodes)]
        self.driver: subprocess.Popen[bytes] | None = None

    def _node(self) -> Any:
        return self.cluster.add_node(num_cpus=CPUS_PER_NODE, object_store_memory=STORE_BYTES)

    def close(self) -> None:
        if self.driver is not None and self.driver.poll() is None:
            self.driver.kill()
            self.driver.wait()
        self.cluster.shutdown()
        shutil.rmtree(self.folder, ignore_errors=True)

    # The driver

    def drive(self, command: Sequence[str], log: Path) -> None:
        """Start the sweep, or go on with it."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MLFLOW_")}
        with log.open("ab") as file:
            self.driver = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=environment | {"RAY_ADDRESS": self.cluster.address},
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # Victims

    def victims(self, kind: str) -> list[psutil.Process]:
        """Living processes of a kind, all of them descendants of what was started here."""
        if kind == "driver":
            alive = self.driver is not None and self.driver.poll() is None
            return [psutil.Process(self.driver.pid)] if alive and self.driver else []
        if kind == "tracker":
            return [process for process in _offspring(self.driver and self.driver.pid) if TRACKER in " ".join(_words(process))]
        found = [process for node in self.nodes for process in _offspring(_raylet(node))]
        return [process for process in found if " ".join(_words(process)).startswith(TITLES[kind])]

    def at_work(self, kind: str, patience_s: float) -> list[psutil.Process]:
        """Those of a kind that are at work, once there are any; after a while all of them."""
        deadline_s = time.monotonic() + patience_s
        while kind in WORK and time.monotonic() < deadline_s:
            found = [process for process in self.victims(kind) if " ".join(_words(process)).strip().endswith(WORK[kind])]
            if found:
                return found
            time.sleep(0.02)
        return self.victims(kind)

    def kill_node(self, index: int) -> None:
        """A node goes without a word, and another comes in its place."""
        self.cluster.remove_node(self.nodes[index], allow_graceful=False)
        self.nodes[index] = self._node()

    def kill(self, process: psutil.Process) -> None:
        process.send_signal(signal.SIGKILL)
        if self.driver is not None and process.pid == self.driver.pid:
            self.driver.wait()


def _raylet(node: Any) -> int:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return int(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


def _offspring(pid: int | None) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True) if pid else []
    except psutil.NoSuchProcess:
        return []


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def wait_until(condition: Any, timeout_s: float, what: str) -> None:
    """Raises TimeoutError when ``what`` does not come."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"{what} did not come within {timeout_s:.0f} s")
        time.sleep(0.1)


def last_error(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("error:")]
    return lines[-1][:400] if lines else "no word"
