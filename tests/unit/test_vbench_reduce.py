"""Scores from records: VBench's own arithmetic, and where its torchrun mode differs."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.vbench.dimensions import TABLE
from experiments.vbench.reduce import MODES, OFFICIAL_TORCHRUN, reduce

Values = st.lists(st.floats(0, 1), min_size=1, max_size=40)


def records(values: list[float]) -> list[dict[str, Any]]:
    """With everything that any dimension's records hold."""
    chance = random.Random(7)
    return [record(value, chance.randint(2, 20)) for value in values]


def record(value: float, frames: int) -> dict[str, Any]:
    per_frame = [value + 0.01 * index for index in range(frames)]
    return {
        "video_results": value,
        "num_frames": frames,
        "video_sim": value * (frames - 1),
        "cnt_per_video": frames - 1,
        "success_frame_count": round(value * frames),
        "frame_count": frames,
        "cur_success_frame_rate": value,
        "cor_num_per_video": int(value > 0.5),
        "frame_results": per_frame,
        "cur_sim": per_frame[-1],
    }


def test_every_dimension_has_a_score_in_both_modes() -> None:
    for dimension in TABLE:
        for mode in MODES:
            assert 0 <= reduce(dimension, records([0.25, 0.75]), mode) <= 2


@given(Values)
def test_plain_dimensions_are_numpys_mean(values: list[float]) -> None:
    for dimension in ("temporal_flickering", "motion_smoothness", "dynamic_degree", "temporal_style", "overall_consistency"):
        assert reduce(dimension, records(values)) == np.mean(values)


def test_dynamic_degree_counts_the_videos_that_move() -> None:
    assert reduce("dynamic_degree", [{"video_results": moves} for moves in (True, False, True, True)]) == 0.75


@given(Values)
def test_consistency_counts_every_pair_of_frames_once(values: list[float]) -> None:
    found = records(values)
    pairs = [similarity for row in found for similarity in [row["video_results"]] * (row["num_frames"] - 1)]
    assert reduce("subject_consistency", found) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert reduce("background_consistency", found) == pytest.approx(np.mean(pairs), abs=1e-12)


@given(Values)
def test_detections_count_frames(values: list[float]) -> None:
    found = records(values)
    expected = sum(row["success_frame_count"] for row in found) / sum(row["frame_count"] for row in found)
    for dimension in ("object_class", "multiple_objects", "scene"):
        assert reduce(dimension, found) == expected


def test_imaging_quality_is_a_hundredth_of_its_records() -> None:
    assert reduce("imaging_quality", [{"video_results": 60.0}, {"video_results": 70.0}]) == 0.65


def test_color_is_the_mean_of_the_videos_that_showed_their_object() -> None:
    assert reduce("color", [{"video_results": 1.0}, {"video_results": 0.5}]) == 0.75


def test_style_and_place_count_frames_and_not_videos() -> None:
    found = [{"video_results": 1.0, "frame_results": [1.0] * 3}, {"video_results": 0.0, "frame_results": [0.0]}]
    assert reduce("appearance_style", found) == 0.75
    assert reduce("spatial_relationship", found) == 0.75


def test_torchrun_differs_in_three_dimensions_as_its_code_does() -> None:
    short, long = record(1.0, 2), record(0.0, 5)
    assert reduce("subject_consistency", [short, long]) == 0.2
    assert reduce("subject_consistency", [short, long], OFFICIAL_TORCHRUN) == 0.5
    last = (short["frame_results"][-1] + long["frame_results"][-1]) / 2
    assert reduce("appearance_style", [short, long], OFFICIAL_TORCHRUN) == pytest.approx(last)
    assert reduce("spatial_relationship", [short, long], OFFICIAL_TORCHRUN) == 0.5


@given(Values)
def test_both_modes_agree_on_the_rest(values: list[float]) -> None:
    found = records(values)
    for dimension in set(TABLE) - {"subject_consistency", "appearance_style", "spatial_relationship"}:
        assert reduce(dimension, found, OFFICIAL_TORCHRUN) == pytest.approx(reduce(dimension, found), abs=1e-12)


def test_no_record_and_unknown_modes_are_refused() -> None:
    with pytest.raises(ValueError, match="no video was measured"):
        reduce("color", [])
    with pytest.raises(ValueError, match="single_process, official_torchrun"):
        reduce("color", records([1.0]), "torchrun")
