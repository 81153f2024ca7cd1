"""The small files of a run whose output is a URL: written in the working folder, copied to the URL every few seconds.

Whole files are put, so that a reader never sees half of one. What a lost head had not copied yet is found again by the sidecars.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from orchestrator.files import cut_torn_tail, write_atomic
from orchestrator.ledger import read_records
from orchestrator.mistakes import RunError
from orchestrator.paths import RunPaths
from orchestrator.store import Store

EVERY_S = 10.0
"""At most this often; a copy that takes long is made less often still."""
REST = 10.0
"""Copying takes at most one part in so many of the time."""

State = tuple[int, int]
"""Time and size of a file that was copied."""


class Mirror:
    """Copies what changed from a thread of its own; at the end of the context, once more and for certain.

    ``check`` is called before anything at the URL is changed, and raises RunError once the run is somebody else's.
    """

    def __init__(
        self,
        paths: RunPaths,
        store: Store,
        tell: Callable[[str], None],
        every_s: float = EVERY_S,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.paths, self.store, self.tell, self.every_s, self.check = paths, store, tell, every_s, check
        self._copied: dict[str, State] = {}
        self._told = False
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-mirror", daemon=True)

    def __enter__(self) -> Mirror:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Raises RunError when the last copy fails and nothing else went wrong."""
        self._done.set()
        self._thread.join()
        try:
            self.copy()
        except RunError:
            if error is None:
                raise

    def copy(self) -> None:
        """What changed since the last time. Raises RunError."""
        present = {path: state for path in _files(self.paths) if (state := _state(path))}
        for path, state in present.items():
            name = self.paths.relative(path)
            if self._copied.get(name) != state:
                self.check()
                self.store.put(name, _whole(path))
                self._copied[name] = state
        for name in self._copied.keys() - {self.paths.relative(path) for path in present}:
            self.check()
            self.store.remove(name)
            del self._copied[name]

    def _run(self) -> None:
        pause_s = self.every_s
        while not self._done.wait(pause_s):
            started_s = time.monotonic()
            try:
                self.copy()
            except (RunError, OSError) as error:
                self._warn(error)
            pause_s = max(self.every_s, REST * (time.monotonic() - started_s))

    def _warn(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            self.tell(f"the run goes on, its records are copied later: {error}")


def restore(paths: RunPaths, store: Store) -> None:
    """Bring a working folder up to date with the URL: another one, on another machine, may have gone on since.

    Records of both are kept; of other files, the longer. Raises ValueError for records that cannot be read, RunError.
    """
    _merge_records(paths, store)
    done = {record.item_key for record in read_records(paths.records)}
    failures = (Path(paths.root, name) for name in store.sizes(paths.relative(paths.failures)))
    stories = [path for path in failures if path.name.removesuffix(".failure.json") not in done]
    for path in (*_named(paths), *stories):
        there = store.read(paths.relative(path)) if path != paths.records else None
        if there is not None and len(there) > (path.stat().st_size if path.exists() else -1):
            write_atomic(path, there)


def _merge_records(paths: RunPaths, store: Store) -> None:
    """The URL's come first: a later start may have continued from them."""
    cut_torn_tail(paths.records)
    ours = paths.records.read_bytes()
    theirs = store.read(paths.relative(paths.records)) or b""
    if ours.startswith(theirs):
        return
    known = set(theirs.splitlines())
    extra = b"".join(line + b"\n" for line in ours.splitlines() if line not in known)
    write_atomic(paths.records, theirs + extra)


def _files(paths: RunPaths) -> list[Path]:
    return [*_named(paths), *paths.failures.glob("*.failure.json")]


def _named(paths: RunPaths) -> tuple[Path, ...]:
    """Records last: a reader of the URL then finds what they are about."""
    about = (paths.config, paths.manifest, paths.tracking, paths.events, paths.quality, paths.system)
    return *about, paths.summary, paths.report, paths.sheet, paths.records


def _state(path: Path) -> State | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size


def _whole(path: Path) -> bytes:
    """Of a file of lines, the whole ones: its writer may be in the middle of the last."""
    data = path.read_bytes()
    return data[: data.rfind(b"\n") + 1] if path.suffix == ".jsonl" else data
