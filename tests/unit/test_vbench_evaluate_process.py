"""A process of another environment that measures: warm, and never the end of anybody else's work."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest

from experiments.vbench import process
from experiments.vbench.process import Runtime, Unavailable, VBenchWorker
from experiments.vbench.surroundings import environment
from tests.fakevbench import BROKEN, loads, write_environment, write_videos, write_weights


@pytest.fixture
def runtime(tmp_path: Path) -> Runtime:
    """With the weights of what the tests load."""
    names = ("motion_smoothness", "imaging_quality", "overall_consistency", "human_action", BROKEN)
    write_weights(tmp_path / "cache", *names)
    found = write_environment(tmp_path / "env")
    return dataclasses.replace(found, environment={"VBENCH_CACHE_DIR": str(tmp_path / "cache")})


@pytest.fixture
def worker(runtime: Runtime) -> Iterator[VBenchWorker]:
    found = VBenchWorker(runtime)
    yield found
    found.close()


def scores(worker: VBenchWorker, folder: Path, contents: list[str], dimension: str = "temporal_flickering") -> list[object]:
    rows = worker.score(dimension, write_videos(folder, contents)).rows
    return [row.failed if row.record is None else row.record["video_results"] for row in rows]


def test_a_model_is_loaded_once_for_all_shards_of_its_dimension(worker: VBenchWorker, tmp_path: Path) -> None:
    assert scores(worker, tmp_path / "a", ["0.25", "0.5"]) == [0.25, 0.5]
    assert scores(worker, tmp_path / "b", ["0.75"]) == [0.75]
    assert loads(tmp_path / "env") == ["temporal_flickering"]
    assert scores(worker, tmp_path / "b", ["0.75"], "motion_smoothness") == [0.75]
    assert loads(tmp_path / "env") == ["temporal_flickering", "motion_smoothness"]


def test_a_video_that_raises_or_has_no_frame_is_told_and_the_others_are_measured(worker: VBenchWorker, tmp_path: Path) -> None:
    found = scores(worker, tmp_path / "a", ["0.25", "bad", "none", "nan", "0.5"])
    assert found[0] == 0.25
    assert found[-1] == 0.5
    assert found[1] == "RuntimeError: moov atom not found"
    assert "no frame" in str(found[2])
    assert "two frames" in str(found[3])


def test_a_video_that_ends_the_process_is_named_after_a_second_try_and_the_others_are_measured(
    worker: VBenchWorker, tmp_path: Path
) -> None:
    found = scores(worker, tmp_path / "a", ["0.25", "crash", "0.5"])
    assert found[0] == 0.25
    assert found[2] == 0.5
    assert "exit code 7" in str(found[1])
    assert "Segmentation fault" in str(found[1])
    assert len(loads(tmp_path / "env")) == 3


def test_a_process_that_says_nothing_is_not_waited_for(
    worker: VBenchWorker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "VIDEO_TIMEOUT_S", 0.5)
    found = scores(worker, tmp_path / "a", ["hang", "0.5"])
    assert "said nothing" in str(found[0])
    assert found[1] == 0.5


def test_a_dimension_that_cannot_be_loaded_says_why(worker: VBenchWorker, tmp_path: Path) -> None:
    videos = write_videos(tmp_path / "a", ["0.5"])
    with pytest.raises(Unavailable, match="weights of another network"):
        worker.score(BROKEN, videos)
    with pytest.raises(Unavailable, match=r"No module named 'vbench\.imaging_quality'"):
        worker.score("imaging_quality", videos)
    with pytest.raises(Unavailable, match="does not measure"):
        worker.score("camera_motion", videos)
    assert worker.score("temporal_flickering", videos).rows[0].record is not None


def test_an_interpreter_that_is_not_there_is_named(runtime: Runtime, tmp_path: Path) -> None:
    worker = VBenchWorker(dataclasses.replace(runtime, python=str(tmp_path / "nowhere")))
    with pytest.raises(Unavailable, match="nowhere cannot be run"):
        worker.score("temporal_flickering", write_videos(tmp_path / "a", ["0.5"]))


def test_bytes_that_are_not_those_recorded_and_files_that_are_gone_are_not_measured(worker: VBenchWorker, tmp_path: Path) -> None:
    true, cut, gone = write_videos(tmp_path / "a", ["0.25", "0.5", "0.75"])
    digest = hashlib.sha256(b"0.25").hexdigest()
    Path(gone.path).unlink()
    videos = [dataclasses.replace(true, sha256=digest), dataclasses.replace(cut, sha256=digest), gone]
    rows = worker.score("temporal_flickering", videos).rows
    assert rows[0].record is not None
    assert "recorded" in str(rows[1].failed)
    assert "not there" in str(rows[2].failed)


def test_a_dimension_of_prompts_gets_the_prompt_and_what_it_must_know_beside_it(worker: VBenchWorker, tmp_path: Path) -> None:
    (video,) = write_videos(tmp_path / "a", ["0.5"])
    (row,) = worker.score("overall_consistency", [dataclasses.replace(video, auxiliary={"style": "oil"})]).rows
    assert row.record is not None
    assert row.record["prompt"] == "clip 0"
    assert row.record["auxiliary"] == {"style": "oil"}


@pytest.mark.parametrize("flaw", ["bad", "crash"])
def test_a_function_that_loads_its_model_at_each_call_still_names_the_one_bad_video(
    flaw: str, worker: VBenchWorker, tmp_path: Path
) -> None:
    found = scores(worker, tmp_path / "a", ["1", flaw, "0"], "human_action")
    assert [found[0], found[2]] == [1.0, 0.0]
    assert isinstance(found[1], str)


def test_files_that_the_workers_own_node_lacks_are_told_with_the_node_and_no_process_is_started(
    worker: VBenchWorker, tmp_path: Path
) -> None:
    (tmp_path / "cache/amt_model/amt-s.pth").unlink()
    with pytest.raises(Unavailable, match=f"{platform.node()} has no AMT-S at .*amt-s.pth") as told:
        worker.score("motion_smoothness", write_videos(tmp_path / "a", ["0.5"]))
    assert "huggingface.co" in str(told.value)
    assert not loads(tmp_path / "env")


def test_one_thread_is_told_to_every_library_that_has_its_own_say(runtime: Runtime) -> None:
    found = environment(dataclasses.replace(runtime, threads=3), "temporal_flickering", {"OMP_NUM_THREADS": "64"})
    told = {name: value for name, value in found.items() if name.endswith(("_NUM_THREADS", "_FFMPEG_THREADS"))}
    assert set(told.values()) == {"3"}
    assert {"OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OPENCV_FFMPEG_THREADS"} <= set(told)


def test_freed_frames_are_kept_for_the_next_unless_somebody_says_otherwise(runtime: Runtime) -> None:
    assert int(environment(runtime, "temporal_flickering", {})["MALLOC_TRIM_THRESHOLD_"]) > int(
        environment(runtime, "temporal_flickering", {})["MALLOC_MMAP_THRESHOLD_"]
    )
    assert environment(runtime, "temporal_flickering", {"MALLOC_TRIM_THRESHOLD_": "7"})["MALLOC_TRIM_THRESHOLD_"] == "7"


def test_workers_fetch_nothing_and_see_no_gpu_unless_they_have_one(runtime: Runtime) -> None:
    found = environment(runtime, "motion_smoothness", {"CUDA_VISIBLE_DEVICES": "3", "PYTHONHOME": "x", "HOME": "h"})
    assert found["CUDA_VISIBLE_DEVICES"] == ""
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "PYTHONHOME" not in found
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in environment(runtime, "temporal_flickering", {})
    with_gpu = environment(dataclasses.replace(runtime, device="cuda"), "temporal_flickering", {"CUDA_VISIBLE_DEVICES": "3"})
    assert with_gpu["CUDA_VISIBLE_DEVICES"] == "3"
