"""A dimension's score from VBench's records of its videos, by the sums that its functions make: sharded equals whole.

``single_process`` is what VBench's ``evaluate`` gives in one process, and the default. ``official_torchrun`` is what its torchrun
mode gives: it weighs subject consistency by video, and appearance style by each video's last frame alone.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.mistakes import unknown

Record = Mapping[str, Any]
Reducer = Callable[[Sequence[Record]], float]
SINGLE_PROCESS, OFFICIAL_TORCHRUN = "single_process", "official_torchrun"
MODES = (SINGLE_PROCESS, OFFICIAL_TORCHRUN)


def reduce(dimension: str, records: Sequence[Record], mode: str = SINGLE_PROCESS) -> float:
    """The score of ``records``, in the order of VBench's work list. Raises ValueError without any, or for an unknown mode."""
    if mode not in MODES:
        raise ValueError(unknown("reduction", mode, MODES))
    if not records:
        raise ValueError(f"{dimension}: no video was measured, so there is no score")
    reducer = _SINGLE_PROCESS if mode == SINGLE_PROCESS else _OFFICIAL_TORCHRUN
    return float(reducer.get(dimension, _mean)(records))


def _sum(values: Iterable[float]) -> float:
    """One after another, as VBench adds them; Python 3.12's own ``sum`` corrects for rounding."""
    return float(functools.reduce(operator.add, values, 0))


def _values(records: Sequence[Record]) -> list[Any]:
    return [record["video_results"] for record in records]


def _mean(records: Sequence[Record]) -> float:
    return float(np.mean(_values(records)))


def _running_mean(records: Sequence[Record]) -> float:
    return _sum(_values(records)) / len(records)


def _percent(records: Sequence[Record]) -> float:
    """Imaging quality's records are 0 to 100, its score 0 to 1."""
    return _running_mean(records) / 100.0


def _ratio(part: str, whole: str) -> Reducer:
    return lambda records: _sum(record[part] for record in records) / _sum(record[whole] for record in records)


def _by_pairs(records: Sequence[Record]) -> float:
    """Every pair of neighbouring frames counts once, so that a longer video weighs more."""
    pairs = [record["num_frames"] - 1 for record in records]
    return _sum(record["video_results"] * number for record, number in zip(records, pairs, strict=True)) / _sum(pairs)


def _by_frames(records: Sequence[Record]) -> float:
    return float(np.mean([value for record in records for value in record["frame_results"]]))


def _running_by_frames(records: Sequence[Record]) -> float:
    values = [value for record in records for value in record["frame_results"]]
    return _sum(values) / len(values)


def _last_frames(records: Sequence[Record]) -> float:
    return _sum(record["cur_sim"] for record in records) / len(records)


_SHARED: dict[str, Reducer] = {
    "background_consistency": _ratio("video_sim", "cnt_per_video"),
    "imaging_quality": _percent,
    "object_class": _ratio("success_frame_count", "frame_count"),
    "multiple_objects": _ratio("success_frame_count", "frame_count"),
    "scene": _ratio("success_frame_count", "frame_count"),
    "color": _running_mean,
    "aesthetic_quality": _running_mean,
}
_SINGLE_PROCESS: dict[str, Reducer] = {
    **_SHARED,
    "subject_consistency": _by_pairs,
    "human_action": lambda records: _sum(record["cor_num_per_video"] for record in records) / len(records),
    "spatial_relationship": _by_frames,
    "appearance_style": _running_by_frames,
}
"""The rest take numpy's mean of ``video_results``."""
_OFFICIAL_TORCHRUN: dict[str, Reducer] = {
    **dict.fromkeys(
        ("temporal_flickering", "motion_smoothness", "dynamic_degree", "temporal_style", "overall_consistency"), _running_mean
    ),
    **_SHARED,
    "subject_consistency": _running_mean,
    "human_action": _SINGLE_PROCESS["human_action"],
    "spatial_relationship": _running_mean,
    "appearance_style": _last_frames,
}
