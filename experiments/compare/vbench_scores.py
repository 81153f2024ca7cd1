"""VBench's results of a run: scores and totals of each arm, and the figures of single videos that can be paired."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from experiments.compare.stats import Values
from experiments.metrics.names import Metric
from experiments.vbench.results import dimension_of, load_all
from experiments.vbench.score import totals
from orchestrator.paths import RunPaths, file_name

VBENCH = "vbench"
TOTALS = ("quality", "semantic", "i2v", "total")
_PER_CENT = frozenset({"imaging_quality"})
"""Dimensions whose single videos VBench scores from 0 to 100."""

Scores = Mapping[str, Mapping[str, float]]
"""By arm and metric, named as in MLflow: ``vbench.<dimension or total>``, of other suites ``vbench.<suite>.<...>``."""


def prefix(suite: str) -> str:
    return VBENCH if suite == VBENCH else f"{VBENCH}.{suite.removeprefix('vbench-')}"


def metric(name: str) -> Metric:
    """Every one is better when higher."""
    suite, _, dimension = name.rpartition(".")
    kind = "total" if dimension in TOTALS else "raw score"
    label = name.replace(VBENCH, "VBench", 1).replace(".", " ").replace("_", " ")
    return Metric("", "higher", False, f"{kind} of {suite}, as VBench reports it", label, "{:.4f}")


def read(folder: Path, arms: Iterable[str]) -> tuple[Scores, Mapping[str, Mapping[str, Values]]]:
    """(scores and totals, figures of single videos), each by arm and metric. Raises ConfigError for a file that is wrong."""
    scores: dict[str, dict[str, float]] = {}
    videos: dict[str, dict[str, Values]] = {}
    names = {file_name(arm): arm for arm in arms}
    for suite, by_arm in load_all(folder).items():
        for file, raw in by_arm.items():
            arm = names.get(file, file)
            scores.setdefault(arm, {}).update(named(raw, suite))
            videos.setdefault(arm, {}).update(_of_videos(RunPaths(folder).vbench_results(suite, file), suite))
    return scores, videos


def named(raw: Mapping[str, float], suite: str) -> dict[str, float]:
    """The totals there are, then the raw scores."""
    summed = totals(raw, suite)
    known = {name: value for name in TOTALS if (value := getattr(summed, name)) is not None}
    return {f"{prefix(suite)}.{name}": value for name, value in (known | summed.dimensions).items()}


def _of_videos(path: Path, suite: str) -> dict[str, Values]:
    """By metric, for the dimensions whose file gives one number for each video."""
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    found: dict[str, Values] = {}
    for name, entry in data.items():
        rows = entry[1] if isinstance(entry, list) and len(entry) > 1 and isinstance(entry[1], list) else []
        share = 100.0 if dimension_of(name) in _PER_CENT else 1.0
        values = {_video_key(row): float(row["video_results"]) / share for row in rows if _is_number(row)}
        if values and len(values) == len(rows):
            found[f"{prefix(suite)}.{dimension_of(name)}"] = values
    return found


def _is_number(row: Any) -> bool:
    return isinstance(row, dict) and "video_path" in row and isinstance(row.get("video_results"), int | float)


def _video_key(row: Mapping[str, Any]) -> tuple[str, int]:
    """Prompt and number of ``.../a red circle-3.mp4``."""
    stem = Path(str(row["video_path"])).stem
    match = re.fullmatch(r"(.*)-(\d+)", stem, re.DOTALL)
    return (match[1], int(match[2])) if match else (stem, 0)
