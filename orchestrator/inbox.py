"""What the driver awaits of Ray, and what to do with each outcome: the cost of an event does not grow with the number awaited."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Ref = Any
"""A Ray object reference."""
Then = Callable[[Any], None]
"""Takes a reference's value, or the Ray error it holds."""

WATCH_S = 0.5
"""How often the calls that never end are looked at: a worker that dies at work is noticed by its work at once."""


class Inbox:
    """References by the unit they come from; a unit's are forgotten together."""

    def __init__(self) -> None:
        self._soon: dict[Ref, tuple[str, Then]] = {}
        """Answers to be had."""
        self._watched: dict[Ref, tuple[str, Then]] = {}
        """Calls that only end when something happens to the worker."""
        self._of: dict[str, set[Ref]] = {}
        self._looked_s = 0.0

    def expect(self, ref: Ref, unit: str, then: Then) -> None:
        self._soon[ref] = unit, then
        self._of.setdefault(unit, set()).add(ref)

    def watch(self, ref: Ref, unit: str, then: Then) -> None:
        self._watched[ref] = unit, then
        self._of.setdefault(unit, set()).add(ref)

    def forget(self, unit: str) -> None:
        for ref in self._of.pop(unit, ()):
            self._soon.pop(ref, None)
            self._watched.pop(ref, None)

    def collect(self, timeout_s: float) -> Iterator[tuple[Then, Any]]:
        """All that is there, answers first; waits at most ``timeout_s`` for the first of it.

        An outcome's consequences may forget others: those are not given any more.
        """
        for ref in self._ready(timeout_s):
            entry = self._soon.pop(ref, None) or self._watched.pop(ref, None)
            if entry is not None:
                unit, then = entry
                self._of.get(unit, set()).discard(ref)
                yield then, outcome_of(ref)

    def _ready(self, timeout_s: float) -> Iterable[Ref]:
        found = _there(self._soon)
        if not found:
            found = _first(self._soon, min(timeout_s, WATCH_S))
        if time.monotonic() > self._looked_s + WATCH_S:
            self._looked_s = time.monotonic()
            found = [*found, *_there(self._watched)]
        return found


def _there(refs: Iterable[Ref]) -> list[Ref]:
    """Those that are ready, at one look."""
    import ray

    waiting = list(refs)
    return list(ray.wait(waiting, num_returns=len(waiting), timeout=0)[0]) if waiting else []


def _first(refs: Iterable[Ref], timeout_s: float) -> list[Ref]:
    import ray

    waiting = list(refs)
    if not waiting:
        time.sleep(timeout_s)
        return []
    return list(ray.wait(waiting, num_returns=1, timeout=timeout_s)[0])


def outcome_of(ref: Ref) -> Any:
    """The value behind a ready reference, or the Ray error it holds."""
    import ray

    try:
        return ray.get(ref)
    except ray.exceptions.RayError as error:
        return error
