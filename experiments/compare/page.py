"""A comparison as one HTML file that loads nothing from anywhere; charts are inline SVG, as the report's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from experiments import report
from experiments.compare import cells
from experiments.compare.arms import Arm
from experiments.compare.comparison import Compared, Comparison, front_of, goodness
from experiments.compare.forest import Entry, Forest, forest
from experiments.compare.stats import Estimate
from experiments.compare.table import legend
from experiments.report.charts import Point, Scatter, scatter
from experiments.report.page import NUM_COLOURS
from experiments.summary import work_unit

_FOLDER, _REPORT = Path(__file__).parent, Path(report.__file__).parent


@dataclass(frozen=True)
class FrontChart:
    """A scatter of arms, and the SVG points of the line along its front."""

    scatter: Scatter
    line: str


def html_text(comparison: Comparison) -> str:
    """The whole page."""
    colours = _colours(comparison.rows)
    environment = Environment(
        loader=FileSystemLoader(_FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["of"] = lambda row, name: row.figures.get(name)
    return environment.get_template("page.html.j2").render(
        comparison=comparison,
        cells=cells,
        colours=colours,
        style=_source(_REPORT / "page.css") + _source(_FOLDER / "page.css"),
        script=_source(_FOLDER / "sort.js"),
        of=_unit(comparison.rows),
        facts=list(_facts(comparison)),
        legend=legend(comparison, "★"),
        fronts=list(_fronts(comparison, colours)),
        forests=[_forest(comparison, name, colours) for name in comparison.metrics if _is_own(name)],
        scores=[name for name in comparison.metrics if not _is_own(name)],
    )


def _source(path: Path) -> Markup:
    return Markup(path.read_text(encoding="utf-8"))


def _is_own(name: str) -> bool:
    """Not a score of VBench."""
    return "." not in name


def _unit(rows: Iterable[Compared]) -> str:
    return work_unit(all(row.arm.stats.on_gpu for row in rows if row.arm.records))


def _colours(rows: Sequence[Compared]) -> dict[str, int]:
    """Palette entries; the first is the base's."""
    others = [row.arm.label for row in rows if not row.is_base]
    return {row.arm.label: 0 for row in rows if row.is_base} | {n: 1 + i % (NUM_COLOURS - 1) for i, n in enumerate(others)}


def _facts(comparison: Comparison) -> Iterable[tuple[str, str]]:
    arms = [row.arm for row in comparison.rows]
    pairs = {key for arm in arms for key in arm.records}
    yield "runs", "; ".join(dict.fromkeys(arm.run.where for arm in arms))
    yield "models", "; ".join(sorted({model for arm in arms for model in arm.models}))
    yield "devices", "; ".join(sorted({machine for arm in arms for machine in arm.machines}))
    yield "prompts", f"{len({prompt for prompt, _ in pairs})}; with their seeds {len(pairs)}"


def _fronts(comparison: Comparison, colours: Mapping[str, int]) -> Iterable[FrontChart]:
    if comparison.quality is None:
        return
    costs: dict[str, Callable[[Arm], float]] = {
        "latency p50, seconds": lambda arm: arm.stats.latency_p50_s,
        f"{_unit(comparison.rows)} seconds per video": lambda arm: arm.stats.device_s,
    }
    yield from filter(None, (_front(comparison, colours, x_label, cost) for x_label, cost in costs.items()))


def _front(comparison: Comparison, colours: Mapping[str, int], x_label: str, cost: Callable[[Arm], float]) -> FrontChart | None:
    """An arm that others are measured against has no figure of its own: a dashed line. None without a point."""
    name = comparison.quality or ""
    metric = comparison.metrics[name]
    arms = [row.arm for row in comparison.rows if row.comparable and math.isfinite(cost(row.arm))]
    costs = {arm.label: cost(arm) for arm in arms}
    on_front = {arm.label for arm, kept in zip(arms, front_of(arms, cost, name), strict=True) if kept}
    values = {arm.label: abs(goodness(arm, name)) for arm in arms if math.isfinite(goodness(arm, name))}
    told = {label: f"{label}: {cells.seconds(costs[label])} s, {metric.form.format(y)}" for label, y in values.items()}
    points = [Point(costs[label], y, told[label], colours[label], label=label) for label, y in values.items()]
    rules = [(cost(arm), arm.label) for arm in arms if goodness(arm, name) == math.inf]
    if not points:
        return None
    chart = scatter(f"{metric.label} against {x_label}", x_label, metric.label, points, rules, zero_x=True)
    line = sorted((mark.x, mark.y) for mark in chart.marks if mark.point.label in on_front)
    return FrontChart(chart, " ".join(f"{x},{y}" for x, y in line))


def _forest(comparison: Comparison, name: str, colours: Mapping[str, int]) -> Forest:
    """Of differences from the base where any arm has one, else of means."""
    metric = comparison.metrics[name]
    better = f"{metric.better} is better" if metric.better else "neither way is better"
    rows = [row for row in comparison.rows if name in row.figures]
    paired = [(row, found) for row in rows if (found := row.figures[name].difference)]
    if paired and comparison.base:
        entries = [
            Entry(row.arm.label, _difference_text(row, comparison, name), colours[row.arm.label], d.mean, d.low, d.high)
            for row, d in paired
        ]
        return forest(metric.label, f"less {comparison.base.label}; {better}", entries, True)
    entries = [
        Entry(row.arm.label, cells.mean(figure, metric), colours[row.arm.label], figure.mean, *_ends(figure.estimate))
        for row in rows
        if (figure := row.figures[name])
    ]
    return forest(metric.label, f"mean; {better}", entries, False)


def _ends(estimate: Estimate | None) -> tuple[float | None, float | None]:
    return (estimate.low, estimate.high) if estimate else (None, None)


def _difference_text(row: Compared, comparison: Comparison, name: str) -> str:
    metric, found = comparison.metrics[name], row.figures[name].difference
    won = cells.wins(found, metric)
    return cells.difference(found, metric) + (f", wins {won}" if won else "")
