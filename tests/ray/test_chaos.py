"""A dozen kills at random in one short sweep, the driver's own among them. The long one is ``experiments.bench.chaos``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from experiments.bench.chaos_checks import mistakes_of, rows_of
from orchestrator.paths import RunPaths
from tests.ray.rampage import KILLS, NUM_ITEMS, calm, scheduler

ROOT = Path(__file__).parents[2]
SEED = 7


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "tests.ray.rampage", str(folder), str(SEED)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_after_a_dozen_kills_a_run_is_as_one_let_alone_and_its_books_balance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed, wild = tmp_path / "undisturbed", tmp_path / "wild"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as the workers of a cluster have it
    calm(undisturbed)
    for _ in range(KILLS["driver"]):
        assert run(wild).returncode == -signal.SIGKILL
    last = run(wild)
    assert last.returncode == 0, last.stderr

    assert Counter(path.name.split(".")[2] for path in (wild / "calls").glob("killed.*")) == KILLS
    paths, wanted = RunPaths(wild / "run"), [f"key{number}" for number in range(NUM_ITEMS)]
    mistakes = mistakes_of(paths, wanted, rows_of(RunPaths(undisturbed / "run").records), scheduler)
    assert {check: wrong for check, wrong in mistakes.items() if wrong} == {}
    videos = {row["item_key"]: (paths.root / row["video"]).read_text() for row in rows_of(paths.records)}
    assert videos == {f"key{number}": f"video {number}" for number in range(NUM_ITEMS)}
    assert "Reached" in {row["type"] for row in rows_of(paths.events)}, "no clip went on from a boundary on disk"
