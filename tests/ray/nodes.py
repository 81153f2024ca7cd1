"""A sweep whose nodes come and go: ``python -m tests.ray.nodes FOLDER`` plays the story below and prints what came of it.

In a process of its own, because a process has one Ray connection. Every clip waits to be released, so that the story needs no
clock: each step is taken at an event of the sweep.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}

import ray
from ray.cluster_utils import Cluster

from orchestrator import staff
from orchestrator.cluster_config import ClusterConfig
from orchestrator.driver import run_on_ray
from orchestrator.events import Command, Event, PhaseDone, StartPhase, WorkerJoined, WorkerLeaving, WorkerLost
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig, replay
from tests.ray.fakes import ARM, FakeWorkshop, calls, items, sweep

STORE = {"object_store_memory": 80 * 2**20}
SOON_FOUND_DEAD = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
KEYS = "abcdefgh"
CONFIG = ClusterConfig(pods=1, max_pods=2, heavy_ranks=2, num_threads=1, grace_s=3, patience={"most_s": 600})


class Story:
    """What is done to the cluster at which event. Steps wait for their event in order."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        self.heavy: dict[str, Any] = {"first": self.add_node()}
        self.running: dict[str, set[str]] = {}
        """Clips that each pod has begun."""
        self.done: set[str] = set()
        self.steps: list[tuple[Callable[[Event], bool], Callable[[Event], None]]] = [
            (lambda e: self.has("pod-0", "ab"), lambda e: self.come("late")),
            (lambda e: self.has("pod-1", "cd"), lambda e: self.drain("late")),
            (lambda e: isinstance(e, WorkerLeaving) and e.worker == "pod-1", lambda e: self.release("cd")),
            (lambda e: self.done >= set("cd"), lambda e: self.come("third")),
            (lambda e: self.has("pod-1.1", "ef"), lambda e: self.remove("third")),
            (lambda e: isinstance(e, WorkerLost) and e.worker == "pod-1.1", lambda e: self.release("ae")),
            (lambda e: self.done >= set("ae"), lambda e: self.notify("sketch-0", "text-transformer")),
            (lambda e: isinstance(e, WorkerJoined) and e.worker == "sketch-0.1", lambda e: self.notify("pod-0", "transformer")),
            (lambda e: isinstance(e, WorkerLost) and e.worker == "pod-0", lambda e: self.release(["all"])),
        ]

    def on_event(self, event: Event, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, StartPhase):
                self.running.setdefault(command.slice.pod, set()).add(command.item_key)
        if isinstance(event, PhaseDone):
            self.done.add(event.item_key)
        if self.steps and self.steps[0][0](event):
            _, take = self.steps.pop(0)
            take(event)

    def has(self, pod: str, keys: str) -> bool:
        return self.running.get(pod, set()) >= set(keys)

    def add_node(self) -> Any:
        return self.cluster.add_node(num_cpus=2, labels={"role": "heavy"}, **STORE)

    def come(self, name: str) -> None:
        """A node comes while the sweep runs."""
        self.heavy[name] = self.add_node()

    def drain(self, name: str) -> None:
        """A spot notice, as ``ray drain-node`` gives it."""
        client = ray._raylet.GcsClient(address=self.cluster.address)
        accepted, why = client.drain_node(self.heavy[name].node_id, 2, "spot", int(1000 * (time.time() + 600)))
        if not accepted:
            raise RuntimeError(why)

    def remove(self, name: str) -> None:
        self.cluster.remove_node(self.heavy[name], allow_graceful=False)

    def notify(self, worker: str, parts: str) -> None:
        """SIGTERM to one process of the oldest worker of a kind."""
        born = sorted(self.folder.glob(f"born.{parts}.*"), key=lambda path: path.stat().st_mtime)
        os.kill(int(born[0].suffix[1:]), signal.SIGTERM)

    def release(self, names: Any) -> None:
        for name in names:
            (self.folder / f"release.{name}").touch()


def main(folder: Path) -> None:
    staff.AWAY_S = 1.0
    cluster = Cluster()
    cluster.add_node(num_cpus=0, labels={"role": "head"}, include_dashboard=False, _system_config=SOON_FOUND_DEAD, **STORE)
    cluster.add_node(num_cpus=4, labels={"role": "sketch"}, **STORE)
    story = Story(cluster, folder)
    os.environ["RAY_ADDRESS"] = cluster.address
    made = items(**dict.fromkeys(KEYS, "hold-refine-9"))
    scheduler = Scheduler(SchedulerConfig(max_attempts=4))
    ledger = Ledger(RunPaths(folder / "run"))

    def on_event(event: Event, commands: Any) -> None:
        scheduler.check()
        story.on_event(event, commands)

    try:
        workshop = FakeWorkshop(folder, os.getpid())
        run_on_ray(sweep(made, CONFIG, 4), made, scheduler, Runbook(ledger, {"dvg": ARM}), on_event, workshop)
        log = [json.loads(line) for line in ledger.paths.events.read_text().splitlines()]
        replay(log, Scheduler(SchedulerConfig(max_attempts=4)))
        told = {
            "attempts": {record.item_key: record.attempts for record in ledger.records()},
            "workers": [[row["type"], row["worker"], row.get("reason", "")] for row in log if row["type"].startswith("Worker")],
            "lost_ranks": {row["worker"]: row["ranks"] for row in log if row["type"] == "WorkerLost"},
            "sketched": len(calls(folder, "sketch")),
            "steps_left": len(story.steps),
        }
        print(json.dumps(told))
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
