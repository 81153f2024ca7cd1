"""Slices of pods: aligned, disjoint, given out so that wide ones stay possible, and kept for who waits."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy import Throughput
from orchestrator.pool import Ends, Pool
from orchestrator.slices import PodSlices, bits, slice_mistakes, tightest
from orchestrator.types import Slice
from tests.unit.worlds import DECISION, item

widths = st.sampled_from([1, 2, 4, 8])


def pool_of(*sizes: int) -> Pool:
    pool = Pool()
    for name, num_ranks in zip("abcdefgh", sizes, strict=False):
        pool.add(name, num_ranks)
    return pool


def take(pool: Pool, width: int, key: str, end_s: float = math.inf) -> Slice | None:
    piece = pool.find(key, width, end_s)
    if piece is not None:
        pool.hold(key, piece, end_s)
    return piece


moves = st.lists(
    st.tuples(st.sampled_from(["take", "take", "give", "promise", "forget", "drain"]), widths, st.integers(0, 100)), max_size=60
)


@settings(deadline=None)
@given(moves, st.lists(widths, min_size=1, max_size=4))
def test_any_giving_and_taking_keeps_slices_aligned_disjoint_and_counted(
    steps: list[tuple[str, int, int]], sizes: list[int]
) -> None:
    pool = pool_of(*sizes)
    for number, (step, width, pick) in enumerate(steps):
        holders = sorted((key, pod.pod) for pod in pool.pods.values() for key in pod.held)
        if step == "take":
            take(pool, width, f"item{number}", float(pick))
        elif step == "give" and holders:
            pool.release(*holders[pick % len(holders)])
        elif step == "promise":
            pool.promise(f"item{number}", width, float(number))
        elif step == "forget" and pool.promises:
            pool.forget(sorted(pool.promises)[pick % len(pool.promises)])
        elif step == "drain" and pool.pods:
            pool.drain(sorted(pool.pods)[pick % len(pool.pods)])
        assert list(pool.mistakes()) == []
        working = [pod for pod in pool.pods.values() if not pod.draining]
        assert pool.ends.num_ranks == sum(piece.width for pod in working for piece in pod.held.values())


@given(st.sets(st.integers(0, 7)), widths)
def test_a_slice_is_found_exactly_when_an_aligned_free_block_exists(taken: set[int], width: int) -> None:
    pool = pool_of(8)
    for rank in taken:
        pool.hold(f"i{rank}", Slice("a", rank, 1), 1.0)
    possible = any(not taken & set(range(start, start + width)) for start in range(0, 8, width))
    assert (take(pool, width, "new") is not None) == possible


def test_narrow_items_fill_broken_blocks_before_they_break_whole_ones() -> None:
    pool = pool_of(8, 8)
    taken = [take(pool, 1, str(number)) for number in range(4)]
    assert {piece.pod for piece in taken if piece} == {"a"}
    assert take(pool, 4, "wide") == Slice("a", 4, 4)
    assert take(pool, 8, "widest") == Slice("b", 0, 8)


def test_a_draining_pod_gives_nothing_and_goes_when_nothing_runs_there() -> None:
    pool = pool_of(8, 2)
    assert take(pool, 8, "runs") == Slice("a", 0, 8)
    pool.drain("a")
    assert (pool.widest, pool.num_ranks, pool.num_idle) == (2, 2, 2)
    assert take(pool, 4, "y") is None
    pool.release("runs", "a")
    assert list(pool.pods) == ["b"]
    assert take(pool, 1, "x") == Slice("b", 0, 1)


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        pool_of(2).find("x", 0, 1.0)


def test_ranks_that_are_held_cannot_be_held_again() -> None:
    pool = pool_of(4)
    pool.hold("x", Slice("a", 0, 2), 1.0)
    with pytest.raises(RuntimeError, match="cannot hold"):
        pool.hold("y", Slice("a", 0, 4), 1.0)


def test_overlapping_or_unaligned_slices_are_called_mistakes() -> None:
    pod = PodSlices("a", 4, held={"x": Slice("a", 0, 2), "y": Slice("a", 1, 2)})
    assert len(slice_mistakes(pod)) == 2


def test_the_block_that_comes_free_soonest_is_promised() -> None:
    pool = pool_of(4, 4)
    for start, end_s in ((0, 9.0), (2, 5.0)):
        pool.hold(f"a{start}", Slice("a", start, 2), end_s)
        pool.hold(f"b{start}", Slice("b", start, 2), end_s - 1)
    promise = pool.promise("wide", 4, 0.0)
    assert promise is not None
    assert (promise.piece, promise.ready_s) == (Slice("b", 0, 4), 8.0)
    assert pool.soonest(2, 0.0) != promise, "what is promised is not promised again"


def test_promised_ranks_go_only_to_who_is_back_in_time_and_to_whom_they_are_promised() -> None:
    pool = pool_of(4)
    pool.hold("runs", Slice("a", 0, 2), 10.0)
    pool.promise("wide", 4, 0.0)
    assert pool.find("long", 1, 10.5) is None
    assert pool.find("unknown", 1, math.inf) is None
    assert take(pool, 2, "short", 10.0) == Slice("a", 2, 2)
    pool.release("runs", "a")
    assert pool.find("wide", 4, 20.0) is None
    pool.release("short", "a")
    assert pool.find("other", 4, 20.0) is None
    assert take(pool, 4, "wide", 20.0) == Slice("a", 0, 4)
    assert pool.promises == {}


def test_of_work_that_nobody_can_predict_what_began_first_is_expected_to_end_first() -> None:
    pool = pool_of(2, 2)
    pool.hold("late", Slice("a", 0, 2), 1e9 + 5.0)
    pool.hold("early", Slice("b", 0, 2), 1e9 + 4.0)
    promise = pool.promise("wide", 2, 6.0)
    assert promise is not None
    assert promise.piece.pod == "b"


@given(st.lists(st.tuples(widths, st.floats(0, 100)), max_size=30), st.floats(0, 100))
def test_ends_count_what_comes_free(held: list[tuple[int, float]], time_s: float) -> None:
    ends = Ends()
    for width, end_s in held:
        ends.add(width, end_s)
    assert ends.ranks_before(time_s) == sum(width for width, end_s in held if end_s <= time_s)
    assert ends.slices_before(time_s) == sum(end_s <= time_s for _, end_s in held)
    assert ends.busy_s(0.0) == pytest.approx(sum(width * end_s for width, end_s in held))
    for width, end_s in held[::2]:
        ends.remove(width, end_s)
    assert ends.ranks_before(100.0) == sum(width for width, _ in held[1::2])


def test_ranks_as_masks() -> None:
    assert bits(2, 2) == 0b1100
    assert tightest(8, 0b1111_0001, 1) == (1, 0)
    assert tightest(8, 0b1111_0010, 4) == (4, 4)
    assert tightest(8, 0b1110_0111, 4) is None


def test_throughput_takes_the_narrowest_legal_width_and_says_when_none_fits() -> None:
    (phase,) = Throughput(degrees=(2, 4)).phases(item(0), DECISION, max_width=8)
    assert (phase.stop, phase.width) == (4, 2)
    with pytest.raises(ValueError, match=r"\[2, 4\] fits a pod of 1"):
        Throughput(degrees=(2, 4)).phases(item(0), DECISION, max_width=1)


def test_ranks_of_a_pod_that_goes_are_not_expected_to_come_free() -> None:
    pool = pool_of(4, 4)
    assert take(pool, 4, "stays", 10.0) == Slice("a", 0, 4)
    assert take(pool, 2, "goes", 5.0) == Slice("b", 0, 2)
    pool.drain("b")
    assert (pool.ends.ranks_before(20.0), pool.ends.slices_before(20.0), pool.ends.busy_s(0.0)) == (4, 1, 40.0)
    pool.release("goes", "b")
    pool.release("stays", "a")
    assert (pool.ends.num_ranks, pool.num_idle) == (0, 4)
