"""Intervals and fronts: what must hold whatever the figures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.compare.stats import mean_of, paired, pareto, ratio

KEYS = st.tuples(st.sampled_from([f"p{i}" for i in range(12)]), st.integers(0, 3))
FLOATS = st.floats(-1e6, 1e6, allow_subnormal=False)
VALUES = st.dictionaries(KEYS, FLOATS, min_size=1)
POINTS = st.lists(st.tuples(*[st.one_of(st.integers(-3, 3).map(float), FLOATS)] * 2))


def of_prompts(rng: np.random.Generator, num_prompts: int, num_seeds: int, shared: float) -> dict[tuple[str, int], float]:
    """Normal values of mean 1 whose seeds have the share ``shared`` of their variance in common."""
    common = rng.normal(0, math.sqrt(shared), (num_prompts, 1))
    values = 1 + common + rng.normal(0, math.sqrt(1 - shared), (num_prompts, num_seeds))
    return {(f"p{i}", j): float(value) for (i, j), value in np.ndenumerate(values)}


def as_list(found):
    return [found.mean, found.low, found.high]


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES)
def test_the_interval_holds_the_mean_of_the_pairs(a, b):
    found, both = paired(a, b), a.keys() & b.keys()
    if not both:
        assert found is None
        return
    assert found is not None
    assert found.n == len(both)
    assert found.mean == pytest.approx(np.mean([a[key] - b[key] for key in both]), abs=1e-6)
    if len({prompt for prompt, _ in both}) < 2:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low <= found.mean <= found.high


@settings(deadline=None, max_examples=50)
@given(VALUES)
def test_an_arm_against_itself_differs_by_nothing_and_wins_half(a):
    found = paired(a, a)
    assert found is not None
    assert (found.mean, found.win_rate) == (0.0, 0.5)
    assert {found.low, found.high} <= {0.0, None}
    assert not found.excludes(0.0)


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES, st.permutations([f"p{i}" for i in range(12)]), st.randoms())
def test_order_and_names_of_prompts_change_nothing(a, b, names, random):
    named = {f"p{i}": name for i, name in enumerate(names)}

    def again(values):
        items = [((named[prompt], seed), value) for (prompt, seed), value in values.items()]
        random.shuffle(items)
        return dict(items)

    found, other = paired(a, b), paired(again(a), again(b))
    if found is None:
        assert other is None
        return
    assert (found.n, found.num_prompts, found.low is None) == (other.n, other.num_prompts, other.low is None)
    assert other.win_rate == pytest.approx(found.win_rate)
    ends = [(value, again) for value, again in zip(as_list(found), as_list(other), strict=True) if value is not None]
    assert all(again == pytest.approx(value, rel=1e-9, abs=1e-6) for value, again in ends)


@settings(deadline=None, max_examples=50)
@given(VALUES, VALUES)
def test_swapping_the_arms_turns_difference_and_win_rate_around(a, b):
    found, other, lower = paired(a, b), paired(b, a), paired(a, b, better="lower")
    if found is None:
        return
    assert other.mean == pytest.approx(-found.mean)
    assert other.win_rate == pytest.approx(1 - found.win_rate)
    assert lower.win_rate == pytest.approx(1 - found.win_rate)


def test_ties_count_half():
    a = {("p", 0): 1.0, ("p", 1): 2.0, ("q", 0): 3.0, ("q", 1): 0.0}
    b = {("p", 0): 1.0, ("p", 1): 1.0, ("q", 0): 2.0, ("q", 1): 1.0}
    assert paired(a, b).win_rate == pytest.approx((0.5 + 1 + 1 + 0) / 4)


@pytest.mark.parametrize("num_prompts", [8, 40])
@pytest.mark.parametrize("shared", [0.0, 0.9])
def test_about_95_percent_of_intervals_hold_the_truth_also_when_seeds_resemble_each_other(num_prompts, shared):
    rng = np.random.default_rng(1)
    found = [mean_of(of_prompts(rng, num_prompts, 4, shared)) for _ in range(500)]
    covered = np.mean([one.low <= 1 <= one.high for one in found])
    assert 0.92 <= covered <= 0.975


def test_pairing_takes_away_what_prompts_have_in_common():
    rng = np.random.default_rng(3)
    base = {key: 100 * value for key, value in of_prompts(rng, 30, 2, 0.9).items()}
    better = {key: value + 1 + rng.normal(0, 0.5) for key, value in base.items()}
    alone, together = mean_of(better), paired(better, base)
    assert together.excludes(0.0)
    assert together.high - together.low < (alone.high - alone.low) / 20


def test_a_ratio_is_of_sums_over_what_both_have():
    base = {("p", 0): 8.0, ("q", 0): 4.0, ("r", 0): 100.0}
    ours = {("p", 0): 2.0, ("q", 0): 2.0, ("s", 0): 1.0}
    found = ratio(base, ours)
    assert (found.mean, found.n) == (3.0, 2)
    assert 2.0 <= found.low <= 3.0 <= found.high <= 4.0
    assert ratio(base, {("p", 0): 0.0}) is None
    assert ratio(base, {("s", 0): 1.0}) is None


@given(POINTS)
def test_no_point_on_the_front_is_dominated_and_every_other_is(points):
    def dominated(point):
        return any(x <= point[0] and y >= point[1] and (x, y) != point for x, y in points)

    assert pareto(points) == [not dominated(point) for point in points]


def test_a_point_without_a_figure_is_not_on_the_front_and_one_beyond_measure_is():
    assert pareto([(1.0, math.nan), (2.0, 3.0), (9.0, math.inf), (math.nan, 9.0)]) == [False, True, True, False]
