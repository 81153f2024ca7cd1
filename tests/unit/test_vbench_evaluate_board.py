"""Who measures what next: longest first, models kept, every video once, and nobody idle towards the end."""

from __future__ import annotations

import heapq
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.vbench.board import MAX_ATTEMPTS, MAX_REFUSALS, Board

COSTS = {"object_class": 1.8, "temporal_flickering": 0.3, "motion_smoothness": 0.8, "scene": 0.4}
"""Seconds a video, near those of the table."""
LOAD_S = 2.0


def filled(num_workers: int, shard_size: int, counts: dict[str, int]) -> Board[str]:
    board: Board[str] = Board(num_workers, shard_size)
    for dimension, number in counts.items():
        board.add(dimension, [f"{dimension}/{index}" for index in range(number)])
    return board


def simulate(board: Board[str], costs: dict[str, float]) -> tuple[float, Counter[str], int]:
    """(makespan, how often each video was measured, models loaded) with workers that take exactly their time."""
    now_s, loads, done = 0.0, 0, Counter[str]()
    at: dict[int, str] = {}
    running: list[tuple[float, int, float]] = []
    idle = set(range(board.num_workers))
    while True:
        for worker in sorted(idle):
            shard = board.choose(worker)
            if shard is None:
                continue
            idle.discard(worker)
            load_s = LOAD_S if at.get(worker) != shard.dimension else 0.0
            loads += at.get(worker) != shard.dimension
            at[worker] = shard.dimension
            work_s = costs[shard.dimension] * len(shard.tasks)
            heapq.heappush(running, (now_s + load_s + work_s, worker, work_s))
        if not running:
            return now_s, done, loads
        now_s, worker, work_s = heapq.heappop(running)
        shard = board.has(worker)
        assert shard is not None
        done.update(shard.tasks)
        board.finished(worker, work_s, LOAD_S)
        idle.add(worker)


def test_workers_that_have_a_model_share_its_videos_from_the_start_however_few() -> None:
    def first(loaded: dict[int, str]) -> list[int]:
        board: Board[str] = Board(2, 25, loaded)
        board.add("motion_smoothness", [str(index) for index in range(6)])
        return [len(shard.tasks) if (shard := board.choose(worker)) else 0 for worker in (0, 1)]

    assert first({}) == [3, 0], "loading takes longer than the other one's videos"
    assert first({0: "motion_smoothness", 1: "motion_smoothness"}) == [3, 2]


@given(
    st.integers(1, 9),
    st.integers(1, 30),
    st.dictionaries(st.sampled_from(sorted(COSTS)), st.integers(1, 60), min_size=1),
)
@settings(max_examples=60, deadline=None)
def test_every_video_is_measured_once_whatever_the_crew_and_the_shards(workers: int, size: int, counts: dict[str, int]) -> None:
    board = filled(workers, size, counts)
    _, done, _ = simulate(board, COSTS)
    assert board.done
    assert set(done.values()) == {1}
    assert len(done) == sum(counts.values())


@pytest.mark.parametrize("workers", [1, 2, 4, 8, 16])
def test_a_whole_suite_ends_within_a_tenth_of_the_ideal(workers: int) -> None:
    counts = {"object_class": 395, "motion_smoothness": 360, "scene": 430, "temporal_flickering": 375}
    total_s = sum(COSTS[name] * number for name, number in counts.items())
    took_s, _, loads = simulate(filled(workers, 25, counts), COSTS)
    assert took_s <= 1.1 * (total_s + loads * LOAD_S) / workers
    assert loads <= len(counts) + 2 * workers


def test_the_longest_dimension_goes_first_and_a_worker_keeps_its_model() -> None:
    board = filled(2, 5, {"temporal_flickering": 20, "object_class": 20, "scene": 20})
    first, second = board.choose(0), board.choose(1)
    assert first is not None
    assert second is not None
    assert first.dimension == "object_class"
    assert second.dimension in ("scene", "temporal_flickering", "object_class")
    board.finished(0, 9.0)
    again = board.choose(0)
    assert again is not None
    assert again.dimension == "object_class"


def test_shards_are_no_larger_than_asked_and_shrink_so_that_all_end_together() -> None:
    board = filled(2, 25, {"scene": 30})
    sizes = []
    while (shard := board.choose(0)) is not None:
        sizes.append(len(shard.tasks))
        board.finished(0, 1.0)
    assert sizes[0] == 15
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 30


def test_a_worker_does_not_load_a_model_for_what_another_ends_sooner() -> None:
    board = filled(2, 25, {"temporal_flickering": 2})
    assert board.choose(0) is not None
    assert board.choose(1) is None


def test_the_shard_of_a_worker_that_dies_is_done_again_and_given_up_in_the_end() -> None:
    board = filled(2, 10, {"scene": 4})
    first = board.choose(0)
    assert first is not None
    for _ in range(MAX_ATTEMPTS - 1):
        assert board.lost(0) is None
        again = board.choose(0)
        assert again is not None
        assert again.tasks == first.tasks
    given_up = board.lost(0)
    assert given_up is not None
    assert given_up.tasks == first.tasks
    assert board.lost(1) is None


def test_a_dimension_that_one_worker_cannot_load_goes_to_another() -> None:
    board = filled(3, 10, {"scene": 3})
    assert board.choose(0) is not None
    assert board.refused(0) == []
    assert board.choose(0) is None
    taken = board.choose(1)
    assert taken is not None
    board.finished(1, 1.0)
    assert board.choose(0) is None


def test_a_dimension_that_nobody_can_load_is_given_up_with_all_its_videos_and_the_others_go_on() -> None:
    board = filled(8, 2, {"scene": 9, "temporal_flickering": 3})
    given_up: list[str] = []
    for worker in range(MAX_REFUSALS):
        assert given_up == []
        while (shard := board.choose(worker)) is not None and shard.dimension != "scene":
            board.finished(worker, 0.1)
        assert shard is not None
        given_up += board.refused(worker)
    assert sorted(given_up) == [f"scene/{index}" for index in range(9)]
    assert set(board.waiting) <= {"temporal_flickering"}


def test_what_is_left_can_be_given_up_at_once() -> None:
    board = filled(1, 10, {"scene": 2, "color": 1})
    board.choose(0)
    board.lost(0)
    assert {name: len(tasks) for name, tasks in board.clear().items()} == {"scene": 2, "color": 1}
    assert board.done


def test_a_crew_or_a_shard_of_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one worker"):
        Board(0, 25)
    with pytest.raises(ValueError, match="at least one worker"):
        Board(1, 0)
