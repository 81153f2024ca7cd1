"""VBench scores: a radar of what each dimension counts as, and the figures themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.vbench.score import Totals, normalised, totals
from orchestrator.paths import file_name

SIZE_X, SIZE_Y, RADIUS = 520, 400, 140
RINGS = (0.25, 0.5, 0.75, 1.0)

Scores = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Raw, by suite, arm and dimension."""


@dataclass(frozen=True)
class Spoke:
    """One dimension: the end of its axis, and its name beside it."""

    name: str
    x: float
    y: float
    label_x: float
    label_y: float
    anchor: str


@dataclass(frozen=True)
class Outline:
    """One arm. ``points`` are of an SVG polygon; ``dots`` are (x, y, title)."""

    arm: str
    colour: int
    points: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True)
class Board:
    """One suite."""

    suite: str
    spokes: tuple[Spoke, ...]
    """None for fewer than three dimensions."""
    rings: tuple[str, ...]
    outlines: tuple[Outline, ...]
    heads: tuple[str, ...]
    totals: tuple[tuple[str, ...], ...]
    rows: tuple[tuple[str, ...], ...]
    width: int = SIZE_X
    height: int = SIZE_Y


def totals_of(scores: Scores, arms: Sequence[str]) -> dict[str, dict[str, Totals]]:
    """By suite and arm, the arms called by their own names, which a folder's need not be."""
    names = {file_name(arm): arm for arm in arms}
    return {suite: {names.get(arm, arm): totals(raw, suite) for arm, raw in found.items()} for suite, found in scores.items()}


def boards(found: Mapping[str, Mapping[str, Totals]], colours: Mapping[str, int]) -> list[Board]:
    return [_board(suite, arms, colours) for suite, arms in found.items() if any(t.dimensions for t in arms.values())]


def _board(suite: str, arms: Mapping[str, Totals], colours: Mapping[str, int]) -> Board:
    order = [arm for arm in colours if arm in arms] + [arm for arm in arms if arm not in colours]
    dims = list(dict.fromkeys(dim for arm in order for dim in arms[arm].dimensions))
    counted = {arm: normalised(arms[arm].dimensions) for arm in order}
    spokes = tuple(_spoke(dim, index, len(dims)) for index, dim in enumerate(dims)) if len(dims) >= 3 else ()
    names = list(next(iter(arms.values())).counts)
    return Board(
        suite=suite,
        spokes=spokes,
        rings=tuple(_polygon([ring] * len(dims)) for ring in RINGS) if spokes else (),
        outlines=tuple(_outline(arm, dims, counted[arm], colours.get(arm, 0)) for arm in order) if spokes else (),
        heads=("", *order),
        totals=tuple((_title(name), *(arms[arm].told(name) for arm in order)) for name in names),
        rows=tuple((dim.replace("_", " "), *(_cell(arms[arm], counted[arm], dim) for arm in order)) for dim in dims),
    )


def _title(name: str) -> str:
    return "I2V" if name == "i2v" else name.capitalize()


def _cell(found: Totals, counted: Mapping[str, float], dim: str) -> str:
    return f"{found.dimensions[dim]:.4f} ({100 * counted[dim]:.1f} %)" if dim in counted else "–"


def _spoke(dim: str, index: int, num: int) -> Spoke:
    x, y = _at(1.0, index, num)
    label_x, label_y = _at(1.09, index, num)
    side = label_x - SIZE_X / 2
    anchor = "middle" if abs(side) < 8 else "start" if side > 0 else "end"
    return Spoke(dim.replace("_", " "), x, y, label_x, round(label_y + 4, 1), anchor)


def _outline(arm: str, dims: Sequence[str], counted: Mapping[str, float], colour: int) -> Outline:
    """A dimension that the arm lacks lies in the middle, without a dot."""
    values = [min(max(counted.get(dim, 0.0), 0.0), 1.0) for dim in dims]
    places = [_at(value, index, len(dims)) for index, value in enumerate(values)]
    dots = [
        (x, y, f"{arm}, {dim.replace('_', ' ')}: {100 * counted[dim]:.1f} %")
        for dim, (x, y) in zip(dims, places, strict=True)
        if dim in counted
    ]
    return Outline(arm, colour, _polygon(values), tuple(dots))


def _polygon(values: Sequence[float]) -> str:
    places = (_at(value, index, len(values)) for index, value in enumerate(values))
    return " ".join(f"{x},{y}" for x, y in places)


def _at(value: float, index: int, num: int) -> tuple[float, float]:
    """The first axis points up, the others follow clockwise."""
    angle = 2 * math.pi * index / num - math.pi / 2
    return round(SIZE_X / 2 + RADIUS * value * math.cos(angle), 1), round(SIZE_Y / 2 + RADIUS * value * math.sin(angle), 1)
