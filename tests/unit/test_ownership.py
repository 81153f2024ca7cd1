"""One driver writes a run, on one machine and across machines; the second is told who the first is."""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from orchestrator import ownership
from orchestrator.mistakes import RunError
from orchestrator.ownership import Owner, RunLock, lock_owner
from orchestrator.paths import RunPaths
from orchestrator.store import Store, UrlStore

HOLD = """
import sys, time
from pathlib import Path
from orchestrator.ownership import RunLock
from orchestrator.paths import RunPaths
with RunLock(RunPaths(Path(sys.argv[1])), beat_s=0.05, stale_s=0.5):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run folder ``tmp_path``."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path), "--seed", "7"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def url() -> Iterator[UrlStore]:
    fsspec.filesystem("memory").store.clear()
    yield UrlStore("memory://bucket/run")
    fsspec.filesystem("memory").store.clear()


def elsewhere(lock: RunLock, **changes: object) -> Owner:
    """As if a process of another host held what ``lock`` is for."""
    owner = dataclasses.replace(lock.owner, host="node-7", token="theirs", beat_s=time.time())
    return dataclasses.replace(owner, **changes)


def write(store: Store, owner: Owner) -> None:
    store.put(".owner.json", json.dumps(dataclasses.asdict(owner)).encode())


def test_the_second_driver_is_refused_with_all_that_is_known_of_the_first(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(ValueError, match="in use by") as told, RunLock(RunPaths(tmp_path)):
        pass
    owner = lock_owner(RunPaths(tmp_path))
    assert owner is not None
    assert owner.alive
    for part in (f"process {holder.pid} of {getpass.getuser()} on {platform.node()}", owner.since, "-c", "--seed 7"):
        assert part in str(told.value)


def test_a_killed_owner_of_this_host_is_followed_at_once(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    owner = lock_owner(RunPaths(tmp_path))
    assert owner is not None
    assert not owner.alive
    with RunLock(RunPaths(tmp_path)) as lock:
        assert lock_owner(RunPaths(tmp_path)) == dataclasses.replace(lock.owner, beat_s=lock_owner(lock.paths).beat_s)  # type: ignore[union-attr]
    assert lock_owner(RunPaths(tmp_path)) is None


def test_another_process_with_the_number_of_a_dead_owner_is_not_the_owner(tmp_path: Path) -> None:
    lock = RunLock(RunPaths(tmp_path))
    write(lock.store, dataclasses.replace(lock.owner, token="old", process_s=lock.owner.process_s - 1000))
    with lock:
        assert lock_owner(lock.paths).token == lock.owner.token  # type: ignore[union-attr]


def test_an_owner_on_another_host_is_believed_while_its_heart_beats(tmp_path: Path, url: UrlStore) -> None:
    first = RunLock(RunPaths(tmp_path / "a"), url, beat_s=0.05)
    first.owner = dataclasses.replace(first.owner, host="node-7")
    with first:
        with pytest.raises(ValueError, match="on node-7"):
            RunLock(RunPaths(tmp_path / "b"), url, beat_s=0.05, stale_s=5).__enter__()
        assert lock_owner(first.paths, url).token == first.owner.token  # type: ignore[union-attr]


def test_an_owner_on_another_host_whose_heart_stands_still_is_followed_and_that_is_told(tmp_path: Path) -> None:
    told: list[str] = []
    lock = RunLock(RunPaths(tmp_path), tell=told.append, beat_s=0.05, stale_s=0.3)
    write(lock.store, elsewhere(lock))
    with lock:
        assert lock_owner(lock.paths).host == platform.node()  # type: ignore[union-attr]
    assert "waiting" in told[0]
    assert "taking the run over" in told[1]
    assert "node-7" in told[1]


def test_an_owner_not_heard_of_for_hours_is_not_waited_for(tmp_path: Path) -> None:
    told: list[str] = []
    lock = RunLock(RunPaths(tmp_path), tell=told.append, beat_s=0.05, stale_s=3600)
    write(lock.store, elsewhere(lock, beat_s=time.time() - 5 * 3600))
    with lock:
        assert len(told) == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}'])
def test_an_owner_file_that_nobody_can_read_is_overwritten(tmp_path: Path, content: bytes) -> None:
    paths = RunPaths(tmp_path)
    paths.owner.write_bytes(content)
    with RunLock(paths, beat_s=0.05) as lock:
        assert lock_owner(paths).token == lock.owner.token  # type: ignore[union-attr]


def test_a_url_is_locked_whatever_the_working_folder(tmp_path: Path, url: UrlStore) -> None:
    with RunLock(RunPaths(tmp_path / "a"), url):
        with pytest.raises(ValueError, match=f"memory://bucket/run' is in use by process {os.getpid()}"):
            RunLock(RunPaths(tmp_path / "b"), url).__enter__()
        with pytest.raises(ValueError, match="in use"):
            RunLock(RunPaths(tmp_path / "a"), url).__enter__()
    with RunLock(RunPaths(tmp_path / "b"), url):
        pass


def test_of_many_that_follow_a_dead_owner_at_once_one_holds_the_run(
    tmp_path: Path, url: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "SETTLE_S", 0.3)
    locks = [RunLock(RunPaths(tmp_path / str(n)), url, stale_s=0.1) for n in range(5)]
    write(url, elsewhere(locks[0], beat_s=0.0))
    held: list[RunLock] = []
    all_found_it_gone = threading.Barrier(len(locks))
    monkeypatch.setattr(RunLock, "_wait_for_the_end_of", lambda lock, owner: all_found_it_gone.wait())

    def hold(lock: RunLock) -> None:
        with contextlib.suppress(ValueError):
            held.append(lock.__enter__())

    threads = [threading.Thread(target=hold, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(held) == 1
    held[0].__exit__(None, None, None)


def test_a_driver_that_stood_still_too_long_writes_nothing_more(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    """It is asked before every record, and looks at the owner again when its own heartbeat is late."""
    lock = RunLock(RunPaths(tmp_path / "other"), beat_s=3600, stale_s=0.1)
    with lock:
        lock.check()
        write(lock.store, elsewhere(lock))
        time.sleep(0.1)
        with pytest.raises(RunError, match=r"taken over by process \d+ of .* on node-7"):
            lock.check()
    assert lock_owner(lock.paths).host == "node-7", "the new owner's file is left alone"  # type: ignore[union-attr]
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        assert lock_owner(RunPaths(tmp_path)).alive, "a process that stands still on this host is not gone"  # type: ignore[union-attr]
    finally:
        os.kill(holder.pid, signal.SIGCONT)


def test_an_owner_whose_creation_was_answered_by_nobody_is_ours(
    tmp_path: Path, url: UrlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked_twice(name: str, data: bytes) -> bool:
        assert create(name, data)
        return create(name, data)

    create = url.create
    monkeypatch.setattr(url, "create", asked_twice)
    with RunLock(RunPaths(tmp_path), url) as lock:
        assert lock_owner(lock.paths, url) is not None
        lock.check()
    assert lock_owner(lock.paths, url) is None
