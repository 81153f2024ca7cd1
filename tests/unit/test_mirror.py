"""A driver that lost its run leaves the new owner's records at the URL alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator.mirror import Mirror
from orchestrator.mistakes import RunError
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
from orchestrator.runfolder import open_folder
from orchestrator.store import UrlStore

URL = "memory://bucket/run"
THEIRS = b'{"a":1}\n{"b":2}\n'


@pytest.fixture
def url() -> Iterator[UrlStore]:
    fsspec.filesystem("memory").store.clear()
    yield UrlStore(URL)
    fsspec.filesystem("memory").store.clear()


def take_over(url: UrlStore) -> None:
    """As if another host had gone on with the run while this process stood still."""
    row = json.loads(url.read(".owner.json") or b"")
    url.put(".owner.json", json.dumps({**row, "token": "theirs", "host": "node-7"}).encode())
    url.put("records.jsonl", THEIRS)


@pytest.mark.parametrize("error", [None, RuntimeError("stopped")])
def test_the_last_copy_of_a_lost_run_changes_nothing_at_the_url(
    tmp_path: Path, url: UrlStore, error: RuntimeError | None
) -> None:
    paths = RunPaths(tmp_path)
    with RunLock(paths, url, beat_s=1e9, stale_s=0.01) as lock:
        mirror = Mirror(paths, url, print, every_s=1e9, check=lock.check).__enter__()
        paths.records.write_bytes(b'{"a":1}\n')
        take_over(url)
        time.sleep(0.01)
        if error is None:
            with pytest.raises(RunError, match=r"taken over by process .* on node-7"):
                mirror.__exit__(None, None, None)
        else:
            mirror.__exit__(RuntimeError, error, None)
    assert url.read("records.jsonl") == THEIRS
    assert json.loads(url.read(".owner.json") or b"")["token"] == "theirs"


def test_the_mirrors_thread_tells_of_a_lost_run_once_and_copies_nothing(tmp_path: Path, url: UrlStore) -> None:
    def lost() -> None:
        asked.append(1)
        raise RunError("the run was taken over")

    def use() -> None:
        with Mirror(paths, url, told.append, every_s=0.001, check=lost):
            while len(asked) < 3:
                time.sleep(0.001)

    asked: list[int] = []
    told: list[str] = []
    paths = RunPaths(tmp_path)
    paths.config.write_text("name: x")
    with pytest.raises(RunError, match="taken over"):
        use()
    assert len(told) == 1
    assert url.sizes("") == {}


def test_every_file_is_checked_for_because_a_copy_may_take_long(tmp_path: Path, url: UrlStore) -> None:
    def check() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise RunError("taken over")

    asked: list[int] = []
    paths = RunPaths(tmp_path)
    paths.config.write_text("name: x")
    paths.records.write_bytes(b'{"a":1}\n')
    with pytest.raises(RunError, match="taken over"):
        Mirror(paths, url, print, check=check).copy()
    assert list(url.sizes("")) == [paths.config.name]


def test_a_file_of_a_lost_run_is_not_removed_from_the_url(tmp_path: Path, url: UrlStore) -> None:
    def check() -> None:
        if lost:
            raise RunError("taken over")

    lost: list[bool] = []
    failure = RunPaths(tmp_path).failure("key1")
    failure.parent.mkdir(parents=True)
    failure.write_text("{}")
    mirror = Mirror(RunPaths(tmp_path), url, print, check=check)
    mirror.copy()
    failure.unlink()
    lost.append(True)
    with pytest.raises(RunError, match="taken over"):
        mirror.copy()
    assert url.sizes("") == {"failures/key1.failure.json": 2}


def test_an_opened_run_folder_mirrors_only_what_it_still_owns(
    tmp_path: Path, url: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use() -> None:
        with open_folder(URL, tmp_path) as folder:
            folder.paths.records.write_bytes(b'{"a":1}\n')
            take_over(url)
            monkeypatch.setattr("orchestrator.ownership.time.time", lambda real=time.time: real() + 1e4)

    with pytest.raises(RunError, match="taken over"):
        use()
    assert url.read("records.jsonl") == THEIRS
