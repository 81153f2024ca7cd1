"""First frames beside models and planners that take none: told before anything runs, with what to take instead."""

from __future__ import annotations

import pathlib

import pytest
from PIL import Image

from orchestrator.arms import Arm
from orchestrator.images import NONE, FirstFrames
from orchestrator.resolve import resolve_arm

TAKES_ONE = "wan2.2-ti2v-5b"


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    Image.new("RGB", (8, 8)).save(tmp_path / "first.png")
    return tmp_path


def arm(planner: str) -> Arm:
    mistakes: list[str] = []
    asked = {"model": TAKES_ONE, "device_name": "NVIDIA H200", "planner": planner, "frames": 241}
    found = resolve_arm("long", asked, mistakes, False)
    assert mistakes == []
    assert found is not None
    return found


def test_a_planner_of_videos_of_text_alone_is_refused_with_a_first_frame_once_for_all_prompts(folder: pathlib.Path) -> None:
    mistakes: list[str] = []
    frames = FirstFrames(folder, mistakes)
    assert [frames.find(arm("dualparal"), prompt, "first.png") for prompt in ("one", "two")] == [NONE, NONE]
    (line,) = mistakes
    assert line.startswith("arm long: planner dualparal makes videos of text alone")
    assert line.endswith("drop image 'first.png', or take another planner")


def test_the_same_planner_without_one_and_others_with_one_go_on(folder: pathlib.Path) -> None:
    mistakes: list[str] = []
    frames = FirstFrames(folder, mistakes)
    assert frames.find(arm("dualparal"), "one", None) == NONE
    assert frames.find(arm("dvg"), "one", "first.png")[0] == str((folder / "first.png").resolve())
    assert mistakes == []
