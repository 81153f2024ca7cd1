"""Charts as plain geometry: data in, SVG coordinates out; the template draws them. Units of coordinates: SVG pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

WIDTH, HEIGHT = 420, 300
LEFT, RIGHT, TOP, BOTTOM = 68, 14, 12, 46
_CHAR = 8.5
"""About the width of a letter of a label."""


@dataclass(frozen=True)
class Point:
    """A datum. ``colour`` and ``shape`` index the page's palette and markers; a ``label`` makes it a large, named mark.

    ``go`` is the key of the prompt that a click on it leads to.
    """

    x: float
    y: float
    title: str
    colour: int
    shape: int = 0
    label: str = ""
    go: str = ""


@dataclass(frozen=True)
class Mark:
    """A point in place, and where its label goes."""

    point: Point
    x: float
    y: float
    label_x: float = 0.0
    label_y: float = 0.0


@dataclass(frozen=True)
class Tick:
    at: float
    text: str


@dataclass(frozen=True)
class Scale:
    """From values to SVG coordinates, and values as text."""

    low: float
    high: float
    start: float
    end: float
    decimals: int

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def text(self, value: float) -> str:
        return f"{value:.{self.decimals}f}" if value else "0"


@dataclass(frozen=True)
class Scatter:
    """A scatter chart; ``rules`` are vertical dashed lines with a name, ``front`` the SVG points of a line, if there is one."""

    title: str
    x_label: str
    y_label: str
    marks: tuple[Mark, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    x_scale: Scale
    y_scale: Scale
    rules: tuple[Tick, ...] = ()
    front: str = ""
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def scatter(
    title: str,
    x_label: str,
    y_label: str,
    points: Sequence[Point],
    rules: Sequence[tuple[float, str]] = (),
    zero_x: bool = False,
    min_span: tuple[float, float] = (0.0, 0.0),
    front: Sequence[tuple[float, float]] = (),
) -> Scatter:
    """Lay out at least one point; ``zero_x`` starts the x axis at zero, ``min_span`` is the least range of each axis.

    ``front``: values that a line joins, from left to right.
    """
    x_ticks = ticks([p.x for p in points] + [x for x, _ in rules] + ([0.0] if zero_x else []), min_span[0])
    y_ticks = ticks([p.y for p in points], min_span[1])
    place_x, place_y = _scale(x_ticks, LEFT, WIDTH - RIGHT), _scale(y_ticks, HEIGHT - BOTTOM, TOP)
    marks = [_mark(p, place_x.at(p.x), place_y.at(p.y)) for p in sorted(points, key=lambda p: bool(p.label))]
    return Scatter(
        title,
        x_label,
        y_label,
        tuple(_apart(marks)),
        tuple(Tick(place_x.at(value), place_x.text(value)) for value in x_ticks),
        tuple(Tick(place_y.at(value), place_y.text(value)) for value in y_ticks),
        place_x,
        place_y,
        tuple(Tick(place_x.at(x), name) for x, name in rules),
        " ".join(f"{place_x.at(x)},{place_y.at(y)}" for x, y in sorted(front)) if len(front) > 1 else "",
    )


def ticks(values: Sequence[float], min_span: float = 0.0, about: int = 5) -> list[float]:
    """Round numbers (1, 2, 5 times a power of ten) that enclose ``values``, about ``about`` intervals.

    A range below ``min_span``, or none at all, is widened around its middle, so that noise does not fill a chart.
    """
    low, high = min(values), max(values)
    if high - low < max(min_span, 1e-9):
        middle, span = (low + high) / 2, min_span or (abs(low) * 0.2 if abs(low) > 1e-6 else 1.0)
        low, high = middle - span / 2, middle + span / 2
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _scale(values: Sequence[float], start: float, end: float) -> Scale:
    step = values[1] - values[0]
    return Scale(values[0], values[-1], start, end, max(0, -math.floor(math.log10(step) + 1e-9)))


def _mark(point: Point, x: float, y: float) -> Mark:
    """The label goes above its mark, inside the frame."""
    half = _CHAR * len(point.label) / 2
    return Mark(point, x, y, min(max(x, LEFT + half), WIDTH - half), y - 13)


def _apart(marks: Sequence[Mark], gap: float = 15.0) -> list[Mark]:
    """Move labels that would overprint each other up, one over the other."""
    placed: list[Mark] = []
    for mark in sorted((mark for mark in marks if mark.point.label), key=lambda m: -m.label_y):
        y = mark.label_y
        for other in placed:
            reach = _CHAR * (len(mark.point.label) + len(other.point.label)) / 2 + 6
            if abs(other.label_x - mark.label_x) < reach and abs(other.label_y - y) < gap:
                y = other.label_y - gap
        placed.append(Mark(mark.point, mark.x, mark.y, mark.label_x, y))
    return [*(mark for mark in marks if not mark.point.label), *placed]


def thinned(values: Sequence[T], most: int) -> list[T]:
    """At most ``most`` of them, evenly spread and in order."""
    if len(values) <= most:
        return list(values)
    return [values[index * len(values) // most] for index in range(most)]
