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
ATOMS = frozenset({str, int, float, bool, type(None)})


def row(event: Event, commands: Sequence[Command]) -> dict[str, Any]:
    """One line of ``events.jsonl``: what was told, and what was asked for in return."""
    return {**_plain(event), "commands": [_plain(command) for command in commands]}


def _plain(value: Event | Command) -> dict[str, Any]:
    kind: type = type(value)
    return {"type": kind.__name__, **{name: _value(getattr(value, name)) for name in _names(kind)}}


def _value(value: Any) -> Any:
    """By hand: ``dataclasses.asdict`` takes five times as long, at every event."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is tuple or kind is list:
        return [_value(part) for part in value]
    if kind is dict:
        return {name: _value(part) for name, part in value.items()}
    return {name: _value(getattr(value, name)) for name in _names(kind)} if dataclasses.is_dataclass(kind) else value


@cache
def _names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.name != "handle")


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
