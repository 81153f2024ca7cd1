"""What ``experiments.bench.sparse`` found, in words and tables: which method beats dense attention where, which never does."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from experiments.bench.sparse_rows import Case, Row
from experiments.bench.structured import Recipe

WANTED_RECALL = 0.8
"""Of a method that is tried in clips before others."""
GOAL = 1.6


def rows_of(folder: pathlib.Path) -> list[Row]:
    """The rows of a folder, the oldest first."""
    paths = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    return [json.loads(path.read_text()) for path in paths]


def of(rows: Iterable[Mapping[str, Any]], section: str) -> list[Mapping[str, Any]]:
    """Those of one section that were measured."""
    return [row for row in rows if row["section"] == section and "left" not in row]


def worthwhile(rows: Iterable[Mapping[str, Any]], cases: Sequence[Case], model: str) -> list[Case]:
    """Of each method that is faster than dense over a whole clip its fastest case, the best first; where none is, the best alone.

    Those that keep little of the weight come last.
    """
    found = [row for row in of(rows, "methods") if row["model"] == model and row.get("num_sparse")]
    found = [row for row in found if row["clip_speed"] > 1] or sorted(found, key=lambda row: -row["clip_speed"])[:1]
    by_name = {case.name: case for case in cases}

    def rank(row: Mapping[str, Any]) -> tuple[bool, float]:
        return (row.get("recall") or 0.0) >= WANTED_RECALL, row["clip_speed"]

    best: dict[str, Case] = {}
    for row in sorted(found, key=rank, reverse=True):
        case = by_name[row["name"]]
        best.setdefault(case.method, case)
    return list(best.values())


def report(rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> str:
    """Markdown."""
    parts = [*_methods(rows), _clips(of(rows, "clips")), _recorded(of(rows, "recorded")), _kernel(rows), _left(rows)]
    made = ", ".join(f"{name} {value}" for name, value in vars(recipe).items())
    return "\n".join(
        ["# Sparse attention on one device", "", f"Structured tensors by the recipe {made}.", "", *filter(None, parts)]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _methods(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table for every grid, the fastest first, and what it comes to."""
    found = of(rows, "methods")
    places = dict.fromkeys((row["model"], row["tokens"]) for row in found)
    return [_place(model, tokens, [r for r in found if (r["model"], r["tokens"]) == (model, tokens)]) for model, tokens in places]


HEAD = (
    *("method", "sparsity", "recall", "most at that sparsity", "choosing ms", "attention ms", "kernel alone"),
    *("with choosing", "over the clip", "with the host", "error"),
)


def _place(model: str, tokens: int, rows: Sequence[Mapping[str, Any]]) -> str:
    rows = sorted(rows, key=lambda row: -row["clip_speed"])
    dense_ms = 1e3 * rows[0]["dense_s"]
    title = f"## {model}, {tokens:,} tokens, {rows[0]['heads']} heads: dense attention {dense_ms:.2f} ms\n\n"
    faster = [f"{row['name']} {row['speed']:.2f}x" for row in rows if row.get("speed", 0.0) >= 1]
    slower = [f"{row['name']} {row['speed']:.2f}x" for row in rows if 0 < row.get("speed", 0.0) < 1]
    never = [row["name"] for row in rows if not row["num_sparse"]]
    told = [
        f"Faster than dense, choosing included: {', '.join(faster) or 'none'}.",
        f"At least {GOAL}x: {sum(row.get('speed', 0.0) >= GOAL for row in rows)} of {len(rows)}.",
        *([f"Slower than dense: {', '.join(slower)}."] if slower else []),
        *([f"Kept everything: {', '.join(never)}."] if never else []),
    ]
    return title + _table(HEAD, map(_method, rows)) + "\n" + " ".join(told) + "\n"


def _method(row: Mapping[str, Any]) -> list[str]:
    def ms(name: str) -> str:
        return _number(row.get(name) and 1e3 * row[name], "{:.2f}")

    return [
        *(row["name"], _number(row.get("sparsity"), "{:.3f}"), _number(row.get("recall"), "{:.3f}")),
        *(_number(row["best_recall"], "{:.3f}"), ms("choose_s"), ms("attend_s")),
        *(_number(row.get(name), "{:.2f}x") for name in ("kernel_speed", "speed", "clip_speed", "wall_speed")),
        _number(row["error"], "{:.3f}"),
    ]


def _clips(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    base = rows[0]
    lines = [
        [
            *(
                row["name"],
                f"{row['seconds']:.2f}",
                f"{base['seconds'] / row['seconds']:.3f}x",
                f"{row['tflops'] / base['tflops']:.3f}",
            ),
            " ".join(f"{seconds:.2f}" for seconds in row["stages_s"].values()),
            _number(_mean(row, "sparsity"), "{:.3f}"),
            _number(_mean(row, "recall"), "{:.3f}"),
        ]
        for row in rows
    ]
    steps, grids = sum(base["num_steps"]), ", ".join(base["grids"])
    title = f"## DVG on {base['model']}, random weights, {steps} steps on {grids}; the same sketch for all\n\n"
    return title + _table(("arm", "s", "speed", "operations", "stages s", "sparsity", "recall"), lines)


def _mean(row: Mapping[str, Any], name: str) -> float | None:
    values = [step[name] for step in row["attended"] if step[name] is not None]
    return fmean(values) if values else None


def _recorded(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = [
        [
            row["name"],
            " ".join(_number(layer["sparsity"], "{:.3f}") for layer in row["layers"]),
            " ".join(_number(layer["recall"], "{:.3f}") for layer in row["layers"]),
            " ".join(_number(layer["best_recall"], "{:.3f}") for layer in row["layers"]),
            " ".join(_number(layer["error"], "{:.3f}") for layer in row["layers"]),
        ]
        for row in rows
    ]
    layers = ", ".join(str(layer["layer"]) for layer in rows[0]["layers"])
    title = f"## What wan-mini attends to, layers {layers}\n\n"
    return title + _table(("method", "sparsity", "recall", "most at that sparsity", "error"), lines)


def _kernel(rows: Sequence[Mapping[str, Any]]) -> str:
    found, options = of(rows, "kernel"), of(rows, "options")
    parts = []
    if found:
        lines = [
            [row["name"], *(f"{1e3 * row[name]:.2f}" for name in ("attend_s", "lists_s", "gather_s")), f"{row['speed']:.2f}x"]
            for row in found
        ]
        title = f"## FlexAttention, {found[0]['tokens']:,} tokens: random blocks of queries x keys, share kept\n\n"
        parts.append(title + _table(("blocks, density", "attention ms", "lists ms", "gathering ms", "against dense"), lines))
    if options:
        told = [[row["name"], row.get("refused") or f"{1e3 * row['attend_s']:.2f}"] for row in options]
        parts.append(_table(("setting, 128 x 128, 0.25", "ms"), told))
    return "\n".join(parts)


def _left(rows: Sequence[Mapping[str, Any]]) -> str:
    left = [f"- {row['section']}, {row.get('tokens', '')} {row['name']}: {row['left']}\n" for row in rows if "left" in row]
    return "## Not measured\n\n" + "".join(left) if left else ""
