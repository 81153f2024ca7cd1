"""Saves boundaries beside the work, so that neither the next stage nor the next clip waits for a disk."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from orchestrator.checkpoints import Checkpoints, Packed

log = logging.getLogger(__name__)


class Packable(Protocol):
    def pack(self) -> Packed: ...


class Keeper:
    """One worker's. A disk that is full costs the checkpoint, never the item: the worker says so once."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self.checkpoints = checkpoints
        self._writer = ThreadPoolExecutor(1, "checkpoint")
        self._last: Future[None] | None = None
        self._told = False

    def keep(self, item_key: str, boundary: Packable, made_by: Mapping[str, str]) -> None:
        """Begin to save. The boundary before is waited for: never more than one is in memory."""
        self.settle()
        self._last = self._writer.submit(self._save, item_key, boundary.pack(), made_by)

    def settle(self) -> None:
        """Wait until what was begun is on disk."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def _save(self, item_key: str, packed: Packed, made_by: Mapping[str, str]) -> None:
        try:
            self.checkpoints.save(item_key, packed, made_by)
        except OSError as problem:
            if not self._told:
                log.warning("clips go on without the checkpoints that cannot be written; the first: %s", problem)
            self._told = True
