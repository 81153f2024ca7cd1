"""A sweep whose checkpoints find no room, on a file system of its own that is really full."""

from __future__ import annotations

import functools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from stages.video import verify

ROOT = Path(__file__).parents[2]
PROMPTS = ["a red circle moves left", "a blue square stands still"]


@functools.cache
def can_mount() -> bool:
    """In a namespace of the test's own processes."""
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return tried.returncode == 0


def spec(folder: Path) -> Path:
    path = folder / "spec.yaml"
    settings = {
        "prompts": PROMPTS,
        "steps": 12,
        "frames": 17,
        "height": 64,
        "width": 64,
        "arms": {"dvg": {"planner": "dvg", "budget": 0.5}},
        "tracking": {"enabled": False},
        "cluster": {"num_threads": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not can_mount(), reason="no file system of one's own here")
def test_without_room_for_checkpoints_the_sweep_goes_on_and_says_so_once(tmp_path: Path) -> None:
    run = tmp_path / "run"
    small = run / "checkpoints"
    small.mkdir(parents=True)
    sweep = f"{sys.executable} -m orchestrator sweep {spec(tmp_path)} --local --out {run}"
    script = f"mount -t tmpfs -o size=16k small {small} && {sweep} && ls -A {small} > {tmp_path / 'left'}"
    made = subprocess.run(["unshare", "-rm", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert made.returncode == 0, made.stdout + made.stderr
    assert made.stderr.count("clips go on without") == 1, made.stderr
    assert "No space left on device" in made.stderr
    assert (tmp_path / "left").read_text() == ""
    records = Ledger(RunPaths(run)).records()
    assert {record.prompt for record in records} == set(PROMPTS)
    assert [verify(run / record.video, 17) for record in records] == [None, None]
