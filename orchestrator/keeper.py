"""Saves boundaries beside the work, so that neither the next stage nor the next clip waits for a disk."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from orchestrator.checkpoints import Checkpoints, Packed

log = logging.getLogger(__name__)


class Packable(Protocol):
    def pack(self) -> Packed: ...


Kept = tuple[Packed, Mapping[str, str]]
MOST_WAITING = 4
"""Items whose boundaries wait for the disk; each holds a latent in memory."""


class Keeper:
    """One worker's. A disk that is full costs the checkpoint, never the item: the worker says so once.

    Nor does anybody wait for a disk that is slow: while one boundary is written those of :data:`MOST_WAITING` items may wait, of
    each item the newest. Only who begins one more item waits for the disk.
    """

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._turn = threading.Condition()
        self._next: dict[str, Kept] = {}
        """By item, the one that waited longest first."""
        self._begun: deque[Future[None]] = deque()
        self._told = False

    def keep(self, item_key: str, boundary: Packable, made_by: Mapping[str, str]) -> None:
        """Begin to save. Raises what went wrong with an earlier one, other than a disk."""
        kept = (boundary.pack(), made_by)
        while self._begun and self._begun[0].done():
            self._begun.popleft().result()
        with self._turn:
            self._turn.wait_for(lambda: item_key in self._next or len(self._next) < MOST_WAITING)
            self._next[item_key] = kept
        self._begun.append(self._writer.submit(self._save_next))

    def settle(self) -> None:
        """Wait until what was begun is on disk."""
        while self._begun:
            self._begun.popleft().result()

    def _save_next(self) -> None:
        with self._turn:
            if not self._next:
                return
            item_key = next(iter(self._next))
            kept = self._next.pop(item_key)
            self._turn.notify()
        try:
            self.checkpoints.save(item_key, *kept)
        except OSError as problem:
            if not self._told:
                log.warning("clips go on without the checkpoints that cannot be written; the first: %s", self._told_as(problem))
            self._told = True

    def _told_as(self, problem: OSError) -> str:
        root = self.checkpoints.root
        return str(problem) if root.is_dir() else f"{root} is not on this machine: the run's machines do not share it"
