"""Slices of a pod: aligned, disjoint, and given out so that wide ones stay possible."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy import Throughput
from orchestrator.slices import PodSlices, slice_mistakes, take, widest
from orchestrator.types import Slice
from tests.unit.worlds import DECISION, item

widths = st.sampled_from([1, 2, 4, 8])


@given(st.lists(st.tuples(st.booleans(), widths, st.integers(0, 100)), max_size=40), st.sampled_from([1, 2, 4, 8]))
def test_any_giving_and_taking_keeps_slices_aligned_and_disjoint(moves: list[tuple[bool, int, int]], num_ranks: int) -> None:
    pods = [PodSlices("a", num_ranks), PodSlices("b", 8)]
    for number, (takes, width, pick) in enumerate(moves):
        holders = [(pod, key) for pod in pods for key in pod.held]
        if takes:
            take(pods, width, f"item{number}")
        elif holders:
            pod, key = holders[pick % len(holders)]
            del pod.held[key]
        assert [mistake for pod in pods for mistake in slice_mistakes(pod)] == []


@given(st.sets(st.integers(0, 7)), widths)
def test_a_slice_is_found_exactly_when_an_aligned_free_block_exists(taken: set[int], width: int) -> None:
    pod = PodSlices("a", 8, held={f"i{rank}": Slice("a", rank, 1) for rank in taken})
    possible = any(not taken & set(range(start, start + width)) for start in range(0, 8, width))
    assert (take([pod], width, "new") is not None) == possible


def test_narrow_items_fill_broken_blocks_before_they_break_whole_ones() -> None:
    pods = [PodSlices("a", 8), PodSlices("b", 8)]
    taken = [take(pods, 1, str(number)) for number in range(4)]
    assert {piece.pod for piece in taken if piece} == {"a"}
    assert take(pods, 4, "wide") == Slice("a", 4, 4)
    assert take(pods, 8, "widest") == Slice("b", 0, 8)


def test_a_draining_pod_gives_nothing() -> None:
    pods = [PodSlices("a", 8, draining=True), PodSlices("b", 2)]
    assert take(pods, 1, "x") == Slice("b", 0, 1)
    assert take(pods, 4, "y") is None
    assert widest(pods) == 2


def test_a_width_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        take([PodSlices("a", 2)], 0, "x")


def test_overlapping_or_unaligned_slices_are_called_mistakes() -> None:
    pod = PodSlices("a", 4, held={"x": Slice("a", 0, 2), "y": Slice("a", 1, 2)})
    assert len(slice_mistakes(pod)) == 2


def test_throughput_takes_the_narrowest_legal_width_and_says_when_none_fits() -> None:
    (phase,) = Throughput(degrees=(2, 4)).phases(item(0), DECISION, max_width=8)
    assert (phase.stop, phase.width) == (4, 2)
    with pytest.raises(ValueError, match=r"\[2, 4\] fits a pod of 1"):
        Throughput(degrees=(2, 4)).phases(item(0), DECISION, max_width=1)
