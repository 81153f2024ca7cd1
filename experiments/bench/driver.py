"""How many decisions a second the driver carries through real Ray actors that do nothing, and what an item costs it.

``python -m experiments.bench.driver [--items 600] [--pods 2] [--out experiments/results/driver_202611.json]``

The actors are the sweep's own; their worker answers at once, with a boundary that the object store holds. Everything else is as
in any sweep: records are flushed to disk, events are logged, each item is sketched, refined, decoded and finished.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bench.common import save
from orchestrator.arms import Arm
from orchestrator.cluster import start_or_join
from orchestrator.cluster_config import ClusterConfig
from orchestrator.config import Sweep, TrackingConfig
from orchestrator.driver import run_on_ray
from orchestrator.events import Command, Event, StartDecode, StartPhase, StartSketch, WorkerJoined
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler, SchedulerConfig
from orchestrator.types import Action, Clip, Decision, Item, Record, Stage

STAGES = (Stage((4, 8, 8), 9, 7.0), Stage((11, 18, 18), 21, 11.0))
DECISION = Decision(Action("s0.70-f9", STAGES, 0.5, 0.7, 9), "still")
SHAPE = {"num_frames": 41, "height": 144, "width": 144, "fps": 16, "num_steps": 30, "guidance": 1.0}
ARM = Arm.model_validate({"name": "dvg", "model": "wan-mini", "planner": "dvg", "budget": 0.5} | SHAPE)
LATENT_BYTES = 200_000
"""Enough for the object store to hold it."""
VIDEO = b"video"


@dataclass(frozen=True)
class IdleWorkshop:
    def make(self, parts: frozenset[str], device: str, num_threads: int, groups: Any = None) -> IdleWorker:
        return IdleWorker()

    def unpack(self, packed: Any) -> Any:
        return packed


@dataclass(frozen=True)
class Latent:
    x: Any

    def pack(self) -> Any:
        return self.x


class IdleWorker:
    """Answers at once."""

    def __init__(self) -> None:
        self.latent = Latent(np.zeros(LATENT_BYTES, np.uint8))

    def sketch(self, item: Item) -> tuple[Decision, dict[str, float], Latent]:
        return DECISION, {"sketch_s": 0.0}, self.latent

    def refine(self, item: Item, boundary: Any, on_step: Any, *, stop: int | None, team: Any) -> tuple[Latent, dict[str, float]]:
        return self.latent, {"refine_s": 0.0}

    def decode(self, item: Item, boundary: Any, path: Path, team: Any = None) -> Clip:
        path.write_bytes(VIDEO)
        return Clip(path.name, len(VIDEO), hashlib.sha256(VIDEO).hexdigest(), {"decode_s": 0.0})


class TimedScheduler(Scheduler):
    """Adds up what deciding takes."""

    seconds = 0.0

    def handle(self, event: Event) -> list[Command]:
        began_s = time.perf_counter()
        commands = super().handle(event)
        self.seconds += time.perf_counter() - began_s
        return commands


class TimedRunbook(Runbook):
    """Adds up what it takes to make a finished item safe on disk."""

    seconds = 0.0

    def finish(self, *arguments: Any) -> Record:
        began_s = time.perf_counter()
        record = super().finish(*arguments)
        self.seconds += time.perf_counter() - began_s
        return record


@dataclass
class Tally:
    """Decisions from the moment at which everybody is there."""

    num_workers: int
    joined: int = 0
    started_s: float = 0.0
    cpu_s: float = 0.0
    num_events: int = 0
    records: int = 0
    commands: Counter[str] = field(default_factory=Counter)

    def on_event(self, event: Event, commands: Sequence[Command]) -> None:
        self.joined += isinstance(event, WorkerJoined)
        if self.joined == self.num_workers and not self.started_s:
            self.started_s, self.cpu_s = time.perf_counter(), time.process_time()
            self.commands.clear()
            self.num_events = 0
        self.num_events += 1
        self.commands.update(type(command).__name__ for command in commands)

    def row(self) -> dict[str, Any]:
        """Rates since everybody was there, and the driver's own CPU."""
        wall_s, cpu_s = time.perf_counter() - self.started_s, time.process_time() - self.cpu_s
        started = sum(self.commands[kind.__name__] for kind in (StartSketch, StartPhase, StartDecode))
        finished = self.commands["Finish"]
        return {
            "items": finished,
            "wall_s": round(wall_s, 3),
            "decisions": started,
            "decisions_per_s": round(started / wall_s, 1),
            "events_per_s": round(self.num_events / wall_s, 1),
            "items_per_s": round(finished / wall_s, 1),
            "driver_cpu_ms_per_item": round(1000 * cpu_s / finished, 3),
        }


def measure(config: ClusterConfig, num_items: int, folder: Path) -> dict[str, Any]:
    """One sweep on a cluster of its own."""
    made = [Item(f"key{number}", "dvg", f"p{number}", "", number) for number in range(num_items)]
    sweep = Sweep("bench", (ARM,), tuple(made), None, 3, config, TrackingConfig())
    num_ranks = config.pods * config.heavy_ranks
    limits = SchedulerConfig(max_ahead=2 * num_ranks, max_undecoded=2 * config.decode_workers + num_ranks)
    scheduler = TimedScheduler(limits)
    tally = Tally(config.sketch_workers + config.pods + config.decode_workers)
    rows: list[dict[str, Any]] = []

    def on_record(record: Record) -> None:
        """The last item counts once it is on disk."""
        tally.records += 1
        if tally.records == num_items:
            rows.append(tally.row())

    runbook = TimedRunbook(Ledger(RunPaths(folder)), {"dvg": ARM}, on_record)
    cluster = start_or_join()
    try:
        run_on_ray(sweep, made, scheduler, runbook, tally.on_event, IdleWorkshop(), cluster)
    finally:
        cluster.leave()
    return rows[0] | {
        "scheduler_ms_per_item": round(1000 * scheduler.seconds / num_items, 3),
        "ledger_ms_per_item": round(1000 * runbook.seconds / num_items, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=600)
    parser.add_argument("--pods", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    config = ClusterConfig(pods=options.pods, heavy_ranks=options.ranks, num_threads=1)
    with tempfile.TemporaryDirectory() as folder:
        row = measure(config, options.items, Path(folder))
    workers = {"sketch": config.sketch_workers, "pods": config.pods, "ranks": config.heavy_ranks, "decode": config.decode_workers}
    figures = {"workers": workers, "boundary_bytes": LATENT_BYTES} | row
    print(json.dumps(figures, indent=2))
    if options.out:
        save(options.out, "driver", figures)


if __name__ == "__main__":
    main()
