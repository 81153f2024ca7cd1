"""A queue of items that wait, those of one cost class in a lane of their own: they are interchangeable but for who came first."""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator
from typing import Any

Ticket = tuple[bool, float, int, str]
"""(Nothing of it is begun, priority, arrival, item_key): the smallest goes first, so what is begun is finished first."""


class Lanes:
    """Every step takes the same time however many items wait, but for the logarithm of a heap."""

    def __init__(self) -> None:
        self.counts: dict[Any, int] = {}
        """Items of every lane that has any."""
        self.num_fresh = 0
        """Items of which nothing is begun."""
        self._lanes: dict[Hashable, list[Ticket]] = {}
        self._order: list[tuple[Ticket, int, Hashable]] = []
        """Heads of lanes, and what once was one."""
        self._waiting: dict[str, tuple[Ticket, Hashable]] = {}
        self._num_pushed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, item_key: str) -> bool:
        return item_key in self._waiting

    def __iter__(self) -> Iterator[str]:
        return iter(self._waiting)

    def push(self, lane: Hashable, ticket: Ticket) -> None:
        self._waiting[ticket[-1]] = ticket, lane
        self.counts[lane] = self.counts.get(lane, 0) + 1
        self.num_fresh += ticket[0]
        line = self._lanes.setdefault(lane, [])
        heapq.heappush(line, ticket)
        if line[0] is ticket:
            self._put_head(lane, ticket)

    def remove(self, item_key: str) -> None:
        """Take it out, wherever it stands."""
        ticket, lane = self._waiting.pop(item_key)
        self.num_fresh -= ticket[0]
        if self.counts[lane] > 1:
            self.counts[lane] -= 1
        else:
            del self.counts[lane]
        line = self._lanes[lane]
        if line[0] is ticket:
            heapq.heappop(line)
            if head := self._head(line):
                self._put_head(lane, head)

    def first(self) -> str | None:
        return next((item_key for _, item_key in self.walk()), None)

    def first_of(self, lane: Hashable) -> str | None:
        head = self._head(self._lanes.get(lane, []))
        return head[-1] if head else None

    def walk(self) -> Iterator[tuple[Hashable, str]]:
        """(Lane, first item) in the order of the items. A lane comes again with its next item once the first one is removed."""
        passed: list[tuple[Ticket, int, Hashable]] = []
        try:
            while self._order:
                entry = heapq.heappop(self._order)
                ticket, _, lane = entry
                again = bool(passed) and passed[-1][0] is ticket
                if not again and self._head(self._lanes[lane]) is ticket:
                    passed.append(entry)
                    yield lane, ticket[-1]
        finally:
            for entry in passed:
                heapq.heappush(self._order, entry)

    def _head(self, line: list[Ticket]) -> Ticket | None:
        """The first that still waits."""
        while line and ((found := self._waiting.get(line[0][-1])) is None or found[0] is not line[0]):
            heapq.heappop(line)
        return line[0] if line else None

    def _put_head(self, lane: Hashable, ticket: Ticket) -> None:
        self._num_pushed += 1
        heapq.heappush(self._order, (ticket, self._num_pushed, lane))
