"""What a run has finished, durably: one line per item, never torn, never twice. The truth that everything else mirrors."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from hashlib import file_digest
from pathlib import Path
from typing import Any

from orchestrator.files import Lines, append_whole, cut_torn_tail, last_line, write_atomic
from orchestrator.paths import RunPaths, sidecar_name, staging_name, video_name
from orchestrator.store import Destination, FolderStore, Store
from orchestrator.types import Item, Record, as_row, record_from_row

Verify = Callable[[Path, int], str | None]
"""(video, expected frames) -> what is wrong with the file, or None."""


class Ledger:
    """``records.jsonl`` and the failures beside it. Opening repairs a line torn by a crash.

    ``store`` keeps the videos; None: the run folder does. ``check`` is called before anything is finished, and may raise.
    What is written raises DiskFull when there is no room, and is then as it was.
    """

    def __init__(self, paths: RunPaths, store: Store | None = None, check: Callable[[], None] = lambda: None) -> None:
        self.paths = paths
        self.store = store or FolderStore(paths.root)
        self.check = check
        paths.root.mkdir(parents=True, exist_ok=True)
        cut_torn_tail(paths.records)
        cut_torn_tail(paths.events)
        self._start = 1 + _last_start(paths.events)
        self._records = {record.item_key: record for record in read_records(paths.records)}

    def records(self) -> list[Record]:
        """In the order in which they were finished."""
        return list(self._records.values())

    @property
    def finished(self) -> frozenset[str]:
        return frozenset(self._records)

    def append(self, record: Record) -> None:
        """One whole line, on disk when this returns. Raises ValueError for an item that has its record."""
        self._append(record, self.lines([record]))

    def _append(self, record: Record, line: bytes) -> None:
        if record.item_key in self._records:
            raise ValueError(f"item {record.item_key!r} already has its record; an item is finished once")
        append_whole(self.paths.records, line, sync=True)
        self._records[record.item_key] = record
        self.paths.failure(record.item_key).unlink(missing_ok=True)

    def staging(self, item: Item, attempt: int) -> Destination:
        """Where this attempt's decoder writes its video, with :func:`orchestrator.store.staged`."""
        return self.store.target(self._staged(item, attempt))

    def finish(self, record: Record) -> None:
        """Sidecar, then the video under its final name, then the line: each step leaves a state that resumes."""
        self.check()
        line = self.lines([record])
        self.store.put(self.sidecar_of(record), line)
        self.store.move(self._staged(record, record.attempts), record.video)
        self._append(record, line)
        if record.attempts > 1 or isinstance(self.store, FolderStore):  # a listing of a URL takes its time
            self._sweep_drafts(record, self.store.sizes(self._folder(record)))

    def fail(self, item: Item, error: str, story: Iterable[str], attempts: int) -> dict[str, Any]:
        """Write the item's failure file and return what is in it."""
        failure = {**item_row(item), "error": error, "story": list(story), "attempts": attempts}
        write_atomic(self.paths.failure(item.item_key), json.dumps(failure, indent=2))
        return failure

    def failures(self) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted(self.paths.failures.glob("*.failure.json"))]

    def write_event(self, row: Mapping[str, Any]) -> None:
        """Add one row to the event log, numbered by the start of the run it belongs to; :func:`eventlog.starts` reads it.

        The log explains a run and is not needed to resume, so it is not synced.
        """
        self._events.append(json.dumps({**row, "start": self._start}).encode() + b"\n")

    @cached_property
    def _events(self) -> Lines:
        return Lines(self.paths.events)

    def resume(self, items: Iterable[Item], verify: Verify) -> tuple[list[Item], list[Record]]:
        """Items still to make, and records adopted from videos that were finished just before a crash."""
        todo, adopted = [], []
        there = self.store.sizes(self.paths.relative(self.paths.videos))
        beside = defaultdict(list)
        for name in there:
            beside[name.rpartition("/")[0]].append(name)
        for item in items:
            self._sweep_drafts(item, beside[self._folder(item)])
            if item.item_key in self._records:
                continue
            record = self._adoptable(item, verify) if self.video_of(item) in there else None
            if record is None:
                todo.append(item)
            else:
                self.append(record)
                adopted.append(record)
        return todo, adopted

    def unrecorded(self, videos: Iterable[str]) -> list[Record]:
        """What the sidecars say of videos, by name, that are there without a record."""
        recorded = {record.video for record in self._records.values()}
        there = self.store.sizes(self.paths.relative(self.paths.videos))
        found = [
            _sidecar_record(self.store.read(f"{v.removesuffix('.mp4')}.json")) for v in videos if v in there.keys() - recorded
        ]
        return [record for record in found if record is not None]

    def forget(self, records: Iterable[Record]) -> None:
        """Take records out, because their videos were set aside."""
        for record in records:
            self._records.pop(record.item_key, None)
        write_atomic(self.paths.records, self.lines(self.records()))

    @staticmethod
    def lines(records: Iterable[Record]) -> bytes:
        """As a file of records holds them."""
        return b"".join(json.dumps(as_row(record)).encode() + b"\n" for record in records)

    def missing_videos(self) -> list[str]:
        """Names of recorded videos that are gone."""
        there = self.store.sizes(self.paths.relative(self.paths.videos))
        return [record.video for record in self._records.values() if record.video not in there]

    def _adoptable(self, item: Item, verify: Verify) -> Record | None:
        record = _sidecar_record(self.store.read(self.sidecar_of(item)))
        if record is None or record.item_key != item.item_key:
            return None
        with self.store.fetched(self.video_of(item)) as video:
            with video.open("rb") as file:
                intact = file_digest(file, "sha256").hexdigest() == record.sha256
            return record if intact and verify(video, record.num_frames) is None else None

    def _sweep_drafts(self, item: Item | Record, beside: Iterable[str]) -> None:
        """What killed attempts left: their staged videos, and the files an encoder or a sidecar was being written to."""
        for name in beside:
            if self.paths.is_draft(name.rpartition("/")[2], item.seed):
                self.store.remove(name)

    def _folder(self, item: Item | Record) -> str:
        return self.video_of(item).rpartition("/")[0]

    def video_of(self, item: Item | Record) -> str:
        return video_name(item.arm, item.prompt_id, item.seed)

    def sidecar_of(self, item: Item | Record) -> str:
        return sidecar_name(item.arm, item.prompt_id, item.seed)

    def _staged(self, item: Item | Record, attempt: int) -> str:
        return staging_name(item.arm, item.prompt_id, item.seed, attempt)


def item_row(item: Item) -> dict[str, Any]:
    """Which item a row is about, as records and failures say it."""
    return {
        "item_key": item.item_key,
        "arm": item.arm,
        "prompt_id": item.prompt_id,
        "prompt": item.prompt,
        "seed": item.seed,
    }


def _last_start(path: Path) -> int:
    """Number of the last start in an event log; 0 when it is empty or its end is no row of ours."""
    try:
        return int(json.loads(last_line(path))["start"])
    except (ValueError, KeyError, TypeError):
        return 0


def read_records(path: Path) -> list[Record]:
    """Raises ValueError, with the line, for one that is no record or a second one of its item."""
    records: dict[str, Record] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            record = record_from_row(json.loads(line))
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}:{number} is no record ({error}); remove the line to make its video again") from error
        if record.item_key in records:
            raise ValueError(f"{path}:{number} records item {record.item_key!r} a second time; remove one of the two lines")
        records[record.item_key] = record
    return list(records.values())


def _sidecar_record(data: bytes | None) -> Record | None:
    """None for a sidecar that is not there or cannot be read: its video is then made again."""
    try:
        return record_from_row(json.loads(data or b"{}"))
    except (ValueError, TypeError, AttributeError):
        return None
