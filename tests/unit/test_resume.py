"""A sweep that is killed at any stage boundary goes on from there, and its videos are those of a sweep that was let alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import eventlog
from orchestrator.events import Event, Reached, Sketched
from orchestrator.ledger import Ledger
from orchestrator.paths import RunPaths
from orchestrator.types import Record

ROOT = Path(__file__).parents[2]
ARMS: dict[str, dict[str, Any]] = {
    "full": {"planner": "full"},
    "dvg": {"planner": "dvg", "budget": 0.5},
    "guided": {"planner": "dvg", "budget": 0.5, "guidance": 3.0, "negative": "slow square"},
}
DEATHS = {"full": [0, 1], "dvg": [1, 2, 4], "guided": [3]}
"""Stages of each arm's clip after which its sweep was killed, start by start. Those of a full run are one, without a sketch."""


def spec(folder: Path, *arms: str) -> str:
    path = folder / f"{'-'.join(arms)}.yaml"
    settings = {
        "prompts": ["a red circle moves left"],
        "steps": 8,
        "frames": 17,
        "height": 64,
        "width": 64,
        "arms": {name: ARMS[name] for name in arms},
        "tracking": {"enabled": False},
        "cluster": {"num_threads": 1},
    }
    path.write_text(yaml.safe_dump(settings))
    return str(path)


class Runs:
    """The undisturbed sweep of all arms, and one disturbed sweep for each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        alone = [(spec(folder, name), str(folder / name), deaths) for name, deaths in DEATHS.items()]
        jobs = [(spec(folder, *ARMS), str(folder / "undisturbed"), []), *alone]
        made = subprocess.run(
            [sys.executable, "-m", "tests.unit.resumed", json.dumps(jobs)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=250,
        )
        assert made.returncode == 0, made.stdout + made.stderr

    def record(self, run: str, arm: str) -> Record:
        (found,) = (record for record in Ledger(RunPaths(self.folder / run)).records() if record.arm == arm)
        return found

    def starts(self, run: str) -> list[list[Event]]:
        rows = [json.loads(line) for line in RunPaths(self.folder / run).events.read_text().splitlines()]
        return [[event for event, _ in eventlog.told(start)] for start in eventlog.starts(rows)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_video_is_bit_for_bit_that_of_an_undisturbed_sweep(runs: Runs, arm: str) -> None:
    undisturbed, resumed = runs.record("undisturbed", arm), runs.record(arm, arm)
    assert resumed.sha256 == undisturbed.sha256
    same = ("item_key", "action", "why", "density_executed", "stage_grids", "stage_degrees", "attempts", "num_bytes")
    assert {name: getattr(resumed, name) for name in same} == {name: getattr(undisturbed, name) for name in same}


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_every_start_goes_on_from_the_boundary_that_the_one_before_was_killed_at(runs: Runs, arm: str) -> None:
    starts = runs.starts(arm)
    reached = [[event.stop for event in start if isinstance(event, Reached)] for start in starts]
    assert reached == [[], *([stop] for stop in DEATHS[arm])]
    assert not any(isinstance(event, Sketched) for start in starts[1:] for event in start)


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_the_record_counts_the_seconds_of_all_starts(runs: Runs, arm: str) -> None:
    record = runs.record(arm, arm)
    stages_s = [float(seconds) for seconds in record.stage_s.split("|")]
    assert all(seconds > 0 for seconds in stages_s)
    assert record.text_s > 0
    assert record.refine_s == pytest.approx(sum(stages_s[0 if arm == "full" else 1 :]), abs=0.01)
    assert record.device_s >= record.text_s + record.denoise_s + record.decode_s
    assert record.latency_s >= record.text_s + record.denoise_s + record.decode_s


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_no_checkpoint_outlives_its_video(runs: Runs, arm: str) -> None:
    assert not RunPaths(runs.folder / arm).checkpoints.exists()
