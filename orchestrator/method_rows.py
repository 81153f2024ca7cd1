"""What is told of methods and presets, as plain rows: for ``dvg methods``."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from orchestrator.methods import ABSENT, BUDGETED, Kind, Method, available, find
from orchestrator.presets import PRESETS
from orchestrator.resolve_methods import conflicts
from orchestrator.spec_schema import plain

Row = dict[str, Any]
KINDS: tuple[Kind, ...] = ("planner", "accelerator")


def every_method() -> list[Row]:
    """Planners, then accelerators, in the order of the registry."""
    methods = [find(name, kind) for kind in KINDS for name in available(kind)]
    return [_row(method, methods) for method in methods]


def _row(method: Method, methods: Iterable[Method]) -> Row:
    others = [other for other in methods if other.name != method.name]
    fits = [other.name for other in others if _fits(method, other)]
    return {
        "name": method.name,
        "kind": method.kind,
        "lever": method.lever,
        "source": method.source,
        "summary": method.summary,
        "follows": method.follows,
        "composes_with": fits,
        "combines": _combines(method, fits, others),
        "excludes": dict(method.excludes),
        "takes_budget": method.name in BUDGETED,
        "needs": method.needs,
        "ranks": _ranks(method),
        "settings": settings_of(method),
    }


def _fits(method: Method, other: Method) -> bool:
    """An arm has one planner."""
    return not (method.kind == other.kind == "planner") and not conflicts([method, other])


def _combines(method: Method, fits: Iterable[str], others: Iterable[Method]) -> str:
    """In words: a whole kind where nothing of it is excluded."""
    told = []
    fits = set(fits)
    for kind in KINDS:
        names = [other.name for other in others if other.kind == kind]
        fitting = [name for name in names if name in fits]
        if fitting:
            told.append(f"every {kind}" if len(fitting) == len(names) else ", ".join(fitting))
    return "; ".join(told) or "nothing"


def _ranks(method: Method) -> str:
    """What it asks of the ranks that share a clip, at its published setting."""
    if method.kind == "planner":
        return ""
    return (
        ""
        if method.leaves_whole_forwards(method.settings())
        else "computes blocks in part: not where weights are spread over ranks"
    )


def settings_of(method: Method) -> list[Row]:
    """Each with its default, as JSON and in words, and its meaning. Those of DVG and its ablations are the spec's own keys."""
    schema = method.settings.model_json_schema().get("properties", {})
    defaults = method.settings().model_dump(mode="json")
    return [
        {
            "name": name,
            "default": defaults[name],
            "default_told": "–" if defaults[name] is None else json.dumps(defaults[name]).strip('"'),
            "what": plain(part.get("description", "")),
        }
        for name, part in schema.items()
    ]


def preset_rows() -> list[Row]:
    return [
        {"name": name, "what": preset.told, **preset.settings, "measured": preset.measured} for name, preset in PRESETS.items()
    ]


def not_there() -> dict[str, str]:
    """Name to source."""
    return {name: absent.source for name, absent in ABSENT.items()}
