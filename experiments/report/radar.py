"""VBench scores: a radar of what each dimension counts as, and the figures themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.report.remarks import Remarks
from experiments.vbench.score import Totals, normalised, totals
from experiments.vbench.view import CUSTOM

SIZE_X, SIZE_Y, RADIUS = 600, 350, 138
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
    """One arm. ``path`` is SVG's, closed where ``is_whole``: no dimension is missing; ``dots`` are (x, y, title)."""

    arm: str
    colour: int
    path: str
    is_whole: bool
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
    remarks: tuple[tuple[str, str, str], ...]
    """(dimension, arms, what of it was not measured and why)."""
    width: int = SIZE_X
    height: int = SIZE_Y


def totals_of(scores: Scores) -> dict[str, dict[str, Totals]]:
    """By suite and arm."""
    return {suite: {arm: totals(raw, suite) for arm, raw in found.items()} for suite, found in scores.items()}


def boards(found: Mapping[str, Mapping[str, Totals]], remarks: Remarks, colours: Mapping[str, int]) -> list[Board]:
    """One for each suite that was evaluated, also without success."""
    suites = dict.fromkeys([*found, *remarks])
    every = [_board(suite, found.get(suite, {}), colours, remarks.get(suite, {})) for suite in suites]
    return [board for board in every if board.rows or board.remarks]


def _board(suite: str, arms: Mapping[str, Totals], colours: Mapping[str, int], remarks: Mapping[str, Mapping[str, str]]) -> Board:
    order = [arm for arm in colours if arm in arms] + [arm for arm in arms if arm not in colours]
    dims = list(dict.fromkeys(dim for arm in order for dim in arms[arm].dimensions))
    counted = {arm: normalised(arms[arm].dimensions) for arm in order}
    spokes = tuple(_spoke(dim, index, len(dims)) for index, dim in enumerate(dims)) if len(dims) >= 3 else ()
    names = list(next(iter(arms.values())).counts) if arms and suite != CUSTOM else []
    return Board(
        suite=suite,
        spokes=spokes,
        rings=tuple(_polygon([ring] * len(dims)) for ring in RINGS) if spokes else (),
        outlines=tuple(_outline(arm, dims, counted[arm], colours.get(arm, 0)) for arm in order) if spokes else (),
        heads=("", *order),
        totals=tuple((_title(name), *(arms[arm].told(name) for arm in order)) for name in names),
        rows=tuple((dim.replace("_", " "), *(_cell(arms[arm], counted[arm], dim) for arm in order)) for dim in dims),
        remarks=tuple(_told(remarks)),
    )


def _told(remarks: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str, str]]:
    """What several arms share is told once."""
    arms: dict[tuple[str, str], list[str]] = {}
    for arm, by_dim in remarks.items():
        for dim, text in by_dim.items():
            arms.setdefault((dim, text), []).append(arm)
    for (dim, text), of in arms.items():
        yield dim.replace("_", " "), ", ".join(of), text


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
    """A line joins neighbours that the arm has both."""
    places = [_at(min(max(counted[dim], 0.0), 1.0), i, len(dims)) if dim in counted else None for i, dim in enumerate(dims)]
    steps = [f"{'L' if before else 'M'}{at[0]} {at[1]}" for before, at in zip([None, *places], places, strict=False) if at]
    ends_meet = bool(places[0] and places[-1])
    last = f"L{places[0][0]} {places[0][1]}" if ends_meet and places[0] else ""
    dots = tuple(
        (at[0], at[1], f"{arm}, {dim.replace('_', ' ')}: {100 * counted[dim]:.1f} %")
        for dim, at in zip(dims, places, strict=True)
        if at
    )
    return Outline(arm, colour, " ".join([*steps, last]).strip(), None not in places, dots)


def _polygon(values: Sequence[float]) -> str:
    places = (_at(value, index, len(values)) for index, value in enumerate(values))
    return " ".join(f"{x},{y}" for x, y in places)


def _at(value: float, index: int, num: int) -> tuple[float, float]:
    """The first axis points up, the others follow clockwise."""
    angle = 2 * math.pi * index / num - math.pi / 2
    return round(SIZE_X / 2 + RADIUS * value * math.cos(angle), 1), round(SIZE_Y / 2 + RADIUS * value * math.sin(angle), 1)
