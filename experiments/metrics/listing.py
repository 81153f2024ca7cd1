"""What was measured of a run's videos, for people and as plain data: means per arm, and what could not be had and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table

from experiments.metrics.completing import Lost, broken, reasons
from experiments.metrics.names import METRICS
from experiments.metrics.quality import Row


def means(rows: Sequence[Row], arm: str, name: str) -> tuple[float, int] | None:
    """Mean of a metric over the videos of an arm that have it, and how many have."""
    values = [float(row[name]) for row in rows if row["arm"] == arm and row.get(name) is not None]
    return (sum(values) / len(values), len(values)) if values else None


def quality_table(rows: Sequence[Row]) -> Table:
    """A row per metric that was asked for, a column per arm: means, and of how many videos where not of all."""
    num_videos = Counter(row["arm"] for row in rows)
    arms = sorted(num_videos)
    lacking = {name for names, _, _ in reasons(rows) for name in names}
    table = Table(header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    for column in ("metric", "unit", "better"):
        table.add_column(column, no_wrap=True)
    for arm in arms:
        table.add_column(arm, justify="right", overflow="fold")
    for name, metric in METRICS.items():
        found = [means(rows, arm, name) for arm in arms]
        if any(found) or name in lacking:
            cells = [_cell(mean, metric.form, num_videos[arm]) for mean, arm in zip(found, arms, strict=True)]
            table.add_row(name, metric.unit, metric.better, *cells)
    return table


def _cell(mean: tuple[float, int] | None, form: str, num_videos: int) -> str:
    if mean is None:
        return "–"
    return form.format(mean[0]) + ("" if mean[1] == num_videos else f" ({mean[1]} of {num_videos})")


def as_plain(rows: Sequence[Row], lost: Sequence[Lost]) -> dict[str, Any]:
    """The same as JSON-ready data."""
    arms: dict[str, dict[str, Any]] = {arm: {} for arm in sorted({row["arm"] for row in rows})}
    for arm, found in arms.items():
        for name in METRICS:
            if mean := means(rows, arm, name):
                found[name] = {"mean": mean[0], "num_videos": mean[1]}
    return {
        "num_videos": len(rows),
        "against": next((row["reference_arm"] for row in rows if row["reference_arm"]), None),
        "arms": arms,
        "unavailable": [{"metrics": names, "num_videos": number, "why": why} for names, number, why in reasons(rows)],
        "broken": [{name: row[name] for name in ("item_key", "arm", "prompt_id", "seed")} | {"why": why}
                   for row, why in broken(rows)],
        "lost": [{"item_key": one.record.item_key, "video": one.record.video, "why": one.why} for one in lost],
    }  # fmt: skip
