"""Latency, work and GPU-seconds against every measure of quality: one dot per video, one mark per arm, the Pareto front."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from experiments.compare.stats import pareto
from experiments.metrics.names import METRICS, SEMANTIC, Metric
from experiments.report.charts import Point, Scatter, scatter, thinned
from experiments.report.clips import prompt_key
from experiments.summary import ArmStats, busy_s, work_unit
from experiments.vbench.score import Totals
from orchestrator.types import Record

Row = Mapping[str, Any]
MOST_DOTS = 400
"""Of one chart; more videos than that are thinned evenly."""
MIN_SPAN = {"psnr": 2.0}
SEEN = Metric("", "higher", False, "share of what the prompt asks for that is seen", "as asked", "{:.3f}")


@dataclass(frozen=True)
class Cost:
    """What a chart has on its x axis, of a video and, by ``of_arm``, of an arm."""

    name: str
    axis: str
    of_video: Callable[[Record], float]
    of_arm: Callable[[Sequence[float]], float]


@dataclass(frozen=True)
class Measured:
    """One measure of quality: means by arm, and single videos where they have it."""

    name: str
    metric: Metric
    arms: Mapping[str, float]
    videos: Sequence[tuple[Record, float]] = ()
    against: str = ""


@dataclass(frozen=True)
class Chart:
    """``against``: the arms that videos are compared with, if they are."""

    scatter: Scatter
    against: str


def costs(of_gpus: bool) -> tuple[Cost, ...]:
    of = work_unit(of_gpus)
    return (
        Cost("latency", "latency, s (arm: median)", lambda r: r.latency_s, median),
        Cost("work", "seconds of work per video (arm: mean)", busy_s, fmean),
        Cost(f"{of} time", f"{of}-seconds per video (arm: mean)", lambda r: r.device_s, fmean),
    )


def measured(records: Sequence[Record], quality: Sequence[Row], scores: Mapping[str, Mapping[str, Totals]]) -> list[Measured]:
    """Everything of which one way is better, as far as it was measured."""
    joined = {row["item_key"]: row for row in quality}
    pairs = [(record, joined[record.item_key]) for record in records if record.item_key in joined]
    found = [_of_metric(name, metric, pairs) for name, metric in METRICS.items() if _has_a_chart(name, metric)]
    seen = [(r, fmean(v)) for r, row in pairs if (v := [row[name] for name in SEMANTIC if row.get(name) is not None])]
    found.append(Measured("semantic", SEEN, _means(seen)))
    return [one for one in (*found, *_totals(scores)) if one.arms]


def _has_a_chart(name: str, metric: Metric) -> bool:
    return bool(metric.better) and name not in SEMANTIC and name != "frames_ok"


def _of_metric(name: str, metric: Metric, pairs: Sequence[tuple[Record, Row]]) -> Measured:
    videos = [(record, float(row[name])) for record, row in pairs if row.get(name) is not None]
    references = {str(row["reference_arm"]) for _, row in pairs if row.get(name) is not None and row.get("reference_arm")}
    return Measured(name, metric, _means(videos), videos, ", ".join(sorted(references)) if metric.of_reference else "")


def _means(videos: Iterable[tuple[Record, float]]) -> dict[str, float]:
    by_arm: dict[str, list[float]] = {}
    for record, value in videos:
        by_arm.setdefault(record.arm, []).append(value)
    return {arm: fmean(values) for arm, values in by_arm.items()}


def _totals(scores: Mapping[str, Mapping[str, Totals]]) -> Iterable[Measured]:
    for suite, arms in scores.items():
        for name in ("total", "quality", "semantic", "i2v"):
            known = {arm: value for arm, totals in arms.items() if (value := getattr(totals, name)) is not None}
            title = f"{suite} {name}"
            yield Measured(title, Metric("", "higher", False, title, title, "{:.4f}"), known)


def pareto_charts(
    arms: Sequence[ArmStats], records: Sequence[Record], found: Sequence[Measured], colours: Mapping[str, int]
) -> list[tuple[Cost, list[Chart]]]:
    """For each cost, one chart per measure."""
    with_videos = [record for record in records if record.arm in colours]
    of_gpus = all(stats.on_gpu for stats in arms if stats.num_videos)
    return [(cost, [_chart(cost, one, with_videos, colours) for one in found]) for cost in costs(of_gpus)]


def _chart(cost: Cost, one: Measured, records: Sequence[Record], colours: Mapping[str, int]) -> Chart:
    x_of = {arm: cost.of_arm([cost.of_video(r) for r in records if r.arm == arm]) for arm in {r.arm for r in records}}
    form = one.metric.form + f" {one.metric.unit}".rstrip()
    points = [_dot(record, cost.of_video(record), y, form, colours) for record, y in thinned(one.videos, MOST_DOTS)]
    means = {arm: (x_of[arm], y) for arm, y in one.arms.items() if arm in x_of}
    front = front_of(means, one.metric.better == "lower")
    for arm, (x, y) in means.items():
        on_it = ", on the front" if arm in front else ""
        points.append(Point(x, y, f"{arm}: {x:.2f} s, {form.format(y)}{on_it}", colours[arm], label=arm))
    rules = [(x, arm) for arm, x in x_of.items() if arm in one.against.split(", ")]
    arrow = "lower is better" if one.metric.better == "lower" else "higher is better"
    line = [means[arm] for arm in front]
    span = (0.0, MIN_SPAN.get(one.name, 0.05))
    title, label = one.metric.label.removesuffix(" dB"), f"{one.metric.label} ({arrow})"
    return Chart(scatter(title, cost.axis, label, points, rules, True, span, line), one.against)


def _dot(record: Record, x: float, y: float, form: str, colours: Mapping[str, int]) -> Point:
    title = f"{record.arm}, {record.prompt_id}: {x:.2f} s, {form.format(y)}"
    return Point(x, y, title, colours[record.arm], go=prompt_key(record.prompt_id, record.seed))


def front_of(points: Mapping[str, tuple[float, float]], lower_is_better: bool = False) -> list[str]:
    """The arms that no other one beats in both, by (cost, quality)."""
    on_it = pareto([(x, -y if lower_is_better else y) for x, y in points.values()])
    return [arm for arm, is_on_it in zip(points, on_it, strict=True) if is_on_it]


def quality_table(arms: Sequence[str], found: Sequence[Measured], but: Collection[str]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: the mean of every measure, by arm, but for columns that another table has."""
    found = [one for one in found if not {one.name, one.metric.label} & set(but)]
    rows = [[arm, *(one.metric.form.format(one.arms[arm]) if arm in one.arms else "–" for one in found)] for arm in arms]
    return ["arm", *(one.metric.label for one in found)], rows
