"""The demand plane: which action an arm's policy chooses where, and where the videos of the run lie on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from experiments.report.charts import Point, Scatter, scatter, thinned
from experiments.report.clips import prompt_key
from orchestrator.arms import Arm
from orchestrator.demands import actions_of, decision_for
from orchestrator.types import Demand, Record

NUM_COLOURS, NUM_SHAPES = 7, 4
"""Palette entries of the style sheet (entry 0 is the reference arm's), and marker shapes of the template."""
COLUMNS, ROWS = 40, 28
MOST_DOTS = 600


@dataclass(frozen=True)
class Tile:
    """Part of the plane under one action. Coordinates in SVG pixels."""

    x: float
    y: float
    width: float
    height: float
    colour: int
    title: str


@dataclass(frozen=True)
class Entry:
    """An action of the legend, and the videos that it was chosen for."""

    name: str
    num_videos: int
    colour: int
    shape: int


@dataclass(frozen=True)
class ActionMap:
    """One arm's plane; without ``tiles`` where its policy is not known."""

    arm: str
    chart: Scatter
    tiles: tuple[Tile, ...]
    entries: tuple[Entry, ...]


def action_maps(records: Sequence[Record], spec: Mapping[str, Any]) -> list[ActionMap]:
    """One for each arm that measured demand, in the order of the records; an action looks the same on all of them."""
    seen = [r for r in records if r.spatial_demand is not None and r.temporal_demand is not None]
    arms = {arm: [r for r in seen if r.arm == arm] for arm in dict.fromkeys(r.arm for r in seen)}
    known = {str(arm.get("name")): arm for arm in spec.get("arms") or ()}
    policies = {name: _Policy(known.get(name)) for name in arms}
    charts = {name: _chart(name, found, {}) for name, found in arms.items()}
    planes = {name: policies[name].plane(charts[name]) for name in arms}
    names = sorted({r.action for r in seen} | {cell for plane in planes.values() for row in plane for cell in row})
    style = {name: (1 + index % (NUM_COLOURS - 1), index % NUM_SHAPES) for index, name in enumerate(names)}
    return [_map(name, arms[name], planes[name], style) for name in arms]


class _Policy:
    """What an arm's planner would choose; nothing for an arm that this version cannot read."""

    def __init__(self, data: Mapping[str, Any] | None) -> None:
        self.arm: Arm | None = None
        try:
            self.arm = Arm.model_validate(data) if data else None
            self.actions = actions_of(self.arm) if self.arm else ()
        except ValueError:  # of another version, or of a model that is not in the catalogue
            self.arm = None

    def plane(self, chart: Scatter) -> list[list[str]]:
        """Names by row (from the bottom) and column of the chart; empty without a choice."""
        if self.arm is None or len(self.actions) < 2:
            return []
        arm = self.arm
        spatial = _middles(chart.x_scale.low, chart.x_scale.high, COLUMNS)
        temporal = _middles(chart.y_scale.low, chart.y_scale.high, ROWS)
        return [[decision_for(arm, self.actions, Demand(s, t)).action.name for s in spatial] for t in temporal]


def _middles(low: float, high: float, num: int) -> list[float]:
    return [low + (high - low) * (index + 0.5) / num for index in range(num)]


def _map(arm: str, records: Sequence[Record], plane: list[list[str]], style: Mapping[str, tuple[int, int]]) -> ActionMap:
    chart = _chart(arm, records, style)
    shown = {name for row in plane for name in row} | {r.action for r in records}
    used = [r.action for r in records]
    entries = [Entry(name, used.count(name), *style[name]) for name in style if name in shown]
    return ActionMap(arm, chart, tuple(_tiles(chart, plane, style)), tuple(entries))


def _chart(arm: str, records: Sequence[Record], style: Mapping[str, tuple[int, int]]) -> Scatter:
    points = [
        Point(
            r.spatial_demand or 0.0,
            r.temporal_demand or 0.0,
            f"{r.prompt_id}, seed {r.seed}: detail {r.spatial_demand:.3f}, motion {r.temporal_demand:.3f}, {r.action}",
            *style.get(r.action, (0, 0)),
            go=prompt_key(r.prompt_id, r.seed),
        )
        for r in thinned(records, MOST_DOTS)
    ]
    return scatter(arm, "detail (spatial demand)", "motion (temporal demand)", points, min_span=(0.2, 0.2))


def _tiles(chart: Scatter, plane: list[list[str]], style: Mapping[str, tuple[int, int]]) -> Iterable[Tile]:
    """Cells of a row under one action are one tile."""
    width, height = (chart.right - chart.left) / COLUMNS, (chart.bottom - chart.top) / ROWS
    for row, names in enumerate(plane):
        column = 0
        for name, group in groupby(names):
            num = len(list(group))
            left, right = (round(chart.left + at * width, 1) for at in (column, column + num))
            top, bottom = (round(chart.bottom - at * height, 1) for at in (row + 1, row))
            yield Tile(left, top, round(right - left, 1), round(bottom - top, 1), style[name][0], name)
            column += num
