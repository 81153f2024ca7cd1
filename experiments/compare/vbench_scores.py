"""VBench's results of a run: scores and totals of each arm, and the figures of single videos that can be paired."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare.stats import Values
from experiments.metrics.names import Metric
from experiments.vbench.arm_videos import ArmVideos, Key, read_arm
from experiments.vbench.names import stems_of
from experiments.vbench.results import dimension_of, load_all
from experiments.vbench.score import totals
from experiments.vbench.view import CUSTOM
from orchestrator.paths import RunPaths, file_name
from orchestrator.prompts import prompt_id
from orchestrator.types import Record

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


def read(paths: RunPaths, records: Sequence[Record]) -> tuple[Scores, Mapping[str, Mapping[str, Values]]]:
    """(scores and totals, figures of single videos), each by arm and metric. Raises ConfigError for a file that is wrong."""
    scores: dict[str, dict[str, float]] = {}
    videos: dict[str, dict[str, Values]] = {}
    names = {file_name(record.arm): record.arm for record in records}
    for suite, by_arm in load_all(paths.root).items():
        for file, raw in by_arm.items():
            arm = names.get(file, file)
            scores.setdefault(arm, {}).update(named(raw, suite))
            if file in names and paths.config.is_file():
                keys = numbered(read_arm(paths, arm, records), suite)
                videos.setdefault(arm, {}).update(_of_videos(paths.vbench_results(suite, file), suite, keys))
    return scores, videos


def named(raw: Mapping[str, float], suite: str) -> dict[str, float]:
    """The totals there are, then the raw scores."""
    summed = totals(raw, suite)
    known = {name: value for name in TOTALS if (value := getattr(summed, name)) is not None}
    return {f"{prefix(suite)}.{name}": value for name, value in (known | summed.dimensions).items()}


def numbered(made: ArmVideos, suite: str) -> dict[tuple[str, int], Key]:
    """Prompt id and seed by what stands for the prompt in file names and the video's number, which is its seed's place in the
    run's own spec: see :mod:`experiments.vbench.view`, whose names these are."""
    if suite == CUSTOM:
        ids = {stem: name for name, stem in stems_of({name: asked.prompt for name, asked in made.asked.items()}).items()}
    else:
        ids = {asked.prompt: name for name, asked in reversed(made.asked.items())}
        ids |= {asked.prompt: name for name, asked in made.asked.items() if name == _usual_id(made, name)}
    return {(stem, number): (name, seed) for stem, name in ids.items() for number, seed in enumerate(made.asked[name].seeds)}


def _usual_id(made: ArmVideos, name: str) -> str:
    """What a suite's prompt is called where a spec does not say otherwise."""
    asked = made.asked[name]
    image = next((r.image for seed in asked.seeds if (r := made.records.get((name, seed))) and r.image), None)
    return prompt_id(asked.prompt, Path(image).name if image else None)


def _of_videos(path: Path, suite: str, keys: Mapping[tuple[str, int], Key]) -> dict[str, Values]:
    """By metric, for the dimensions whose file gives one number for each video."""
    data: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    found: dict[str, Values] = {}
    for name, entry in data.items():
        rows = entry[1] if isinstance(entry, list) and len(entry) > 1 and isinstance(entry[1], list) else []
        share = 100.0 if dimension_of(name) in _PER_CENT else 1.0
        values = {_number(row): float(row["video_results"]) / share for row in rows if _is_number(row)}
        if values and len(values) == len(rows):
            ours = {keys[number]: value for number, value in values.items() if number in keys}
            found[f"{prefix(suite)}.{dimension_of(name)}"] = ours
    return found


def _is_number(row: Any) -> bool:
    return isinstance(row, dict) and "video_path" in row and isinstance(row.get("video_results"), int | float)


def _number(row: Mapping[str, Any]) -> tuple[str, int]:
    """What stands for the prompt, and the number, of ``.../a red circle-3.mp4``."""
    stem = Path(str(row["video_path"])).stem
    match = re.fullmatch(r"(.*)-(\d+)", stem, re.DOTALL)
    return (match[1], int(match[2])) if match else (stem, 0)
