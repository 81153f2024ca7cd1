"""What a run has finished, durably: one line per item, never torn, never twice. The truth that everything else mirrors."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Mapping
from hashlib import file_digest
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from orchestrator.paths import RunPaths
from orchestrator.types import Item, Record, as_row, record_from_row

Verify = Callable[[Path, int], str | None]
"""(video, expected frames) -> what is wrong with the file, or None."""


def write_atomic(path: Path, text: str) -> None:
    """Write, sync, rename: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")  # one name: a run has one writer, and what a crash left is overwritten
    with draft.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    _move(draft, path)


def _move(source: Path, target: Path) -> None:
    """Rename and make the rename itself durable."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class RunLock:
    """Two drivers never write one run. Held by this process alone; the kernel drops it when the process ends, however."""

    def __init__(self, paths: RunPaths) -> None:
        self.path = paths.lock
        self._file: BinaryIO | None = None

    def __enter__(self) -> RunLock:
        """Raises ValueError when another process holds the run."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = self.path.open("a+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "unknown"
            file.close()
            raise ValueError(
                f"run folder {str(self.path.parent)!r} is in use by process {holder}; wait for it or choose another --out"
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()).encode())
        file.flush()
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


class Ledger:
    """``records.jsonl`` and the failures beside it. Opening repairs a line torn by a crash."""

    def __init__(self, paths: RunPaths) -> None:
        self.paths = paths
        paths.root.mkdir(parents=True, exist_ok=True)
        _cut_torn_tail(paths.records)
        _cut_torn_tail(paths.events)
        self._start = 1 + _last_start(paths.events)
        self._records = {record.item_key: record for record in _read(paths.records)}

    def records(self) -> list[Record]:
        """In the order in which they were finished."""
        return list(self._records.values())

    @property
    def finished(self) -> frozenset[str]:
        return frozenset(self._records)

    def append(self, record: Record) -> None:
        """One whole line, on disk when this returns. Raises ValueError for an item that has its record."""
        if record.item_key in self._records:
            raise ValueError(f"item {record.item_key!r} already has its record; an item is finished once")
        _append_line(self.paths.records, as_row(record), sync=True)
        self._records[record.item_key] = record
        self.paths.failure(record.item_key).unlink(missing_ok=True)

    def finish(self, record: Record, staged: Path) -> None:
        """Sidecar, then the video under its final name, then the line: each step leaves a state that resumes."""
        write_atomic(self._sidecar(record), json.dumps(as_row(record)))
        _move(staged, self.paths.root / record.video)
        self.append(record)
        self._sweep_drafts(record)

    def fail(self, item: Item, error: str, story: Iterable[str], attempts: int) -> dict[str, Any]:
        """Write the item's failure file and return what is in it."""
        failure = {**_item_row(item), "error": error, "story": list(story), "attempts": attempts}
        write_atomic(self.paths.failure(item.item_key), json.dumps(failure, indent=2))
        return failure

    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.paths.failures.glob("*.failure.json"))]

    def write_event(self, row: Mapping[str, Any]) -> None:
        """Add one row to the event log, numbered by the start of the run it belongs to; :func:`eventlog.starts` reads it.

        The log explains a run and is not needed to resume, so it is not synced.
        """
        _append_line(self.paths.events, {**row, "start": self._start}, sync=False)

    def resume(self, items: Iterable[Item], verify: Verify) -> tuple[list[Item], list[Record]]:
        """Items still to make, and records adopted from videos that were finished just before a crash."""
        todo, adopted = [], []
        for item in items:
            self._sweep_drafts(item)
            if item.item_key in self._records:
                continue
            record = self._adoptable(item, verify)
            if record is None:
                todo.append(item)
            else:
                self.append(record)
                adopted.append(record)
        return todo, adopted

    def _adoptable(self, item: Item, verify: Verify) -> Record | None:
        video = self.paths.video(item.arm, item.prompt_id, item.seed)
        record = _read_sidecar(self.paths.sidecar(item.arm, item.prompt_id, item.seed))
        if record is None or record.item_key != item.item_key or not video.is_file():
            return None
        with video.open("rb") as file:
            intact = file_digest(file, "sha256").hexdigest() == record.sha256
        return record if intact and verify(video, record.num_frames) is None else None

    def _sweep_drafts(self, item: Item | Record) -> None:
        """What killed attempts left: their staged videos, and the files an encoder or a sidecar was being written to."""
        for draft in self.paths.drafts(item.arm, item.prompt_id, item.seed):
            draft.unlink(missing_ok=True)

    def _sidecar(self, record: Record) -> Path:
        return self.paths.sidecar(record.arm, record.prompt_id, record.seed)


def _item_row(item: Item) -> dict[str, Any]:
    return {
        "item_key": item.item_key,
        "arm": item.arm,
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "seed": item.seed,
    }


def _append_line(path: Path, row: Mapping[str, Any], sync: bool) -> None:
    """One write of a whole line, so that another reader never sees half of one from a living writer."""
    with path.open("ab", buffering=0) as file:
        file.write(json.dumps(row).encode() + b"\n")
        if sync:
            os.fsync(file.fileno())


def _cut_torn_tail(path: Path) -> None:
    """Cut what follows the last line end; its item is adopted from its sidecar or made again."""
    if not path.exists():
        path.touch()
        return
    data = path.read_bytes()
    keep = data.rfind(b"\n") + 1
    if keep < len(data):
        with path.open("r+b") as file:
            file.truncate(keep)
            os.fsync(file.fileno())


def _last_start(path: Path) -> int:
    """Number of the last start in an event log; 0 when it is empty or its end is no row of ours."""
    lines = path.read_bytes().splitlines()
    try:
        return int(json.loads(lines[-1])["start"]) if lines else 0
    except (ValueError, KeyError, TypeError):
        return 0


def _read(path: Path) -> list[Record]:
    records: dict[str, Record] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = record_from_row(json.loads(line))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}:{number} is no record ({error}); remove the line to make its video again") from error
        if record.item_key in records:
            raise ValueError(f"{path}:{number} records item {record.item_key!r} a second time; remove one of the two lines")
        records[record.item_key] = record
    return list(records.values())


def _read_sidecar(path: Path) -> Record | None:
    """None for a sidecar that is not there or cannot be read: its video is then made again."""
    try:
        return record_from_row(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
