"""Which methods an arm runs with: names and settings as given, to settings that hold all that they need, checked together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from orchestrator.arms import MethodUse
from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import APART, FIELD_KNOBS, WITHOUT_SETTINGS, Method, Request, find, named, read_settings
from orchestrator.model_geometry import ModelGeometry


@dataclass(frozen=True)
class Chosen:
    """The method parts of an arm: see the fields of ``orchestrator.arms.Arm``."""

    planner_settings: dict[str, Any]
    accelerators: tuple[MethodUse, ...]
    reconstructed: tuple[str, ...]


def resolve_methods(request: Request, settings: Mapping[str, Any], mistakes: list[str]) -> Chosen | None:
    """Reads ``planner`` and ``accelerators`` of an arm's settings. None, with a line in ``mistakes`` for all that is wrong."""
    found: list[str] = []
    planner, given = named(settings.get("planner") or "dvg")
    if planner in WITHOUT_SETTINGS and not given and not settings.get("accelerators"):
        return Chosen({}, (), ())
    asked = [(find(planner, "planner"), given)]
    for use in settings.get("accelerators") or ():
        name, given = named(use)
        asked.append((find(name, "accelerator"), given))
    uses = [_resolved(method, given, request, found) for method, given in asked]
    found += conflicts(method for method, _ in asked)
    mistakes.extend(found)
    if found:
        return None
    reconstructed = tuple(method.name for method, _ in asked if method.follows == "reconstructed")
    return Chosen(uses[0].settings, tuple(uses[1:]), reconstructed)


def _resolved(method: Method, given: Mapping[str, Any], request: Request, mistakes: list[str]) -> MethodUse:
    try:
        settings = method.resolve(read_settings(method, given), request)
    except ValueError as error:
        told = str(error)
        mistakes.append(told if told.startswith(method.name) else f"{method.name}: {told}")
        return MethodUse(name=method.name)
    mistakes.extend(f"{method.name}: {line}" for line in method.mistakes(settings, request))
    return MethodUse(name=method.name, settings=settings.model_dump(mode="json"))


def _idle(planner: str, config: DvgConfig) -> frozenset[str]:
    """Knobs that a planner with settings of its own does not read."""
    if planner in WITHOUT_SETTINGS:
        return frozenset()
    reads = find(planner, "planner").knobs
    of_field = FIELD_KNOBS if "initial_noise" in reads and config.initial_noise == "coordinate" else ()
    return frozenset(DvgConfig.model_fields).difference(reads, of_field)


def without_idle_knobs(planner: str, config: DvgConfig, model: ModelGeometry) -> DvgConfig:
    """Knobs that shape no video have the model's values, so that they change no item's key."""
    usual = DvgConfig.for_model(model)
    return config.model_copy(update={name: getattr(usual, name) for name in _idle(planner, config)})


def idle_knobs_told(planner: str, own: Iterable[str], config: DvgConfig, model: ModelGeometry) -> str:
    """Why knobs that an arm itself gives say nothing; empty if each of ``own`` is read, or has the model's value."""
    heeded = without_idle_knobs(planner, config, model)
    names = [name for name in own if getattr(config, name) != getattr(heeded, name)]
    if not names:
        return ""
    reads = ", ".join(find(planner, "planner").knobs)
    return f"dvg: planner {planner} does not read {', '.join(names)}; drop it, or take planner dvg. It reads {reads}"


def conflicts(methods: Iterable[Method]) -> list[str]:
    """Why two of them cannot be had at once."""
    lines = []
    for one, other in combinations(methods, 2):
        reason = one.excludes.get(other.name) or other.excludes.get(one.name)
        reason = reason or one.without.get(other.lever) or other.without.get(one.lever)
        if reason is None and one.lever == other.lever:
            reason = f"both are a {one.lever}"
        reason = reason or APART.get(frozenset({one.lever, other.lever}))
        if reason:
            lines.append(f"{one.name} and {other.name} cannot be combined: {reason}; take one of them")
    return lines
