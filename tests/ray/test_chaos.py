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
from tests.ray.rampage import KILLS, NUM_ITEMS, scheduler

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
def test_after_a_dozen_kills_every_item_has_one_record_its_own_bytes_and_books_that_balance(tmp_path: Path) -> None:
    for _ in range(KILLS["driver"]):
        assert run(tmp_path).returncode == -signal.SIGKILL
    last = run(tmp_path)
    assert last.returncode == 0, last.stderr

    killed = Counter(path.name.split(".")[2] for path in (tmp_path / "calls").glob("killed.*"))
    assert killed == KILLS
    paths = RunPaths(tmp_path / "run")
    records = rows_of(paths.records)
    wanted = [f"key{number}" for number in range(NUM_ITEMS)]
    mistakes = mistakes_of(paths, wanted, records, scheduler)
    assert {check: wrong for check, wrong in mistakes.items() if wrong} == {}
    videos = {row["item_key"]: (paths.root / row["video"]).read_text() for row in records}
    assert videos == {row["item_key"]: f"video {row['seed']}" for row in records}
