"""A sweep in a process of its own, with real little videos and neither model nor Ray: to be killed and started again.

python -m tests.fakesweep OUT NUM_ITEMS [--work DIR] [--pause SECONDS] [--size PIXELS] [--limit BYTES]
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from orchestrator.local import run_local
from orchestrator.mistakes import ConfigError, RunError
from orchestrator.paths import RunPaths
from orchestrator.runbook import Runbook
from orchestrator.runfolder import open_folder
from orchestrator.scheduler import Scheduler
from orchestrator.types import Clip, Item
from stages.video import verify, write_mp4
from tests.unit.test_local import ARM, FakeWorker

ROOT = Path(__file__).parents[1]


class VideoWorker(FakeWorker):
    """Writes a video of noise that depends on the seed alone."""

    def __init__(self, pause_s: float = 0.0, size: int = 16) -> None:
        super().__init__()
        self.pause_s, self.size = pause_s, size

    def decode(self, item: Item, boundary: Any, path: Path) -> Clip:
        time.sleep(self.pause_s)
        shape = (ARM.num_frames, self.size, self.size, 3)
        write_mp4(np.random.default_rng(item.seed).integers(0, 255, shape, dtype=np.uint8), path, ARM.fps)
        content = path.read_bytes()
        return Clip(str(path), len(content), hashlib.sha256(content).hexdigest(), {"decode_s": 0.25, "encode_s": 0.125})


def items(number: int) -> list[Item]:
    return [Item(f"key{n}", "dvg", "p", "a red circle", n) for n in range(number)]


def start(out: str | Path, num_items: int, *options: object, **environment: str) -> subprocess.Popen[str]:
    """The sweep; what it prints comes through a pipe."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "MLFLOW_"))}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.fakesweep", str(out), str(num_items), *map(str, options)],
        cwd=ROOT,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(out: str | Path, num_items: int, *options: object, **environment: str) -> tuple[int, str]:
    """Exit code and output of a whole sweep."""
    process = start(out, num_items, *options, **environment)
    told, _ = process.communicate()
    return process.returncode, told


def wait_for_records(process: subprocess.Popen[str], folder: Path, number: int) -> None:
    records = RunPaths(folder).records
    while process.poll() is None and (not records.exists() or records.read_bytes().count(b"\n") < number):
        time.sleep(0.05)
    assert process.poll() is None, process.stdout.read() if process.stdout else ""


def sweep(out: str | Path, num_items: int, work: Path | None = None, pause_s: float = 0.0, size: int = 16) -> None:
    """In this process. Raises what a sweep raises."""
    with open_folder(out, work, tell=print) as folder:
        todo, adopted = folder.ledger.resume(items(num_items), verify)
        print(f"todo {len(todo)} adopted {len(adopted)}", flush=True)
        run_local(todo, VideoWorker(pause_s, size), Scheduler(), Runbook(folder.ledger, {"dvg": ARM}))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    parser.add_argument("num_items", type=int)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--limit", type=int, help="of the size of every file that is written")
    given = parser.parse_args()
    if given.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (given.limit, given.limit))
    try:
        sweep(given.out, given.num_items, given.work, given.pause, given.size)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except RunError as error:
        print(f"error: {error}")
        sys.exit(1)


if __name__ == "__main__":
    main()
