"""Estimates with their intervals under each other, as plain geometry; the template draws them. Units: SVG pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from experiments.report.charts import Tick, ticks

WIDTH, ROW, TOP, BOTTOM = 420, 34, 8, 26
LEFT, RIGHT = 12, 12
_ABOUT = 4
"""Intervals between ticks."""


@dataclass(frozen=True)
class Entry:
    """One estimate; ``low`` and ``high`` None: no interval. ``text`` is told beside its name."""

    name: str
    text: str
    colour: int
    mean: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """An entry in place."""

    entry: Entry
    y: float
    x: float
    start: float
    end: float


@dataclass(frozen=True)
class Forest:
    """``zero`` is where the marks of no difference go; None without one."""

    title: str
    note: str
    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    zero: float | None
    width: int = WIDTH
    height: int = 0
    top: int = TOP
    bottom: int = 0


def forest(title: str, note: str, entries: Sequence[Entry], of_differences: bool) -> Forest:
    """Lay out at least one entry; of differences the axis holds zero."""
    values = [v for e in entries for v in (e.mean, e.low, e.high) if v is not None] + [0.0] * of_differences
    at = ticks(values, about=_ABOUT)
    decimals = max(len(f"{value:.6g}".partition(".")[2]) for value in at)

    def x(value: float) -> float:
        return round(LEFT + (value - at[0]) / (at[-1] - at[0]) * (WIDTH - LEFT - RIGHT), 1)

    lines = [
        Line(e, TOP + ROW * (i + 0.72), x(e.mean), x(e.mean if e.low is None else e.low), x(e.mean if e.high is None else e.high))
        for i, e in enumerate(entries)
    ]
    bottom = TOP + ROW * len(entries)
    marks = tuple(Tick(x(value), f"{value:.{decimals}f}") for value in at)
    return Forest(title, note, tuple(lines), marks, x(0.0) if of_differences else None, height=bottom + BOTTOM, bottom=bottom)
