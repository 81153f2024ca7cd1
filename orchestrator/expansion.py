"""Merging settings and expanding a sweep over knobs: plain data in, plain data out."""

from __future__ import annotations

import copy
import hashlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from orchestrator.mistakes import ConfigError, unknown

MAX_SUFFIX = 40


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` on top of ``base``, nested mappings merged unless they are of two planners; None in ``over`` changes nothing."""
    result = dict(copy.deepcopy(base))
    for key, value in over.items():
        held = result.get(key)
        if isinstance(value, Mapping) and isinstance(held, Mapping) and (key != "planner" or value.keys() == held.keys()):
            result[key] = merge(held, value)
        elif value is not None:
            result[key] = copy.deepcopy(value)
    return result


def set_dotted(data: dict[str, Any], override: str) -> None:
    """Apply one ``a.b=value`` (the value read as YAML) to ``data``. Raises ConfigError on other forms."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError([f"override {override!r} must have the form key=value, for example budget=0.4"])
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError([f"override {override!r}: the value is not valid YAML"]) from error
    _put(data, key.strip().split("."), value, override)


def _put(data: dict[str, Any], path: list[str], value: Any, what: str) -> None:
    for part in path[:-1]:
        inner = data.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError([f"{what!r}: {part!r} holds {inner!r}, which has no keys inside"])
        data = inner
    data[path[-1]] = value


def keep_arms(data: Mapping[str, Any], mistakes: list[str]) -> dict[str, Any]:
    """A spec with those arms alone that its ``only`` names; what is of another form is left for validation to refuse."""
    only, arms = data.get("only"), data.get("arms") or {}
    names = [name.strip() for name in only.split(",")] if isinstance(only, str) else only
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or not isinstance(arms, Mapping):
        return dict(data)
    mistakes.extend(unknown("arm in only:", name, map(str, arms)) for name in names if name not in arms)
    return {**data, "arms": {name: arm for name, arm in arms.items() if name in names}}


def expand_points(
    settings: Mapping[str, Any], sweep: Mapping[str, list[Any]], mistakes: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every combination of the swept values over ``settings``, with a suffix that tells the points apart."""
    legal = [knob for knob in settings if knob != "dvg"]
    bad = [knob for knob in sweep if knob.split(".")[0] not in settings]
    mistakes.extend(unknown("knob in sweep:", knob, [*legal, "dvg.<knob>"]) for knob in bad)
    mistakes.extend(f"sweep.{knob}: needs at least one value" for knob, values in sweep.items() if not values)
    if bad:
        return
    suffixes = [_suffixes(knob, values) for knob, values in sweep.items()]
    for values, suffix in zip(itertools.product(*sweep.values()), itertools.product(*suffixes), strict=True):
        point = copy.deepcopy(dict(settings))
        for knob, value in zip(sweep, values, strict=True):
            _put(point, knob.split("."), value, f"sweep.{knob}")
        yield "".join(suffix), point


def _suffixes(knob: str, values: Sequence[Any]) -> list[str]:
    """One for each value, short enough for a file's name; where two would read alike, a hash of the value tells them apart."""
    plain = [_suffix(knob, value)[:MAX_SUFFIX] for value in values]
    hashes = [hashlib.sha256(repr(value).encode()).hexdigest()[:6] for value in values]
    return [f"{name}-{digest}" if plain.count(name) > 1 else name for name, digest in zip(plain, hashes, strict=True)]


def _suffix(knob: str, value: Any) -> str:
    """For example ``-budget0.4``; arm names are folder names, so anything else becomes ``_``."""
    return f"-{knob.split('.')[-1]}" + re.sub(r"[^A-Za-z0-9.-]+", "_", str(value))
