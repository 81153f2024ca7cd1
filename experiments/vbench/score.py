"""The totals of VBench, from raw scores: Quality, Semantic and Total, or for VBench-I2V Quality, I2V and Total.

A total with a dimension missing is none: VBench's own script would count it as a raw 0, which is below zero once normalised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from experiments.vbench.normalise import I2V, T2V, Scheme, scale
from experiments.vbench.results import Coverage
from orchestrator.mistakes import unknown
from orchestrator.suites import I2V_DIMENSIONS


@dataclass(frozen=True)
class Totals:
    """In 0 to 1, higher better; None where a dimension is missing. ``semantic`` is of text to video only, ``i2v`` of I2V."""

    quality: float | None
    semantic: float | None
    total: float | None
    i2v: float | None
    dimensions: dict[str, float]
    """Raw scores, in VBench's order."""
    num: int
    """Dimensions there are, of those that a total counts."""
    of: int
    counts: dict[str, tuple[int, int]] = field(default_factory=dict)
    """The same for each total, by its name."""

    def told(self, name: str) -> str:
        """A total in per cent for people, or how many of its dimensions there are."""
        value = getattr(self, name)
        have, of = self.counts[name]
        return f"n/a ({have}/{of} dimensions)" if value is None else f"{100 * value:.2f} %"

    def as_json(self) -> dict[str, Any]:
        """``i2v`` is there for VBench-I2V only."""
        mine = {"i2v": self.i2v} if "i2v" in self.counts else {}
        return {"quality": self.quality, "semantic": self.semantic, **mine, "total": self.total, "dimensions": self.dimensions}


def totals(raw: Mapping[str, float], suite: str = "vbench") -> Totals:
    """The totals of raw scores. Raises ValueError for a dimension that the suite does not have."""
    scheme = scheme_of(suite)
    for dimension in raw:
        if dimension not in scheme.dimensions:
            raise ValueError(unknown(f"dimension of {scheme.name}:", dimension, scheme.dimensions))
    groups = {name: _group(raw, dims) for name, dims in scheme.groups.items()}
    counts = {name: (sum(dim in raw for dim in dims), len(dims)) for name, dims in scheme.groups.items()}
    num, of = sum(have for have, _ in counts.values()), len(scheme.counted)
    return Totals(
        quality=groups["quality"],
        semantic=groups.get("semantic"),
        total=_total(groups, scheme.weights),
        i2v=groups.get("i2v"),
        dimensions={dim: raw[dim] for dim in scheme.dimensions if dim in raw},
        num=num,
        of=of,
        counts=counts | {"total": (num, of)},
    )


@dataclass(frozen=True)
class Scored:
    """The totals of an arm, and by dimension of how many videos they are, where that is known."""

    totals: Totals
    coverage: Mapping[str, Coverage]
    partial: frozenset[str]
    """Totals that count a dimension which lacks videos, by their names."""

    def told(self, name: str) -> str:
        """A total for people."""
        mark = " (partial)" if name in self.partial and getattr(self.totals, name) is not None else ""
        return self.totals.told(name) + mark

    def as_json(self) -> dict[str, Any]:
        """The totals; of a run with the videos they are of, and whether some are missing."""
        if not self.coverage:
            return self.totals.as_json()
        videos = {name: asdict(found) for name, found in self.coverage.items()}
        return {**self.totals.as_json(), "videos": videos, "partial": bool(self.lacking)}

    @property
    def lacking(self) -> dict[str, Coverage]:
        """Dimensions that lack videos."""
        return {name: found for name, found in self.coverage.items() if found.is_partial}


def scored(raw: Mapping[str, float], suite: str, coverage: Mapping[str, Coverage]) -> Scored:
    """Raises ValueError as :func:`totals`."""
    known = {name: coverage[name] for name in raw if name in coverage}
    lacking = {name for name, found in known.items() if found.is_partial}
    groups = [name for name, dims in scheme_of(suite).groups.items() if lacking & set(dims)]
    return Scored(totals(raw, suite), known, frozenset([*groups, *(["total"] if groups else [])]))


def scheme_of(suite: str) -> Scheme:
    """A part of a suite, and any custom list of prompts, is scored as the whole."""
    return I2V if suite.startswith(I2V.name) else T2V


def suite_of(raw: Mapping[str, float]) -> str:
    """Which benchmark scores are of: VBench-I2V where one of its own dimensions is among them."""
    return (I2V if set(raw) & set(I2V_DIMENSIONS) else T2V).name


def normalised(raw: Mapping[str, float]) -> dict[str, float]:
    """Each score between VBench's worst and best."""
    return {dim: scale(dim).normalised(value) for dim, value in raw.items()}


def _group(raw: Mapping[str, float], dimensions: tuple[str, ...]) -> float | None:
    if not set(dimensions) <= set(raw):
        return None
    weights = [scale(dim).weight for dim in dimensions]
    return sum(scale(dim).normalised(raw[dim]) * weight for dim, weight in zip(dimensions, weights, strict=True)) / sum(weights)


def _total(groups: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    found = [(value, weights[name]) for name, value in groups.items() if value is not None]
    if len(found) < len(groups):
        return None
    return sum(value * weight for value, weight in found) / sum(weights.values())
