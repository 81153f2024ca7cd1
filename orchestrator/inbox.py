"""What the driver awaits of Ray, and what to do with each outcome. An event costs the same however much is awaited.

(``ray.wait`` looks at every reference it is given: some milliseconds for the ranks of 64 pods, at every event.)
"""

from __future__ import annotations

import itertools
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any

Ref = Any
"""A Ray object reference."""
Then = Callable[[Any], None]
"""Takes a reference's value, or the Ray error it holds."""


@dataclass(frozen=True)
class Awaited:
    unit: str
    then: Then
    future: Future[Any]


class Inbox:
    """References by the unit they come from; a unit's are forgotten together. Ray's own thread says which are there."""

    def __init__(self) -> None:
        self._came: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._awaited: dict[int, Awaited] = {}
        self._of: dict[str, set[int]] = {}
        self._numbers = itertools.count()
        self._num_outstanding = 0

    def expect(self, ref: Ref, unit: str, then: Then) -> None:
        number, future = next(self._numbers), ref.future()
        self._awaited[number] = Awaited(unit, then, future)
        self._of.setdefault(unit, set()).add(number)
        self._num_outstanding += 1
        future.add_done_callback(partial(_note, self._came, number))

    def forget(self, unit: str) -> None:
        for number in self._of.pop(unit, ()):
            self._awaited.pop(number, None)

    def collect(self, timeout_s: float) -> Iterator[tuple[Then, Any]]:
        """All that is there, in the order in which it came; waits at most ``timeout_s`` for the first of it.

        An outcome's consequences may forget others: those are not given any more.
        """
        for number in self._numbers_there(timeout_s):
            entry = self._awaited.pop(number, None)
            if entry is not None:
                self._of.get(entry.unit, set()).discard(number)
                yield entry.then, outcome_of(entry.future)

    def _numbers_there(self, timeout_s: float) -> list[int]:
        found: list[int] = []
        try:
            found.append(self._came.get(timeout=timeout_s))
            while True:
                found.append(self._came.get_nowait())
        except queue.Empty:
            self._num_outstanding -= len(found)
            return found

    def close(self, timeout_s: float = 5.0) -> None:
        """Forget everything, once the workers are ended. Ray must not hold any of it any more when the driver leaves."""
        self._awaited.clear()
        self._of.clear()
        until_s = time.monotonic() + timeout_s
        while self._num_outstanding and time.monotonic() < until_s:
            self._numbers_there(0.1)


def _note(came: queue.SimpleQueue[int], number: int, future: Future[Any]) -> None:
    came.put(number)


def outcome_of(future: Future[Any]) -> Any:
    """The value of what is there, or the Ray error it holds."""
    error = future.exception()
    return future.result() if error is None else error
