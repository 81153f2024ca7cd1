"""The table of ``experiments.bench.methods``: speed measured, speed that the operations alone would give, speed published."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HEAD = (
    "| method | s | speed | executed operations | speed by operations | speed kept | published speed |\n"
    "|---|---|---|---|---|---|---|\n"
)


def report(figures: Mapping[str, Any]) -> str:
    """Markdown. The first row is the plain run, which the others are held against."""
    base = figures["rows"][0]
    rows = "".join(_row(row, base) for row in figures["rows"])
    left = "".join(f"- {name}: {reason}\n" for name, reason in figures["left"].items())
    subject = figures["subject"]
    title = f"## {subject['name']}, random weights, one branch of guidance\n\n"
    return title + HEAD + rows + (f"\nNot run:\n\n{left}" if left else "")


def _row(row: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    """``speed kept``: of what fewer operations promise, how much the clock shows."""
    speed, share = base["seconds"] / row["seconds"], row["tflops"] / base["tflops"]
    figures = f"{row['seconds']:.1f} | {speed:.2f} | {share:.3f} | {1 / share:.2f} | {speed * share:.2f}"
    return f"| {row['name']} | {figures} | {row['paper']} |\n"
