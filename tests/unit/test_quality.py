"""PSNR and SSIM against the reference arm."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.metrics.quality import FRAMES_AT_ONCE, PSNR_CAP_DB, compare, load_quality, measure_quality, quality_rows
from orchestrator.paths import RunPaths
from orchestrator.types import Record
from tests.fakerun import make_record, moving_square


def test_identical_videos_have_ssim_one_and_the_highest_finite_psnr() -> None:
    video = moving_square(noise=20)
    figures = compare(video, video.copy())
    assert figures["psnr"] == PSNR_CAP_DB
    assert figures["ssim"] == pytest.approx(1.0, abs=1e-6)


def test_psnr_of_a_constant_offset_is_its_closed_form() -> None:
    dark = np.full((3, 32, 32, 3), 100, np.uint8)
    assert compare(dark + 10, dark)["psnr"] == pytest.approx(20 * np.log10(255 / 10), abs=1e-3)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 20), st.integers(21, 60))
def test_more_noise_is_never_closer_to_the_reference(low: int, high: int) -> None:
    clean = moving_square(4)
    near, far = (compare(moving_square(4, noise=noise), clean) for noise in (low, high))
    assert near["psnr"] > far["psnr"]
    assert near["ssim"] > far["ssim"]


def test_figures_do_not_depend_on_how_frames_are_grouped() -> None:
    clean, noisy = moving_square(2 * FRAMES_AT_ONCE + 1), moving_square(2 * FRAMES_AT_ONCE + 1, noise=30)
    frames = [compare(noisy[i : i + 1], clean[i : i + 1]) for i in range(len(clean))]
    for name, value in compare(noisy, clean).items():
        assert value == pytest.approx(np.mean([frame[name] for frame in frames]), abs=1e-4)


@pytest.mark.parametrize(
    "other",
    [moving_square(8), moving_square(9, size=32), moving_square(9).astype(np.float32), moving_square(9)[..., :1]],
)
def test_videos_that_cannot_be_compared_are_refused(other: np.ndarray) -> None:
    with pytest.raises(ValueError, match="both must be"):
        compare(other, moving_square(9) if other.shape[-1] == 3 else moving_square(9)[..., :1])


def test_rows_pair_each_video_with_the_reference_of_the_same_prompt_seed_and_shape() -> None:
    records = [make_record(arm, prompt, seed) for arm in ("full", "dvg") for prompt in ("orbit", "drift") for seed in (0, 1)]
    records += [make_record("dvg", "bounce"), make_record("tall", "orbit", height=96)]
    read: list[str] = []

    def read_video(record: Record) -> np.ndarray:
        read.append(record.item_key)
        return moving_square(2, noise=5 if record.arm == "dvg" else 0)

    rows = list(quality_rows(records, "full", read_video))
    assert [(row["arm"], row["prompt_id"], row["seed"]) for row in rows] == [
        ("dvg", "drift", 0),
        ("dvg", "drift", 1),
        ("dvg", "orbit", 0),
        ("dvg", "orbit", 1),
    ]
    assert {row["reference_arm"] for row in rows} == {"full"}
    assert len(read) == len(set(read)) == 8


def test_measured_rows_are_kept_and_only_a_video_made_again_is_measured_again(tmp_path: Path) -> None:
    records = [make_record(arm, prompt) for arm in ("full", "dvg") for prompt in ("orbit", "drift")]
    paths = RunPaths(tmp_path)
    reads: list[Path] = []

    def read_video(path: Path) -> np.ndarray:
        reads.append(path)
        return moving_square(2, noise=len(reads))

    first = measure_quality(paths, records, "full", read_video)
    with paths.quality.open("a") as file:
        file.write('{"item_key": "torn')
    assert measure_quality(paths, records, "full", read_video) == first
    assert len(reads) == 4
    records[2] = dataclasses.replace(records[2], sha256="made again")
    again = measure_quality(paths, records, "full", read_video)
    assert len(reads) == 6
    assert sorted(row["sha256"] for row in again) == sorted(r.sha256 for r in records[2:])
    assert [row["item_key"] for row in load_quality(paths)] == [row["item_key"] for row in again]
