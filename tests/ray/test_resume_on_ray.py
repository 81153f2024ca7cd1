"""Workers of a real model that die just after a boundary is on disk: the clip goes on from it, to the same video."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.checkpoints import Checkpoints
from orchestrator.cli_sweep import scheduler_config
from orchestrator.cluster import Cluster
from orchestrator.config import Sweep, build_sweep
from orchestrator.driver import run_on_ray
from orchestrator.events import Command, Event, Finish, Reached, StartPhase, StartSketch
from orchestrator.ledger import Ledger
from orchestrator.local import run_local
from orchestrator.paths import RunPaths
from orchestrator.pods import ClipWorkshop
from orchestrator.resolve_sizing import sizing_of
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from orchestrator.types import Record
from tests.ray.deadly import DEATHS, DeadlyWorkshop
from tests.tiny import checkpoint


def spec() -> Sweep:
    settings = {
        "prompts": ["a red circle moves left"],
        "frames": 25,
        "height": 96,
        "width": 96,
        "steps": 12,
        "weights": str(checkpoint()),
        "arms": {"dvg": {"planner": "dvg", "budget": 0.5, "guidance": 3.0}},
        "max_attempts": len(DEATHS) + 1,
        "cluster": {"num_threads": 1, "heavy_ranks": 1},
    }
    return build_sweep(settings, Path())


def record(paths: RunPaths) -> Record:
    (found,) = Ledger(paths).records()
    return found


def undisturbed(sweep: Sweep, paths: RunPaths) -> Record:
    worker = ClipWorkshop(sweep.arms_by_name).worker_class()(sweep.arms_by_name, num_threads=1)
    run_local(sweep.items, worker, Scheduler(), Runbook(Ledger(paths), sweep.arms_by_name))
    return record(paths)


@pytest.mark.slow
def test_a_clip_whose_workers_die_at_its_boundaries_goes_on_from_each_and_is_the_same(cluster: Cluster, tmp_path: Path) -> None:
    sweep, paths = spec(), RunPaths(tmp_path / "run")
    kept, deaths = Checkpoints(paths.checkpoints), tmp_path / "deaths"
    kept.open([])
    deaths.mkdir()
    told: list[tuple[Event, list[Command]]] = []
    run_on_ray(
        sweep,
        sweep.items,
        scheduler := Scheduler(scheduler_config(sweep), sizing_of(sweep.arms, sweep.cluster)),
        Runbook(Ledger(paths), sweep.arms_by_name, checkpoints=kept),
        lambda event, commands: told.append((event, list(commands))),
        DeadlyWorkshop(sweep.arms_by_name, checkpoints=kept.root, deaths=deaths),
        cluster,
    )
    scheduler.check()
    assert sorted(int(path.name) for path in deaths.iterdir()) == list(DEATHS)
    commands = [command for _, commands in told for command in commands]
    assert sum(isinstance(command, StartSketch) for command in commands) == 1, "no sketch was made again"
    assert [command.begin for command in commands if isinstance(command, StartPhase)][:2] == [1, 2]
    assert {event.stop for event, _ in told if isinstance(event, Reached)} >= {2}
    assert sum(isinstance(command, Finish) for command in commands) == 1
    made, expected = record(paths), undisturbed(sweep, RunPaths(tmp_path / "alone"))
    assert made.sha256 == expected.sha256
    assert made.why == expected.why
    assert list(kept.root.iterdir()) == []
