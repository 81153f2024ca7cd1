"""Decode workers upload, the driver moves: a sweep through Ray into a bucket, killed and finished from the bucket alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.ledger import read_records
from orchestrator.paths import RunPaths
from orchestrator.store import UrlStore
from tests.s3server import make_bucket, s3_server

pytest.importorskip("s3fs")
pytest.importorskip("moto")
ROOT = Path(__file__).parents[2]
NUM_ITEMS = 6


def drive(url: str, tmp_path: Path, work: str) -> subprocess.Popen[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ray.drive_url", url, str(tmp_path / work), str(tmp_path), str(NUM_ITEMS)],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_a_sweep_into_a_bucket_is_finished_by_another_head_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        url = f"{make_bucket('swept-through-ray')}/run"
        first = drive(url, tmp_path, "a")
        records = RunPaths(tmp_path / "a").records
        while first.poll() is None and (not records.exists() or records.read_bytes().count(b"\n") < 2):
            time.sleep(0.1)
        assert first.poll() is None, first.stdout.read() if first.stdout else ""
        first.kill()
        first.wait()
        second = drive(url, tmp_path, "b")
        told, _ = second.communicate()
        assert second.returncode == 0, told
        store = UrlStore(url)
        made = read_records(RunPaths(tmp_path / "b").records)
        assert sorted(record.item_key for record in made) == [f"key{number}" for number in range(NUM_ITEMS)]
        assert store.read("records.jsonl") == RunPaths(tmp_path / "b").records.read_bytes()
        clips = {name for name in store.sizes("videos") if not name.endswith(".json")}
        assert clips == {record.video for record in made}, "a draft was left behind, or a video is missing"
        assert not list((tmp_path / "b").rglob("*.mp4")), "videos go from the workers to the bucket"
