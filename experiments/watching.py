"""One monitor per node: samples of what each machine does go to ``system.jsonl``, from where MLflow gets them.

This machine is sampled by a thread of the sweep itself; every other node of its Ray cluster by an actor there that takes no CPU
slot and needs nothing but psutil. Only this process writes, so nothing is lost when MLflow is away.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

from experiments.system_metrics import Machine
from orchestrator.files import append_whole
from orchestrator.paths import RunPaths

os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # a sample taken while the sweep ends must start no Ray of its own

FIRST_PAUSE_S = 5.0
PAUSE_SHARE = 1 / 200
"""A sample every 5 s at first, then every two-hundredth of the time so far: an hour makes 460 samples, a day 1,100."""
ANSWER_S = 5.0
"""How long a node is waited for; one that is late is left out of this sample."""

_log = logging.getLogger("dvg.tracking")


class Watch:
    """Samples until closed. ``host``: this machine's, which needs no actor."""

    def __init__(self, paths: RunPaths, pause_s: float = FIRST_PAUSE_S, host: str | None = None) -> None:
        self._path, self._pause_s = paths.system, pause_s
        self._host = host or platform.node()
        self._machine = Machine(paths.root)
        self._nodes = Nodes(self._host)
        self._began_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take the last sample and let the other nodes' monitors go."""
        self._over.set()
        self._thread.join(ANSWER_S)
        self._nodes.close()

    def _run(self) -> None:
        while not self._over.wait(max(self._pause_s, PAUSE_SHARE * (time.monotonic() - self._began_s))):
            if not self._sample():
                return
        self._sample()

    def _sample(self) -> bool:
        """False when the disk takes no more: the sweep will say so itself."""
        found = {self._host: self._machine.sample()} | self._nodes.sample()
        time_ms = int(time.time() * 1000)
        rows = [{"time_ms": time_ms, "node": node_name(host), "metrics": metrics} for host, metrics in found.items()]
        try:
            append_whole(self._path, "".join(json.dumps(row) + "\n" for row in rows).encode(), sync=False)
        except OSError as error:
            _log.info("system metrics end: %s", error)
            return False
        return True


class Nodes:
    """The monitors on the other nodes of the Ray cluster that this process is connected to, if it is."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._actors: dict[str, Any] = {}

    def sample(self) -> dict[str, dict[str, float]]:
        """By host name: of all that answer in time."""
        ray = sys.modules.get("ray")
        if ray is None or not ray.is_initialized():
            return {}
        try:
            self._hire(ray)
            asked = {actor.sample.remote(): host for host, actor in self._actors.items()}
            ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S) if asked else ([], [])
            return {asked[ref]: found for ref in ready if (found := self._answer(ray, ref, asked[ref])) is not None}
        except Exception as error:  # noqa: BLE001  (whatever Ray raises while the sweep shuts it down: a sample is no reason to fail)
            _log.info("no system metrics of other nodes: %s", error)
        return {}

    def _hire(self, ray: Any) -> None:
        """A monitor for each new host; that of one that left goes."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        alive = {node["NodeManagerHostname"]: node["NodeID"] for node in ray.nodes() if node["Alive"]}
        for host in alive.keys() - self._actors.keys() - {self._host}:
            here = NodeAffinitySchedulingStrategy(alive[host], soft=False)
            actor = ray.remote(num_cpus=0, max_restarts=0)(NodeMonitor).options(scheduling_strategy=here)
            self._actors[host] = actor.remote()
        for host in self._actors.keys() - alive.keys():
            del self._actors[host]

    def _answer(self, ray: Any, ref: Any, host: str) -> dict[str, float] | None:
        try:
            return dict(ray.get(ref))
        except ray.exceptions.RayError:
            self._actors.pop(host, None)  # made anew while its node is there
            return None

    def close(self) -> None:
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            for actor in self._actors.values():
                ray.kill(actor)
        self._actors.clear()


class NodeMonitor:
    """On another node, in a process of its own."""

    def __init__(self) -> None:
        self._machine = Machine(Path("/"))

    def sample(self) -> dict[str, float]:
        return self._machine.sample()


def node_name(host: str) -> str:
    """As a part of a metric's name: MLflow takes letters, digits and a few signs."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", host)
