"""One driver writes a run: a lock that names its owner, on one machine and across machines that share the folder or the URL.

On one machine the kernel's file lock decides, and a process that is gone owns nothing. Where that lock does not reach (another
host, an object store), an owner counts as gone once its heartbeat stands still.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import platform
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import BinaryIO

import psutil

from orchestrator.mistakes import RunError, without_password
from orchestrator.paths import RunPaths
from orchestrator.store import FolderStore, Store

BEAT_S = 10.0
"""How often an owner says that it lives."""
STALE_S = 60.0
"""How long a heartbeat may stand still."""
CLOCKS_S = 600.0
"""How far the clocks of two hosts may be apart: a heartbeat older than this and STALE_S need not be watched."""
SETTLE_S = 2.0
"""After taking a run over: time for another who takes it over at the same moment to show up."""


@dataclass(frozen=True)
class Owner:
    """Who writes a run."""

    user: str
    host: str
    pid: int
    namespace: str
    """Of process ids: containers of one host each have their own."""
    process_s: float
    """When the process began: another one may have its id by now."""
    command: str
    since: str
    token: str
    """Of this hold of the run."""
    beat_s: float = 0.0
    """Wall clock of the last heartbeat."""

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host} since {self.since} ({self.command})"

    @property
    def here(self) -> bool:
        """Whether its process, if it lives, can be seen from this one."""
        return (self.host, self.namespace) == (platform.node(), _namespace())

    @property
    def alive(self) -> bool:
        """By its process on this host, by its heartbeat on another."""
        return self._runs() if self.here else time.time() - self.beat_s < STALE_S

    def _runs(self) -> bool:
        try:
            return bool(abs(psutil.Process(self.pid).create_time() - self.process_s) < 1)
        except psutil.Error:
            return False


def lock_owner(paths: RunPaths, store: Store | None = None) -> Owner | None:
    """Who holds a run folder, or held it when it died; None: nobody."""
    return _read(store or FolderStore(paths.root), paths)


class RunLock:
    """Two drivers never write one run. The kernel drops it when the process ends, however; a clean end removes the owner file.

    ``store``: where the run's output goes, when that is not its folder; both are then locked.
    """

    def __init__(
        self,
        paths: RunPaths,
        store: Store | None = None,
        tell: Callable[[str], None] = lambda line: None,
        beat_s: float = BEAT_S,
        stale_s: float = STALE_S,
    ) -> None:
        self.paths, self.store = paths, store or FolderStore(paths.root)
        self.tell, self.beat_s, self.stale_s = tell, beat_s, stale_s
        self.owner = _myself()
        self._file: BinaryIO | None = None
        self._beats: threading.Thread | None = None
        self._done = threading.Event()
        self._renewing = threading.Lock()
        self._taken: Owner | None = None
        self._seen_s = 0.0

    def __enter__(self) -> RunLock:
        """Raises ValueError when another process holds the run."""
        self.paths.root.mkdir(parents=True, exist_ok=True)
        file = self.paths.lock.open("a+b")
        try:
            self._lock_here(file)
            self._own()
        except BaseException:
            file.close()
            raise
        self._file = file
        self._beats = threading.Thread(target=self._beat, name="run-owner", daemon=True)
        self._beats.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._done.set()
        if self._beats is not None:
            self._beats.join()
        with contextlib.suppress(RunError, OSError):  # a heartbeat that stands still says the same
            if (found := _read(self.store, self.paths)) and found.token == self.owner.token:
                self.store.remove(self._name)
        if self._file is not None:
            self._file.close()

    def check(self) -> None:
        """Called before anything is written. Raises RunError when somebody took the run over while this process stood still."""
        if self._taken is None and time.time() - self._seen_s > self.stale_s / 2:
            self._renew()
        if self._taken is not None:
            raise RunError(f"the run was taken over by {self._taken}, as this process had not moved for {self.stale_s:.0f} s")

    @property
    def _name(self) -> str:
        return self.paths.relative(self.paths.owner)

    def _lock_here(self, file: BinaryIO) -> None:
        """Raises ValueError when a process of this host holds the file. Some shared file systems know no locks."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(_read(FolderStore(self.paths.root), self.paths) or _read(self.store, self.paths)) from error
        except OSError:
            self.tell(f"{str(self.paths.root)!r} is on a file system without locks: its owner file alone keeps others out")

    def _own(self) -> None:
        if not self.store.create(self._name, self._row()):
            found = _read(self.store, self.paths)
            if found is None or found.token != self.owner.token:  # else it was created, and the answer was lost
                self._take_over(found)
        self._seen_s = time.time()

    def _take_over(self, found: Owner | None) -> None:
        if found is not None:
            self._wait_for_the_end_of(found)
        self._renew_over(found)

    def _wait_for_the_end_of(self, owner: Owner) -> None:
        """Raises ValueError when it lives."""
        if owner.here:
            if owner.alive:
                raise self._refusal(owner)
            return
        if time.time() - owner.beat_s > self.stale_s + CLOCKS_S:
            self.tell(f"taking the run over from {owner}, which has not been heard of for {time.time() - owner.beat_s:.0f} s")
            return
        self.tell(f"waiting up to {self.stale_s:.0f} s to hear of {owner}, which holds the run")
        self._watch(owner)

    def _watch(self, owner: Owner) -> None:
        until_s = time.monotonic() + self.stale_s
        while time.monotonic() < until_s:
            time.sleep(min(1.0, self.beat_s / 2))
            now = _read(self.store, self.paths)
            if now is None:
                return
            if now != owner:
                raise self._refusal(now)
        self.tell(f"taking the run over from {owner}, of which nothing was heard for {self.stale_s:.0f} s")

    def _renew_over(self, before: Owner | None) -> None:
        """Several may find the same owner gone: the last to write itself down wins. Raises ValueError for the others."""
        self.store.put(self._name, self._row())
        if not (before and before.here and isinstance(self.store, FolderStore)):  # else the file lock keeps others out
            time.sleep(min(SETTLE_S, self.beat_s))
        found = _read(self.store, self.paths)
        if found is None or found.token != self.owner.token:
            raise self._refusal(found)

    def _beat(self) -> None:
        while not self._done.wait(self.beat_s) and self._taken is None:
            with contextlib.suppress(RunError, OSError):  # ``check`` looks again before the next record
                self._renew()

    def _renew(self) -> None:
        with self._renewing:
            found = _read(self.store, self.paths)
            if found is not None and found.token != self.owner.token:
                self._taken = found
                return
            self.store.put(self._name, self._row())
            self._seen_s = time.time()

    def _row(self) -> bytes:
        return json.dumps({**asdict(self.owner), "beat_s": time.time()}).encode()

    def _refusal(self, owner: Owner | None) -> ValueError:
        who = str(owner) if owner else "another process"
        return ValueError(f"run folder {self.store.where!r} is in use by {who}; wait for it or choose another --out")


def _read(store: Store, paths: RunPaths) -> Owner | None:
    """None also for what is no owner of ours: half written, or by a person."""
    try:
        return Owner(**json.loads(store.read(paths.relative(paths.owner)) or b"{}"))
    except (ValueError, TypeError):
        return None


def _myself() -> Owner:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    started_s, since = psutil.Process().create_time(), datetime.now(UTC).isoformat(timespec="seconds")
    command = without_password(" ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]))[:200]
    return Owner(user, platform.node(), os.getpid(), _namespace(), started_s, command, since, uuid.uuid4().hex)


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
