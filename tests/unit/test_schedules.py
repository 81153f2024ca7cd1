"""Steps, stage sizes and densities of DVG's schedules, against independently computed values."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.actions import (
    DvgConfig,
    density,
    forwards_per_stage,
    stage_grids,
    stage_shapes,
    steps_per_stage,
    transition_steps,
)
from orchestrator.geometry import model

RATES = DvgConfig().transition_rates


STEPS = [  # steps, transitions, steps of the density, forwards that run
    (50, (14, 25, 36), (14, 11, 11, 14), (15, 11, 11, 13)),
    (40, (11, 20, 28), (11, 9, 8, 12), (12, 9, 8, 11)),
    (30, (8, 15, 21), (8, 7, 6, 9), (9, 7, 6, 8)),
    (25, (7, 12, 18), (7, 5, 6, 7), (8, 5, 6, 6)),
    (12, (3, 6, 8), (3, 3, 2, 4), (4, 3, 2, 3)),
    (8, (2, 4, 5), (2, 2, 1, 3), (3, 2, 1, 2)),
]


@pytest.mark.parametrize(("num_steps", "cuts", "steps", "forwards"), STEPS)
def test_step_counts(num_steps, cuts, steps, forwards):
    assert transition_steps(num_steps, RATES) == cuts
    assert steps_per_stage(num_steps, RATES) == steps
    assert forwards_per_stage(steps) == forwards


@pytest.mark.parametrize(("num_steps", "steps"), [(4, (1, 3)), (3, (1, 2)), (2, (2,)), (1, (1,))])
def test_few_steps_fall_back_to_fewer_stages(num_steps, steps):
    assert steps_per_stage(num_steps, RATES) == steps


def test_rates_that_meet_on_one_step_share_a_transition():
    assert steps_per_stage(10, (0.28, 0.29, 0.72)) == (2, 5, 3)


@given(st.integers(1, 200))
def test_transitions_are_distinct_and_leave_a_step_on_either_side(num_steps):
    cuts = transition_steps(num_steps, RATES)
    assert all(before < after for before, after in pairwise(cuts))
    assert all(1 <= cut < num_steps - 1 for cut in cuts)
    steps = steps_per_stage(num_steps, RATES)
    assert sum(steps) == sum(forwards_per_stage(steps)) == num_steps
    assert min(steps) >= 1
    assert min(forwards_per_stage(steps)) >= 1


def test_no_steps_is_an_error():
    with pytest.raises(ValueError, match="num_steps is 0"):
        transition_steps(0, RATES)


def test_hunyuanvideo_plans_in_pixels_and_runs_on_whole_patches():
    geometry = model("hunyuanvideo")
    spatial, temporal = (0.5, 0.7, 1, 1), (0.4, 0.5, 0.5, 1)
    assert stage_shapes(geometry, (32, 90, 160), spatial, temporal)[:2] == ((13, 360, 640), (16, 504, 896))
    assert stage_grids(geometry, (32, 90, 160), spatial, temporal) == (
        (13, 44, 80),
        (16, 62, 112),
        (16, 90, 160),
        (32, 90, 160),
    )


def test_a_stage_is_never_smaller_than_the_one_before():
    shapes = stage_shapes(model("wan-mini"), (11, 2, 18), (0.5, 0.4, 1, 1), (0.8, 0.5, 0.9, 1))
    assert shapes == ((9, 2, 8), (9, 2, 8), (10, 2, 18), (11, 2, 18))


@pytest.mark.parametrize(
    ("spatial", "temporal", "value"),
    [(1.0, 9 / 31, 0.489), (0.51, 1.0, 0.463), (0.7, 0.55, 0.473)],
    ids=["temporal only", "spatial only", "fixed ratio"],
)
def test_densities_of_the_papers_ablations(spatial, temporal, value):
    shapes = stage_shapes(model("hunyuanvideo-1.5"), (31, 30, 53), (spatial,) * 3 + (1,), (temporal,) * 3 + (1,))
    assert density(shapes, (14, 11, 11, 14)) == pytest.approx(value, abs=5.1e-4)
