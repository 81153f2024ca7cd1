"""A comparison as flat rows: for CSV, one row per arm under stable column names, and for JSON."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import Any

from experiments.compare.comparison import Compared, Comparison, Figure
from experiments.compare.stats import Estimate

Flat = dict[str, Any]


def csv_text(comparison: Comparison) -> str:
    """Empty where nothing is known."""
    rows = [flat(row, comparison.metrics) for row in comparison.rows]
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def as_json(comparison: Comparison) -> Flat:
    """``arms`` are the rows of the CSV; null where nothing is known."""
    return {
        "base": comparison.base.label if comparison.base else None,
        "pareto": {"cost": "latency_p50_s", "quality": comparison.quality},
        "arms": [flat(row, comparison.metrics) for row in comparison.rows],
        "metrics": {name: {"unit": m.unit, "better": m.better, "what": m.what} for name, m in comparison.metrics.items()},
        "notes": list(comparison.notes),
    }


def flat(row: Compared, metrics: Mapping[str, Any]) -> Flat:
    """Every column is there for every arm. Seconds are per video; ``low`` and ``high`` end 95 % intervals."""
    stats = row.arm.stats
    known: Flat = {
        "label": row.arm.label,
        "run": row.arm.run.name,
        "arm": row.arm.name,
        "model": " ".join(row.arm.models),
        "planner": " ".join(row.arm.planners),
        "accelerators": stats.accelerators,
        "reconstructed": stats.reconstructed,
        "device": " ".join(row.arm.machines),
        "is_base": int(row.is_base),
        "on_pareto_front": int(row.on_front),
        "num_videos": stats.num_videos,
        "num_failed": stats.num_failed,
        "num_pairs": row.speedup.n if row.speedup else 0,
        "density": stats.density,
        "density_executed": stats.density_executed,
        "tflops": stats.tflops,
        "operations_share": row.operations,
        "sparsity": stats.sparsity,
        "recall": stats.recall,
        "choose_s": stats.choose_s,
        "attend_s": stats.attend_s,
        **_estimate("speedup", row.speedup),
        **_estimate("work_speedup", row.work_speedup),
        "latency_p50_s": stats.latency_p50_s,
        "latency_p95_s": stats.latency_p95_s,
        "work_s": stats.busy_s,
        "device_s": stats.device_s,
        "videos_per_device_hour": stats.videos_per_device_hour if stats.num_videos else None,
    }
    for name, metric in metrics.items():
        known |= _figure(name, row.figures.get(name), bool(metric.better))
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in known.items()}


def _estimate(name: str, found: Estimate | None) -> Flat:
    return {name: found and found.mean, f"{name}_low": found and found.low, f"{name}_high": found and found.high}


def _figure(name: str, figure: Figure | None, has_wins: bool) -> Flat:
    difference = figure.difference if figure else None
    return {
        **_estimate(name, figure.estimate if figure else None),
        name: figure.mean if figure else None,
        **_estimate(f"{name}_difference", difference),
        f"{name}_pairs": difference.n if difference else 0,
        f"{name}_win_rate": difference.win_rate if difference and has_wins else None,
    }
