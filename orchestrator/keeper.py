"""Saves boundaries beside the work, so that neither the next stage nor the next clip waits for a disk."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from orchestrator.checkpoints import Checkpoints, Packed

log = logging.getLogger(__name__)


class Packable(Protocol):
    def pack(self) -> Packed: ...


Kept = tuple[str, Packed, Mapping[str, str]]


class Keeper:
    """One worker's. A disk that is full costs the checkpoint, never the item: the worker says so once.

    Nobody waits for a disk that is slow either: while one boundary is written one more may wait, the newest.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._lock = threading.Lock()
        self._next: Kept | None = None
        self._last: Future[None] | None = None
        self._told = False

    def keep(self, item_key: str, boundary: Packable, made_by: Mapping[str, str]) -> None:
        """Begin to save. Raises what went wrong with an earlier one, other than a disk."""
        kept = (item_key, boundary.pack(), made_by)
        if self._last is not None and self._last.done():
            self._last.result()
        with self._lock:
            self._next = kept
        self._last = self._writer.submit(self._save_next)

    def settle(self) -> None:
        """Wait until what was begun is on disk."""
        if self._last is not None:
            self._last.result()

    def _save_next(self) -> None:
        with self._lock:
            kept, self._next = self._next, None
        if kept is None:
            return
        try:
            self.checkpoints.save(*kept)
        except OSError as problem:
            if not self._told:
                log.warning("clips go on without the checkpoints that cannot be written; the first: %s", self._told_as(problem))
            self._told = True

    def _told_as(self, problem: OSError) -> str:
        root = self.checkpoints.root
        return str(problem) if root.is_dir() else f"{root} is not on this machine: the run's machines do not share it"
