"""A driver process to kill whose output is a URL: ``python -m tests.ray.drive_url URL WORK CALLS_FOLDER NUM_ITEMS``."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator.driver import run_on_ray
from orchestrator.runbook import Runbook
from orchestrator.runfolder import open_folder
from orchestrator.scheduler import Scheduler
from tests.ray.fakes import ARM, FakeWorkshop, items, sweep


def main(url: str, work: Path, calls: Path, num_items: int) -> None:
    made = items(**{f"key{number}": "slow-refine-9" for number in range(num_items)})
    with open_folder(url, work, tell=print) as folder:
        todo, adopted = folder.ledger.resume(made, lambda video, num_frames: None)
        print(f"todo {len(todo)} adopted {len(adopted)}", flush=True)
        workshop = FakeWorkshop(calls, os.getpid())
        run_on_ray(sweep(made), todo, Scheduler(), Runbook(folder.ledger, {"dvg": ARM}), workshop=workshop)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
