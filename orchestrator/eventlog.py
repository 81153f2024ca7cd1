"""Events and commands as JSON-ready rows and back. Handles stay out: they mean nothing in another process."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter

from orchestrator import events
from orchestrator.events import Command, Event

T = TypeVar("T")


def row(event: Event, commands: Sequence[Command]) -> dict[str, Any]:
    """One line of ``events.jsonl``: what was told, and what was asked for in return."""
    return {**_plain(event), "commands": [_plain(command) for command in commands]}


def _plain(value: Event | Command) -> dict[str, Any]:
    fields = {f.name: _value(getattr(value, f.name)) for f in dataclasses.fields(value) if f.name != "handle"}
    return {"type": type(value).__name__, **fields}


def _value(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return [_value(part) for part in value] if isinstance(value, tuple) else value


def event_from(line: dict[str, Any]) -> Event:
    """The event of one row. Raises ValueError for a type that is no event, pydantic's own for wrong fields."""
    return _read(line, Event)


def commands_from(line: dict[str, Any]) -> list[Command]:
    return [_read(command, Command) for command in line["commands"]]


def _read(line: dict[str, Any], base: type[T]) -> T:
    found = getattr(events, str(line.get("type")), None)
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ValueError(f"{line.get('type')!r} is no {base.__name__.lower()} of orchestrator.events")
    fields = {key: value for key, value in line.items() if key not in ("type", "commands", "start")}
    value: T = _adapter(found.__name__).validate_python(fields)
    return value


@cache
def _adapter(name: str) -> TypeAdapter[Any]:
    return TypeAdapter(getattr(events, name))


def starts(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each start of a run, in order: every start had a scheduler of its own, so each replays by itself."""
    return [list(group) for _, group in itertools.groupby(rows, key=lambda line: line["start"])]


def told(rows: Iterable[dict[str, Any]]) -> list[tuple[Event, list[Command]]]:
    """Every (event, commands) pair of a log."""
    return [(event_from(line), commands_from(line)) for line in rows]
