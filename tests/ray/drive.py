"""A driver process to kill: ``python -m tests.ray.drive RUN_FOLDER CALLS_FOLDER NUM_ITEMS``. The same command resumes.

HEAD_LOST_S in the environment says how soon the head of its cluster is given up.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from orchestrator import outside
from orchestrator.driver import run_on_ray
from orchestrator.ledger import Ledger
from orchestrator.mistakes import RunError
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.scheduler import Scheduler
from tests.ray.fakes import ARM, FakeWorkshop, items, sweep


def main(root: Path, calls: Path, num_items: int) -> int:
    outside.HEAD_LOST_S = float(os.environ.get("HEAD_LOST_S", outside.HEAD_LOST_S))
    made = items(**{f"key{number}": "slow-refine-9" for number in range(num_items)})
    paths = RunPaths(root)
    with RunLock(paths):
        ledger = Ledger(paths)
        todo, adopted = ledger.resume(made, lambda video, num_frames: None)
        print(f"todo {len(todo)} adopted {len(adopted)}", flush=True)
        try:
            run_on_ray(sweep(made), todo, Scheduler(), Runbook(ledger, {"dvg": ARM}), workshop=FakeWorkshop(calls, os.getpid()))
        except KeyboardInterrupt:
            return 130
        except RunError as error:
            print(f"error: {error}", flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
