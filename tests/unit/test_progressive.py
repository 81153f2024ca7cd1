"""Grids, steps and levels of schedules that no content decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import density_executed, forwards_per_stage
from orchestrator.flops import forward_tflops
from orchestrator.geometry import MODELS, model, shifted_sigma
from orchestrator.progressive import grid_at, grid_schedule, level_of_band, matched_shift, part_of, step_below

WAN = model("wan2.1-14b")
FULL = (21, 60, 104)


@pytest.mark.parametrize(
    ("name", "grids"),
    [
        ("wan2.1-14b", [(21, 30, 52), (21, 44, 78), (21, 60, 104)]),
        ("hunyuanvideo", [(32, 44, 80), (32, 66, 120), (32, 90, 160)]),
        ("hunyuanvideo-1.5", [(31, 15, 26), (31, 22, 39), (31, 30, 53)]),
        ("wan-mini", [(11, 8, 8), (11, 12, 12), (11, 18, 18)]),
    ],
)
def test_grids_are_cut_to_whole_patches(name: str, grids: list[tuple[int, int, int]]) -> None:
    geometry = model(name)
    full = geometry.latent_grid(geometry.default_shape)
    assert [grid_at(geometry, full, rate) for rate in (0.5, 0.75, 1.0)] == grids


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(MODELS)),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.01, 1.0),
    st.floats(0.01, 1.0),
)
def test_any_grid_is_legal_and_grows_with_its_rate(name: str, rows: int, columns: int, one: float, other: float) -> None:
    geometry = model(name)
    _, patch_h, patch_w = geometry.patch
    full = (3, rows * patch_h, columns * patch_w)
    small, large = (grid_at(geometry, full, rate) for rate in sorted((one, other)))
    for grid in (small, large):
        assert grid[0] == full[0]
        assert grid[1] % patch_h == grid[2] % patch_w == 0
    assert patch_h <= small[1] <= large[1] <= full[1]
    assert patch_w <= small[2] <= large[2] <= full[2]


def test_a_share_of_the_steps_is_what_it_says_in_spite_of_rounding() -> None:
    assert [part_of(30, 0.7), part_of(100, 0.29), part_of(50, 0.2), part_of(7, 0.5)] == [21, 29, 10, 3]


def test_shares_are_of_the_full_run_whatever_the_schedules_own_steps() -> None:
    action = grid_schedule(WAN, FULL, (1.0, 0.5, 1.0), (5, 23), (5.0,) * 3, 30, full_steps=50)
    assert [stage.steps for stage in action.stages] == [5, 18, 7]
    assert forwards_per_stage([5, 18, 7]) == (6, 18, 6)
    assert action.density == pytest.approx((5 + 18 / 4 + 7) / 50)
    assert density_executed(WAN, action, 50) == pytest.approx((6 + 18 / 4 + 6) / 50)
    assert density_executed(WAN, action) == pytest.approx((6 + 18 / 4 + 6) / 30)


def test_a_grid_that_shrinks_in_between_leaves_the_full_one_the_measure() -> None:
    flops = [
        forward_tflops(WAN, stage.grid) for stage in grid_schedule(WAN, FULL, (1.0, 0.5, 1.0), (5, 23), (5.0,) * 3, 30).stages
    ]
    assert flops[0] == flops[2] > 4 * flops[1]


@pytest.mark.parametrize("transitions", [(0, 5), (5, 5), (5, 9), (7, 6)])
def test_a_grid_without_a_step_of_its_own_is_refused(transitions: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"with 10 steps .* Take more steps, fewer rates, or planner full"):
        grid_schedule(WAN, FULL, (0.5, 0.75, 1.0), transitions, (5.0,) * 3, 10)


@given(st.floats(0.05, 12.0), st.integers(1, 60), st.data())
def test_a_small_grids_levels_say_as_much_as_the_full_grids_do(shift: float, num_steps: int, data: st.DataObject) -> None:
    """The latent of n of N cells at odds o is the band of one at odds sqrt(N / n) o: step for step the same."""
    step = data.draw(st.integers(1, num_steps))
    small, large = (shifted_sigma(step, num_steps, s) for s in (matched_shift(FULL, (21, 30, 26), shift), shift))
    assert large / (1 - large) == pytest.approx(math.sqrt(8) * small / (1 - small))


@given(st.floats(0.05, 12.0), st.integers(2, 60), st.floats(0.01, 0.99))
def test_the_step_below_a_level_is_the_first_one(shift: float, num_steps: int, level: float) -> None:
    step = step_below(level, num_steps, shift)
    assert shifted_sigma(step, num_steps, shift) <= level + 1e-9
    assert step == 0 or shifted_sigma(step - 1, num_steps, shift) > level - 1e-9


def test_the_level_of_a_band_is_where_its_first_detail_has_its_share_of_the_noises_power() -> None:
    flat = level_of_band(FULL, 0.5, 0.05, decay=0.0)
    assert ((1 - flat) / flat) ** 2 == pytest.approx(0.05), "power 1 everywhere"
    falling = [level_of_band(FULL, rate, 0.05, decay=2.0) for rate in (0.25, 0.5)]
    assert falling == [pytest.approx(0.852, abs=5e-4), pytest.approx(0.741, abs=5e-4)]
    ratios = [((1 - level) / level) ** 2 for level in falling]
    assert ratios[1] == pytest.approx(4 * ratios[0]), "half the frequency, four times the power"
