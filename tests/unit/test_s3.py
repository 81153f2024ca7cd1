"""A run whose output is an S3 bucket: a real server on loopback, a driver that is killed, a head that is lost."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.paths import RunPaths
from orchestrator.store import UrlStore
from tests import fakesweep
from tests.s3server import make_bucket, s3_server

pytest.importorskip("s3fs")
pytest.importorskip("moto")

NUM_ITEMS = 6


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment that leads to it."""
    with s3_server() as environment:
        yield environment


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return f"{make_bucket(request.node.name)}/run"


def rows(store: UrlStore) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.read("records.jsonl") or b"").splitlines()]


def names(store: UrlStore) -> Counter[str]:
    """Files by kind."""
    return Counter(Path(name).suffix for name in store.sizes("videos"))


def test_a_killed_sweep_is_finished_by_another_head_from_the_bucket_alone(bucket: str, tmp_path: Path) -> None:
    first = fakesweep.start(bucket, NUM_ITEMS, "--work", tmp_path / "a", "--pause", 0.3)
    fakesweep.wait_for_records(first, tmp_path / "a", 2)
    first.kill()
    first.wait()
    code, told = fakesweep.run(bucket, NUM_ITEMS, "--work", tmp_path / "b")
    assert code == 0, told
    adopted = int(re.search(r"adopted (\d+)", told)[1])  # type: ignore[index]
    assert 2 <= adopted < NUM_ITEMS, "what was finished is found by its sidecars"
    store = UrlStore(bucket)
    assert sorted(row["item_key"] for row in rows(store)) == [f"key{n}" for n in range(NUM_ITEMS)]
    assert names(store) == {".mp4": NUM_ITEMS, ".json": NUM_ITEMS}, "a draft was left behind, or a video is missing"
    assert store.read("events.jsonl")
    assert store.read(".owner.json") is None

    code, told = fakesweep.run(bucket, NUM_ITEMS, "--work", tmp_path / "c")
    assert (code, "todo 0 adopted 0" in told) == (0, True), told
    assert RunPaths(tmp_path / "c").records.read_bytes() == store.read("records.jsonl")


def test_the_first_working_folder_goes_on_after_another_did(bucket: str, tmp_path: Path) -> None:
    for work, number in (("a", 2), ("b", 4), ("a", 6)):
        code, told = fakesweep.run(bucket, number, "--work", tmp_path / work)
        assert (code, "todo 2 adopted 0" in told) == (0, True), told
    assert [row["item_key"] for row in rows(UrlStore(bucket))] == [f"key{n}" for n in range(6)]


def test_two_drivers_with_working_folders_of_their_own_are_kept_apart_by_the_bucket(bucket: str, tmp_path: Path) -> None:
    first = fakesweep.start(bucket, NUM_ITEMS, "--work", tmp_path / "a", "--pause", 60)
    while UrlStore(bucket).read(".owner.json") is None and first.poll() is None:
        time.sleep(0.05)
    code, told = fakesweep.run(bucket, NUM_ITEMS, "--work", tmp_path / "b")
    first.kill()
    first.wait()
    assert code != 0
    assert f"'{bucket}' is in use by process {first.pid}" in told


def test_no_credential_reaches_a_file_or_an_object(bucket: str, tmp_path: Path, server: dict[str, str]) -> None:
    code, told = fakesweep.run(bucket, 1, "--work", tmp_path)
    store = UrlStore(bucket)
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    written += [store.read(name) or b"" for name in store.sizes("")]
    assert code == 0
    assert not any(server["AWS_SECRET_ACCESS_KEY"].encode() in text for text in [*written, told.encode()])


def test_a_bucket_that_is_not_there_is_told_in_one_line(bucket: str, tmp_path: Path) -> None:
    code, told = fakesweep.run("s3://no-such-bucket/run", 1, "--work", tmp_path)
    assert code == 1
    assert re.fullmatch(r"error: 's3://no-such-bucket/run/.*' cannot be reached from \S+: .*\n", told), told
