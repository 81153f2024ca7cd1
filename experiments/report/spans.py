"""What every worker did and when, rebuilt from a run's event log."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from experiments.bench.cluster_timeline import ENDS

Row = dict[str, Any]
Lane = tuple[str, int]
"""Worker, and rank in it."""
KINDS = {"StartSketch": "sketch", "StartPhase": "refine", "StartDecode": "decode"}


@dataclass(frozen=True)
class Span:
    """One command to a worker, from when it was told to when it answered or was lost, in seconds since the run started."""

    kind: str
    """``sketch``, ``refine`` or ``decode``."""
    lanes: tuple[Lane, ...]
    from_s: float
    to_s: float
    arm: str
    what: str
    """The prompt, the attempt if not the first, the stages of a phase."""
    trouble: str = ""
    """Why it came to nothing."""


@dataclass
class Log:
    """One start of a run."""

    spans: list[Span] = field(default_factory=list)
    lanes: dict[Lane, list[tuple[float, float]]] = field(default_factory=dict)
    """When each rank was there, in the order in which they joined."""
    end_s: float = 0.0
    kinds: dict[str, str] = field(default_factory=dict)
    """``sketch``, ``pod`` or ``decode``, by worker."""


@dataclass(frozen=True)
class _Told:
    command: Row
    at_s: float
    lanes: tuple[Lane, ...]


class Reader:
    """Takes the rows of one start one by one, so that a long log is never held."""

    def __init__(self) -> None:
        self.log = Log()
        self._items: dict[str, Row] = {}
        self._stages: dict[str, int] = {}
        self._told: dict[tuple[str, int], _Told] = {}
        self._since: dict[Lane, float] = {}

    def take(self, row: Row) -> None:
        self.log.end_s = max(self.log.end_s, row["time_s"])
        if row["type"] == "Arrived":
            self._items[row["item"]["item_key"]] = row["item"]
        elif row["type"] == "WorkerJoined":
            self._join(row)
        elif row["type"] == "WorkerLost":
            self._lose(row)
        elif key := self._answered(row):
            self._close(key, row["time_s"], str(row.get("error", "")) if row["type"] == "Failed" else "")
        for command in row["commands"]:
            if command["type"] in KINDS:
                self._told[command["item_key"], command["attempt"]] = _Told(command, row["time_s"], _lanes(command))

    def finish(self) -> Log:
        """What is still under way ends with the log."""
        for key in list(self._told):
            self._close(key, self.log.end_s, "not finished")
        for lane in list(self._since):
            self._leave(lane, self.log.end_s)
        return self.log

    def _answered(self, row: Row) -> tuple[str, int] | None:
        key = (row.get("item_key", ""), row.get("attempt", 0))
        told = self._told.get(key)
        return key if told and row["type"] in (ENDS[told.command["type"]], "Failed") else None

    def _join(self, row: Row) -> None:
        self.log.kinds[row["worker"]] = row["kind"]
        for rank in range(row["num_ranks"]):
            self.log.lanes.setdefault((row["worker"], rank), [])
            self._since[row["worker"], rank] = row["time_s"]

    def _lose(self, row: Row) -> None:
        dead = row.get("ranks")
        gone = {lane for lane in self._since if lane[0] == row["worker"] and (not dead or lane[1] in dead)}
        for key, told in list(self._told.items()):
            if gone & set(told.lanes):
                self._close(key, row["time_s"], f"{row['worker']} was lost: {row['reason']}")
        for lane in gone:
            self._leave(lane, row["time_s"])

    def _leave(self, lane: Lane, at_s: float) -> None:
        self.log.lanes[lane].append((self._since.pop(lane), at_s))

    def _close(self, key: tuple[str, int], at_s: float, trouble: str) -> None:
        told, item = self._told.pop(key), self._items.get(key[0], {})
        command = told.command
        stages = f", stages {command['begin'] + 1} to {command['stop']}" if command["type"] == "StartPhase" else ""
        again = f", attempt {key[1]}" if key[1] > 1 else ""
        what = f"{item.get('prompt_id', key[0])} seed {item.get('seed', '?')}{stages}{again}"
        kind = KINDS[command["type"]]
        self.log.spans.append(Span(kind, told.lanes, told.at_s, at_s, str(item.get("arm", "?")), what, trouble))


def _lanes(command: Row) -> tuple[Lane, ...]:
    piece = command.get("slice")
    if not piece:
        return ((command["worker"], 0),)
    return tuple((piece["pod"], piece["start"] + index) for index in range(piece["width"]))


def read_logs(rows: Iterable[Row]) -> list[Log]:
    """One for each start of the run, in order."""
    readers: dict[int, Reader] = {}
    for row in rows:
        readers.setdefault(row["start"], Reader()).take(row)
    return [reader.finish() for reader in readers.values()]
