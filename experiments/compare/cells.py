"""Figures as short texts, the same in the terminal and on the page."""

from __future__ import annotations

import math
from typing import Literal

from experiments.compare.comparison import Compared, Figure
from experiments.compare.stats import Estimate, Paired
from experiments.metrics.names import Metric
from experiments.summary import NO_VALUE, RECONSTRUCTED

Verdict = Literal["better", "worse", ""]


def seconds(value: float) -> str:
    """Three digits or more, whatever the size."""
    if not math.isfinite(value):
        return NO_VALUE
    decimals = 2 if value < 10 else 1 if value < 100 else 0
    return f"{value:.{decimals}f}"


def rate(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def plain(value: float | None, form: str) -> str:
    return form.format(value) if value is not None and math.isfinite(value) else NO_VALUE


def label(row: Compared) -> str:
    """Marked where a method of the arm is reconstructed."""
    return f"{row.arm.label} {RECONSTRUCTED}" if row.arm.stats.reconstructed else row.arm.label


def operations(row: Compared) -> str:
    """10^12 of them, of denoising one video."""
    return rate(row.arm.stats.tflops) if row.arm.stats.tflops else NO_VALUE


def sparsity(row: Compared) -> str:
    """Of all pairs of tokens, what attention left out."""
    return plain(row.arm.stats.sparsity, "{:.0%}")


def recall(row: Compared) -> str:
    """Of dense attention's weights, what it kept."""
    return plain(row.arm.stats.recall, "{:.3f}")


def count(row: Compared) -> str:
    """Finished, or finished/attempted where an item was given up."""
    stats = row.arm.stats
    return f"{stats.num_videos}" + (f"/{stats.num_videos + stats.num_failed}" if stats.num_failed else "")


def interval(found: Estimate | None, form: str) -> str:
    """``[low, high]``, empty without one."""
    if found is None or found.low is None or found.high is None:
        return ""
    return f"[{form.format(found.low)}, {form.format(found.high)}]"


def with_interval(value: str, found: Estimate | None, form: str) -> str:
    return f"{value} {interval(found, form)}".strip()


def signed(form: str) -> str:
    """The form of a difference of figures of this form."""
    return form.replace("{:", "{:+")


def mean(figure: Figure | None, metric: Metric) -> str:
    if figure is None:
        return NO_VALUE
    return with_interval(metric.form.format(figure.mean), figure.estimate, metric.form)


def difference(found: Paired | None, metric: Metric) -> str:
    if found is None:
        return ""
    return with_interval(signed(metric.form).format(found.mean), found, signed(metric.form))


def wins(found: Paired | None, metric: Metric) -> str:
    """Empty where neither way is better."""
    return f"{found.win_rate:.0%}" if found and metric.better else ""


def verdict(found: Paired | None, metric: Metric) -> Verdict:
    """What a difference says once its interval leaves out 0."""
    if found is None or not metric.better or not found.excludes(0.0):
        return ""
    return "better" if (found.mean > 0) == (metric.better == "higher") else "worse"


def speed_verdict(found: Estimate | None) -> Verdict:
    if found is None or not found.excludes(1.0):
        return ""
    return "better" if found.mean > 1 else "worse"
