"""A thread of its own writes finished items down, one after the other: the driver goes on while a disk or a store syncs."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor, wait

from orchestrator.events import Finish
from orchestrator.pods import Place
from orchestrator.runbook import Runbook
from orchestrator.types import Record


class Scribe:
    """An item counts as done, and ``runbook.on_record`` hears of it, once its record is on disk; in the order of ``write``.

    What a driver that dies had not written is made good by the next start, as after a crash at any point of finishing.
    """

    def __init__(self, runbook: Runbook) -> None:
        self.runbook = runbook
        self._hand = ThreadPoolExecutor(1, "scribe")
        self._pages: deque[Future[Record]] = deque()

    def write(self, finish: Finish, place: Place) -> None:
        self._pages.append(self._hand.submit(self.runbook.finish, finish, place.device, place.host))

    @property
    def busy(self) -> bool:
        return bool(self._pages)

    def look(self, timeout_s: float = 0.0) -> None:
        """Tell of what is on disk by now; waits at most ``timeout_s`` for the first. Raises what writing raised."""
        if self._pages and timeout_s:
            wait([self._pages[0]], timeout_s)
        while self._pages and self._pages[0].done():
            self.runbook.on_record(self._pages.popleft().result())

    def close(self) -> None:
        """What is half written is written to its end, and nothing after it is begun."""
        self._hand.shutdown(wait=True, cancel_futures=True)
