"""A sweep that kills its own processes at random as it goes, itself too: ``python -m tests.ray.rampage FOLDER SEED``.

The same command goes on from there. Kills leave one file each, so that a new driver knows where in the plan it is.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from orchestrator.checkpoints import Checkpoints, Saved, load
from orchestrator.cluster_config import ClusterConfig
from orchestrator.driver import run_on_ray
from orchestrator.events import Arrived, Command, Event
from orchestrator.ledger import Ledger
from orchestrator.local import run_local
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.policy import Throughput
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.types import Decision, Item, Past
from tests.ray.fakes import ARM, DECISION, FakeWorker, FakeWorkshop, Latent, Tripwire, items, sweep

NUM_ITEMS = 32
KILLS = {"rank": 3, "sketch": 4, "decode": 4, "driver": 1}
BORN = {"rank": "born.transformer.*", "sketch": "born.text-transformer.*", "decode": "born.vae.*"}
EVERY = 5
"""Results between two kills."""


def plan(seed: int) -> list[str]:
    kinds = [kind for kind, number in KILLS.items() for _ in range(number)]
    random.Random(seed).shuffle(kinds)
    return kinds


def scheduler() -> Scheduler:
    return Scheduler(SchedulerConfig(max_attempts=30), Throughput())


@dataclass(frozen=True)
class KeepingWorkshop(FakeWorkshop):
    """Its workers leave every boundary on disk, as real ones do."""

    checkpoints: Path = Path()

    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Any = None) -> FakeWorker:
        super().make(parts, device, num_threads, groups)
        return KeepingWorker(self, device)

    def unpack(self, packed: Any) -> Latent:
        if not isinstance(packed, Saved):
            return super().unpack(packed)
        kept = load(packed)
        return Latent(kept["x"], kept["phase"], Tripwire(self.driver_pid, self.folder))


class KeepingWorker(FakeWorker):
    def __init__(self, workshop: KeepingWorkshop, device: str) -> None:
        super().__init__(workshop, device)
        self.checkpoints = Checkpoints(workshop.checkpoints)

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Latent]:
        decision, timings_s, latent = super().sketch(item)
        self._keep(item, latent, Past(timings_s, began_s=time.time()), stop=1)
        return decision, timings_s, latent

    def refine(
        self, item: Item, boundary: Latent, on_step: Any = None, *, stop: int | None = None, team: Any = None
    ) -> tuple[Latent, dict[str, float]]:
        latent, timings_s = super().refine(item, boundary, on_step, stop=stop, team=team)
        num_stages = len(DECISION.action.stages)
        past = Past({"sketch_s": 0.5, **timings_s}, (1,) * (num_stages - 1), 1.5, time.time())
        self._keep(item, latent, past, num_stages)
        return latent, timings_s

    def _keep(self, item: Item, latent: Latent, past: Past, stop: int) -> None:
        packed = {"x": latent.x, "phase": latent.phase, "stage": stop, "decision": DECISION, "past": past}
        self.checkpoints.save(item.item_key, packed)


@dataclass
class Rampage:
    """Hears of every event, and strikes at some."""

    folder: Path
    seed: int
    num_results: int = 0
    dice: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.dice = random.Random(f"{self.seed} {self.num_killed}")

    @property
    def num_killed(self) -> int:
        return len(list(self.folder.glob("killed.*")))

    def __call__(self, event: Event, commands: Sequence[Command]) -> None:
        self.num_results += not isinstance(event, Arrived)
        left = plan(self.seed)[self.num_killed :]
        if left and self.num_results >= EVERY and self._strike(left[0]):
            self.num_results = 0

    def _strike(self, kind: str) -> bool:
        """False when nobody of the kind is alive."""
        pids = [os.getpid()] if kind == "driver" else self._alive(BORN[kind])
        if not pids:
            return False
        pid = self.dice.choice(pids)
        (self.folder / f"killed.{self.num_killed}.{kind}").touch()
        os.kill(pid, signal.SIGKILL)
        return True

    def _alive(self, born: str) -> list[int]:
        pids = sorted(int(path.suffix[1:]) for path in self.folder.glob(born))
        return [pid for pid in pids if is_worker(pid)]


def is_worker(pid: int) -> bool:
    """A number may come again for a process of somebody else."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and " ".join(process.cmdline()).startswith("ray::")
    except psutil.Error:
        return False


def clips() -> list[Item]:
    return items(**{f"key{number}": "" for number in range(NUM_ITEMS)})


def calm(folder: Path) -> None:
    """The same clips one after the other in this process, where nothing is killed."""
    calls, made = folder / "calls", clips()
    calls.mkdir(parents=True)
    worker = FakeWorker(FakeWorkshop(calls, os.getpid()), "cpu")
    run_local(made, worker, scheduler(), Runbook(Ledger(RunPaths(folder / "run")), {"dvg": ARM}))


def main(folder: Path, seed: int) -> None:
    made = clips()
    calls, paths = folder / "calls", RunPaths(folder / "run")
    calls.mkdir(parents=True, exist_ok=True)
    config = ClusterConfig(pods=2, heavy_ranks=2, num_threads=1)
    with RunLock(paths):
        ledger, checkpoints = Ledger(paths), Checkpoints(paths.checkpoints)
        todo, _ = ledger.resume(made, lambda video, num_frames: None)
        found = checkpoints.open(item.item_key for item in todo)
        runbook = Runbook(ledger, {"dvg": ARM}, checkpoints=checkpoints, found=found)
        workshop = KeepingWorkshop(calls, os.getpid(), checkpoints=paths.checkpoints)
        run_on_ray(sweep(made, config), todo, scheduler(), runbook, Rampage(calls, seed), workshop)
        checkpoints.close(())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
