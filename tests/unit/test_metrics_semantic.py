"""Whether videos of wan-mini show what their prompts say: prompts read back, rendered scenes seen, what is left open."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.embedded.captions import EXAMPLE, caption
from experiments.embedded.checker import check
from experiments.embedded.checker_validation import draw
from experiments.embedded.scenes import Scene, Thing, held_out_scenes, sample_scene
from experiments.metrics.names import ATTRIBUTES
from experiments.metrics.semantic import Semantic, asked, why_not


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 2**32))
def test_a_caption_is_read_back_into_its_scene(seed: int) -> None:
    scene = sample_scene(random.Random(seed))
    found = asked(caption(scene))
    assert found is not None
    assert replace(found.scene, seed=scene.seed, wording=scene.wording) == scene
    still, plain = all(thing.motion == "still" for thing in scene.things), scene.background == "plain"
    unseen = {*(["direction"] if still else []), *(["camera"] if plain else [])}
    assert found.judged == set(ATTRIBUTES) - unseen


@pytest.mark.parametrize(
    "prompt, left_open",
    [
        (EXAMPLE, set()),
        ("A huge red ball rests before BRICKS", {"direction"}),
        ("a red circle on a brick wall", {"size", "direction", "speed"}),
        ("a small red circle and a blue square on noise, the camera is still", {"size", "direction", "speed"}),
        ("a small red circle drifts left", {"background", "camera"}),
    ],
)
def test_what_a_prompt_does_not_say_is_not_judged(prompt: str, left_open: set[str]) -> None:
    found = asked(prompt)
    assert found is not None
    assert set(ATTRIBUTES) - found.judged == left_open
    assert set(why_not("wan-mini", prompt, 41)) == left_open


@pytest.mark.parametrize("prompt", ["a cat surfing", "a red circle and a red square on noise", "red green blue", ""])
def test_prompts_that_name_no_scene_are_told_so(prompt: str) -> None:
    assert asked(prompt) is None
    assert set(why_not("wan-mini", prompt, 41)) == set(ATTRIBUTES)
    with pytest.raises(ValueError, match="does not name"):
        Semantic(ATTRIBUTES, prompt, 41)


def test_only_the_embedded_model_s_videos_of_some_length_are_judged() -> None:
    assert set(why_not("hunyuanvideo", EXAMPLE, 41)) == set(why_not("wan-mini", EXAMPLE, 4)) == set(ATTRIBUTES)


@pytest.mark.parametrize("num_frames", [21, 61])
def test_rendered_scenes_are_judged_as_the_checker_judges_them_whole_however_the_frames_are_cut(num_frames: int) -> None:
    for scene in held_out_scenes()[:3]:
        video = draw(scene, (num_frames, 96, 96))
        meter = Semantic(ATTRIBUTES, caption(scene), num_frames)
        for run in np.array_split(video, 7):
            meter.add(run)
        expected = {f"semantic_{name}": float(seen) for name, seen in check(video, scene).items() if seen is not None}
        assert meter.values() == expected


def test_a_video_of_another_scene_fails_in_what_differs_and_only_there() -> None:
    shown = Scene((Thing("circle", "red", "large", "travel", "left"),), "bricks", seed=3)
    video = draw(shown, (41, 144, 144))
    meter = Semantic(ATTRIBUTES, "a large blue circle travels fast to the right on a striped background", 41)
    meter.add(video)
    wrong = {"semantic_colour", "semantic_direction", "semantic_background"}
    assert {name for name, value in meter.values().items() if value == 0.0} == wrong
