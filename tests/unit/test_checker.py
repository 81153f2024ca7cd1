"""The checker of generated videos: right on what the renderer draws, wrong on what it did not."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.embedded.checker import ATTRIBUTES, check, classify, compare, course
from experiments.embedded.checker_motion import find_course, speed_class
from experiments.embedded.checker_validation import (
    blurred,
    compressed,
    draw,
    in_motion,
    noisy,
    softly_compressed,
    tally,
    truth,
)
from experiments.embedded.scenes import SHAPES, SPEED_CLASSES, Scene, Thing, place, sample_scene

SMALL = (21, 80, 80)
SHAPES_OF_VIDEO = [(41, 144, 144), (13, 64, 64), (17, 160, 96), (81, 72, 72), (33, 112, 128)]
OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}


def scenes(num: int, seed: int) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng) for _ in range(num)]


def mistakes(result: dict[str, bool | None]) -> list[str]:
    return [name for name, value in result.items() if value is False]


def one(shape: str = "circle", motion: str = "still", direction: str = "none", **rest: str) -> Scene:
    thing = Thing(shape, rest.get("colour", "red"), rest.get("size", "medium"), motion, direction)
    return Scene((thing,), rest.get("background", "plain"), rest.get("camera", "static"), seed=3)


@pytest.mark.parametrize("shape", SHAPES_OF_VIDEO, ids=str)
def test_every_attribute_of_a_rendered_scene_is_right_at_any_length_and_side(shape):
    for scene in scenes(8, seed=sum(shape)):
        assert mistakes(check(draw(scene, shape), scene)) == [], scene


@pytest.mark.parametrize(
    "degrade",
    [lambda video: blurred(video, 1), lambda video: noisy(video, 0.02), lambda video: compressed(video, 23)],
    ids=["blur", "noise", "h264"],
)
def test_mild_degradation_changes_nothing(degrade):
    for scene in scenes(6, seed=5):
        assert mistakes(check(degrade(draw(scene)), scene)) == [], scene


def test_small_soft_compressed_videos_are_still_at_least_95_percent_right():
    counts = tally(check(softly_compressed(draw(scene, SMALL)), scene) for scene in scenes(20, seed=6))
    assert all(right >= 0.95 * seen for right, seen in counts.values()), counts


def test_another_scenes_video_passes_only_where_the_two_scenes_agree():
    asked = scenes(16, seed=7)
    for shown, scene in zip(asked[1:], asked[:-1], strict=True):
        assert check(draw(shown, SMALL), scene) == compare(truth(shown), scene), (shown, scene)


def test_a_frozen_video_fails_everything_that_moves():
    for scene in map(in_motion, scenes(8, seed=8)):
        video = draw(scene, SMALL)
        result = check(np.repeat(video[:1], len(video), axis=0), scene)
        assert not result["direction"]
        assert not result["speed"]
        assert not result["camera"]


@pytest.mark.parametrize("level", [0, 120, 255])
def test_an_empty_video_has_nothing_right(level):
    video = np.full((*SMALL, 3), level, np.uint8)
    for scene in scenes(20, seed=9):
        assert not any(check(video, scene).values())


@pytest.mark.parametrize("level", [0, 120, 255])
def test_white_noise_has_nothing_right(level):
    video = noisy(np.full((*SMALL, 3), level, np.uint8), 0.5, seed=level)
    assert classify(video).things == ()
    for scene in scenes(20, seed=10):
        assert not any(check(video, scene).values())


@pytest.mark.parametrize("direction", OPPOSITE)
@pytest.mark.parametrize("motion", ["drift", "travel"])
def test_a_video_played_backwards_goes_the_opposite_way_at_the_same_speed(motion, direction):
    scene = one(motion=motion, direction=direction, background="noise", camera="slow pan left")
    backwards = draw(scene, SMALL)[::-1]
    turned = one(motion=motion, direction=OPPOSITE[direction], background="noise", camera="slow pan right")
    assert mistakes(check(backwards, scene)) == ["direction", "camera"]
    assert mistakes(check(backwards, turned)) == []


def test_half_of_a_travel_is_not_fast_enough_to_be_right_at_a_quarter_of_its_speed():
    scene = one(motion="travel", direction="left")
    quarter = np.repeat(draw(scene, (41, 80, 80))[:11], 4, axis=0)
    assert mistakes(check(quarter, scene)) == ["speed"]


@pytest.mark.parametrize("motion", ["bounce", "orbit", "still"])
def test_courses_that_return_are_told_apart_from_straight_ones(motion):
    (seen,) = classify(draw(one(motion=motion), SMALL)).things
    assert (seen.course, seen.speed) == (course(one(motion=motion).things[0]), SPEED_CLASSES[motion])


def test_traits_swapped_between_two_things_are_wrong_though_each_is_there():
    asked = Scene((Thing("circle", "red", "small", "still"), Thing("square", "blue", "large", "still")), "bricks", seed=1)
    swapped = replace(asked, things=(replace(asked.things[0], shape="square"), replace(asked.things[1], shape="circle")))
    assert mistakes(check(draw(swapped, SMALL), asked)) == ["shape"]


def test_a_thing_too_many_or_too_few_is_wrong():
    pair = Scene((Thing("circle", "red", "medium", "still"), Thing("circle", "blue", "medium", "still")), "noise", seed=1)
    single = replace(pair, things=pair.things[:1])
    assert mistakes(check(draw(pair, SMALL), single)) == ["colour"]
    assert {"colour", "shape", "size"} <= set(mistakes(check(draw(single, SMALL), pair)))


def test_a_second_thing_of_the_same_colour_is_wrong():
    video = draw(one(motion="still", background="plain"), SMALL)
    (seen,) = classify(video).things
    twice = np.roll(video, 30 if seen.centre[0] < 0.5 else -30, axis=2)
    red = video[..., 0].astype(int) - video[..., 1] > 60
    twice = np.where(red[..., None], video, twice)
    assert mistakes(check(twice, one())) == ["colour"]


def test_a_thing_that_is_gone_half_of_the_time_is_not_there():
    there, gone = draw(one(), SMALL), draw(one(colour="blue"), SMALL)
    assert not check(np.concatenate([there[:11], gone[11:]]), one())["colour"]


def test_direction_of_a_still_thing_and_camera_before_a_plain_wall_are_not_judged():
    result = check(draw(one(), SMALL), one())
    assert result["direction"] is None
    assert result["camera"] is None
    assert tuple(result) == ATTRIBUTES


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_of_uneven_colour_is_one_thing(shape):
    video = draw(one(shape, colour="orange"), SMALL).astype(int)
    orange = video[..., 0] - video[..., 2] > 60
    video[..., 1] += np.where(orange & (np.arange(80) % 2 == 0), 80, 0)  # every other column towards yellow
    seen = classify(video.clip(0, 255).astype(np.uint8)).things
    assert [thing.shape for thing in seen] == [shape]


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), num_frames=st.integers(13, 81), jitter=st.floats(0, 0.012))
def test_jittered_tracks_keep_their_course_and_speed_class(seed, num_frames, jitter):
    (scene,) = scenes(1, seed)
    times = np.linspace(0, 1, num_frames)
    for thing, placed in zip(scene.things, place(scene), strict=True):
        track = np.array([placed.at(time) for time in times]) + np.random.default_rng(seed).normal(0, jitter, (num_frames, 2))
        found, path_length = find_course(track, times)
        assert (found, speed_class(path_length)) == (course(thing), SPEED_CLASSES[thing.motion])


def test_an_erratic_track_follows_no_course():
    times = np.linspace(0, 1, 41)
    zigzag = np.stack([0.5 + 0.3 * np.sin(2 * np.pi * 3 * times), 0.5 + 0.3 * np.cos(2 * np.pi * 5 * times)], 1)
    assert find_course(zigzag, times)[0] == "other"


@pytest.mark.parametrize(
    "video",
    [
        np.zeros((41, 64, 64, 3)),
        np.zeros((41, 3, 64, 64), np.uint8),
        np.zeros((4, 64, 64, 3), np.uint8),
        np.zeros((64, 64, 3), np.uint8),
    ],
    ids=["float", "channels first", "too short", "an image"],
)
def test_anything_but_a_uint8_video_is_refused_by_name(video):
    with pytest.raises(ValueError, match=r"must be uint8 \[at least 5, height, width, 3\]"):
        classify(video)


def test_a_video_of_one_saturated_colour_is_judged_without_failing():
    video = np.zeros((*SMALL, 3), np.uint8)
    video[..., 0] = 255
    for scene in scenes(6, seed=11):
        assert not any(check(video, scene).values())
