"""Starts of sweeps, one after the other, each in a process of its own that is killed at a stage boundary.

``python -m tests.unit.resumed JOBS``: a JSON list of (spec, run folder, stages). Of every sweep, which has one item, the first
start is killed once a boundary after the first number of stages is on disk, and so on; the last start is left alone. All starts
are forked from this process, which has imported what they need.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

import orchestrator.cli_generate
import orchestrator.local
import stages.models.wan
import stages.video
import stages.worker
from orchestrator import cli_sweep
from orchestrator.checkpoints import Checkpoints
from orchestrator.cli_sweep import SweepOptions, run_sweep

torch.set_num_threads(1)
NEEDED = (orchestrator.cli_generate, orchestrator.local, stages.models.wan, stages.video, stages.worker)


def main(jobs: list[tuple[str, str, list[int]]]) -> None:
    for spec, out, deaths in jobs:
        for death in (*deaths, None):
            pid = os.fork()
            if pid == 0:
                _start(Path(spec), Path(out), death)
            _, status = os.waitpid(pid, 0)
            expected = 0 if death is None else -signal.SIGKILL
            assert os.waitstatus_to_exitcode(status) == expected, (spec, death)


def _start(spec: Path, out: Path, death: int | None) -> None:
    save = Checkpoints.save

    def save_and_die(self: Checkpoints, item_key: str, packed: dict[str, Any], made_by: Any = None) -> None:
        save(self, item_key, packed, made_by)
        if packed["stage"] == death:
            os.kill(os.getpid(), signal.SIGKILL)

    cli_sweep.conclude = lambda *given: ()  # the report is another test's
    Checkpoints.save = save_and_die  # type: ignore[method-assign]
    os._exit(run_sweep(spec, [], out, SweepOptions(local=True)))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
