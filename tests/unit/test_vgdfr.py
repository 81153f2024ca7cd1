"""VGDFR's frame schedule by arithmetic alone: windows, bisection, what is left, and what it costs."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator import vgdfr
from orchestrator.actions import density_executed
from orchestrator.geometry import model
from orchestrator.types import Merged, VideoShape


def alike(num_frames: int, value: float = 0.95) -> list[list[float]]:
    return [[value] * (num_frames - d) for d in (1, 2, 3)]


def but(num_frames: int, distance: int, frame: int, value: float = 0.1) -> list[list[float]]:
    """All alike, except two frames."""
    found = alike(num_frames)
    found[distance - 1][frame] = value
    return found


def mergers() -> st.SearchStrategy[Merged]:
    """What scans find, in videos of random likeness: one window in two is alike."""

    def made(num_frames: int, seed: int, by_fours: bool) -> Merged:
        chance = random.Random(seed)
        windows = [chance.random() for _ in range(num_frames // 8 + 1)]
        seen = [[windows[(j - 1) // 8] for j in range(num_frames - d)] for d in (1, 2, 3)]
        return vgdfr.scan(seen, num_frames, 0.5, by_fours)

    return st.builds(made, st.integers(3, 40).map(lambda k: 4 * k + 1), st.integers(0, 2**32), st.booleans())


@pytest.mark.parametrize(("num_frames", "by_fours", "kept"), [(65, False, 37), (65, True, 25), (121, False, 65), (13, False, 9)])
def test_a_video_that_stands_still_is_merged_as_far_as_can_be(num_frames: int, by_fours: bool, kept: int) -> None:
    assert vgdfr.num_kept(vgdfr.scan(alike(num_frames), num_frames, 0.75, by_fours)) == kept


def test_windows_of_eight_follow_each_other_from_frame_1_and_spare_the_tail() -> None:
    assert vgdfr.scan(alike(65), 65, 0.75, False) == Merged(65, (1, 9, 17, 25, 33, 41, 49), ())
    assert vgdfr.scan(alike(65), 65, 0.75, True) == Merged(65, (49,), (1, 17, 33))


@pytest.mark.parametrize("frame", [9, 11, 13, 15])
def test_one_pair_that_differs_spares_its_window(frame: int) -> None:
    assert vgdfr.scan(but(41, 1, frame), 41, 0.75, False) == Merged(41, (1, 17, 25), ())


@pytest.mark.parametrize("frame", [10, 12, 14, 16])
def test_frames_of_different_pairs_need_not_be_alike(frame: int) -> None:
    assert vgdfr.scan(but(41, 1, frame), 41, 0.75, False) == Merged(41, (1, 9, 17, 25), ())


@pytest.mark.parametrize("offset", [0, 4, 8, 12])
@pytest.mark.parametrize(("distance", "within"), [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0)])
def test_every_two_frames_of_a_group_of_four_must_be_alike(distance: int, within: int, offset: int) -> None:
    found = vgdfr.scan(but(65, distance, 17 + offset + within), 65, 0.75, True)
    assert found.by_fours[:1] == (1,)
    assert 17 not in found.by_fours


@pytest.mark.parametrize(("distance", "frame"), [(1, 20), (2, 19), (2, 20), (3, 18), (3, 19), (3, 20)])
def test_frames_of_different_groups_of_four_need_not_be_alike(distance: int, frame: int) -> None:
    assert vgdfr.scan(but(65, distance, frame), 65, 0.75, True).by_fours == (1, 17, 33)


def test_likeness_must_be_above_the_threshold() -> None:
    assert vgdfr.scan(alike(25, 0.75), 25, 0.75, False) == Merged(25)
    assert vgdfr.scan(alike(25, 0.7500001), 25, 0.75, False) == Merged(25, (1, 9))


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_bisection_meets_a_ratio_to_within_a_window(data: st.DataObject) -> None:
    num_frames = data.draw(st.sampled_from([65, 81, 121, 129]))
    starts = range(1, num_frames - 9, 8)
    levels = data.draw(st.lists(st.integers(102, 197), min_size=len(starts), max_size=len(starts), unique=True))
    seen = alike(num_frames)
    for start, level in zip(starts, levels, strict=True):
        seen[0][start] = level / 200
        seen[0][start + 2 : start + 8 : 2] = [0.99] * 3
    ratio = data.draw(st.floats(0.58, 1.0))
    merged, threshold = vgdfr.scan_to_ratio(seen, num_frames, ratio)
    kept = vgdfr.num_kept(merged) / num_frames
    assert not merged.by_fours
    assert merged == vgdfr.scan(seen, num_frames, threshold, False)
    assert abs(kept - ratio) <= 4 / num_frames


def test_groups_of_four_come_only_where_likeness_has_to_be_low() -> None:
    """Of a video that is alike to 0.3, no threshold above a half merges anything."""
    few, threshold = vgdfr.scan_to_ratio(alike(65, 0.3), 65, 0.38)
    assert (vgdfr.num_kept(few), threshold < 0.3) == (25, True)
    many, threshold = vgdfr.scan_to_ratio(alike(65, 0.8), 65, 0.9)
    assert (many.by_fours, vgdfr.num_kept(many) in (37, 65)) == ((), True)
    assert threshold == pytest.approx(0.8, abs=0.001)


def test_a_video_that_is_never_alike_keeps_all_however_little_is_asked_for() -> None:
    assert vgdfr.scan_to_ratio(alike(65, 0.0), 65, 0.4)[0] == Merged(65)


@settings(deadline=None, max_examples=50)
@given(mergers())
def test_groups_are_all_frames_in_order_and_the_ends_stand_alone(merged: Merged) -> None:
    found = list(vgdfr.groups(merged))
    assert [frame for group in found for frame in group] == list(range(merged.num_frames))
    assert found[0] == range(1)
    assert all(len(group) == 1 for group in found[-4:])
    assert len(found) == vgdfr.num_kept(merged) == len(vgdfr.kept_frames(merged))


@settings(deadline=None, max_examples=50)
@given(mergers())
def test_what_is_left_is_whole_latent_frames_that_keep_their_places(merged: Merged) -> None:
    frames, latents = vgdfr.kept_frames(merged), vgdfr.kept_latents(merged)
    assert len(frames) == 4 * (len(latents) - 1) + 1
    assert latents[0] == frames[0] == 0
    assert [frames[4 * i - 3] for i in range(1, len(latents))] == [4 * latent - 3 for latent in latents[1:]]


@settings(deadline=None, max_examples=50)
@given(mergers())
def test_every_outcome_is_among_those_that_are_planned_for(merged: Merged) -> None:
    num = len(vgdfr.kept_latents(merged))
    assert num in vgdfr.reachable(merged.num_frames, by_fours=True)
    assert merged.by_fours or num in vgdfr.reachable(merged.num_frames, by_fours=False)


@pytest.mark.parametrize(("by_fours", "fewest"), [(False, 10), (True, 7)])
def test_outcomes_go_from_all_frames_to_the_fewest(by_fours: bool, fewest: int) -> None:
    assert vgdfr.reachable(65, by_fours) == tuple(range(17, fewest - 1, -1))


@pytest.mark.parametrize(("num_steps", "steps"), [(50, 5), (30, 3), (12, 2), (4, 2), (2, 1)])
def test_a_tenth_of_the_steps_or_two_come_before_the_compression(num_steps: int, steps: int) -> None:
    assert vgdfr.steps_before(num_steps, None) == steps
    assert vgdfr.steps_before(num_steps, 7) == 7


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 60), st.data())
def test_so_many_forwards_run_on_all_frames_and_the_rest_on_those_left(num_steps: int, data: st.DataObject) -> None:
    geometry, shape = model("hunyuanvideo"), VideoShape(65, 544, 960)
    before, left = data.draw(st.integers(1, num_steps - 1)), data.draw(st.integers(7, 17))
    action = vgdfr.schedule(geometry, shape, num_steps, before, left)
    assert [stage.grid for stage in action.stages] == [(17, 68, 120), (left, 68, 120)]
    assert {stage.shift for stage in action.stages} == {geometry.full_shift}
    assert sum(stage.steps for stage in action.stages) == num_steps
    expected = (before * 17 + (num_steps - before) * left) / (17 * num_steps)
    assert math.isclose(density_executed(geometry, action), expected)
    assert 0 <= expected - action.density <= 1 / num_steps
