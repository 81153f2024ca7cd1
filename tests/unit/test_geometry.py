"""Sizes of the supported models, and the timestep shift."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.geometry import MODELS, model, shifted_sigma, shifts_from
from orchestrator.types import VideoShape


@pytest.mark.parametrize(
    ("name", "shape", "grid", "tokens"),
    [
        ("hunyuanvideo", VideoShape(125, 720, 1280), (32, 90, 160), 115_200),
        ("hunyuanvideo-1.5", VideoShape(121, 480, 848), (31, 30, 53), 49_290),
        ("wan2.1-1.3b", VideoShape(81, 480, 832), (21, 60, 104), 32_760),
        ("wan2.1-14b", VideoShape(81, 480, 832), (21, 60, 104), 32_760),
        ("wan2.2-a14b", VideoShape(81, 480, 832), (21, 60, 104), 32_760),
        ("wan2.2-ti2v-5b", VideoShape(121, 704, 1280), (31, 44, 80), 27_280),
        ("wan-mini", VideoShape(41, 144, 144), (11, 18, 18), 891),
    ],
)
def test_grid_and_tokens_of_every_model(name, shape, grid, tokens):
    geometry = model(name)
    assert geometry.latent_grid(shape) == grid
    assert geometry.num_tokens(grid) == tokens


@pytest.mark.parametrize("geometry", MODELS.values(), ids=list(MODELS))
def test_the_default_shape_of_every_model_is_legal(geometry):
    assert geometry.shape_mistakes(geometry.default_shape) == []


@pytest.mark.parametrize(
    ("name", "shifts"),
    [
        ("hunyuanvideo", (7, 9, 11, 11)),
        ("hunyuanvideo-1.5", (7, 9, 11, 11)),
        ("wan2.2-a14b", (5, 9, 11, 11)),
        ("wan2.1-1.3b", (5, 5, 5, 5)),
        ("wan2.1-14b", (5, 45 / 7, 55 / 7, 55 / 7)),
        ("wan2.2-ti2v-5b", (5, 45 / 7, 55 / 7, 55 / 7)),
    ],
)
def test_stage_shifts_are_the_released_ones_or_follow_their_pattern(name, shifts):
    assert model(name).stage_shifts == pytest.approx(shifts)


def test_wan_mini_shares_one_schedule_between_full_and_reduced_runs():
    assert set(model("wan-mini").stage_shifts) == {model("wan-mini").full_shift}


def test_shifts_of_an_unreleased_model_keep_the_released_pattern():
    assert shifts_from(7.0) == (7.0, 9.0, 11.0, 11.0)


def test_unknown_model_names_the_choices_and_the_nearest():
    with pytest.raises(ValueError, match=r"'wan-mni'.*did you mean 'wan-mini'\?.*Choices: hunyuanvideo, .*wan-mini"):
        model("wan-mni")


def test_every_broken_rule_of_a_shape_is_listed_with_the_nearest_legal_values():
    mistakes = model("wan-mini").shape_mistakes(VideoShape(42, 150, 0, 0))
    assert [mistake.split()[0] for mistake in mistakes] == ["num_frames", "height", "width", "fps"]
    assert "4k+1" in mistakes[0]
    assert "41 and 45" in mistakes[0]
    assert "multiple of 16" in mistakes[1]
    assert "144 and 160" in mistakes[1]


def test_latent_grid_refuses_an_illegal_shape():
    with pytest.raises(ValueError, match=r"num_frames is 40.*height is 100"):
        model("wan-mini").latent_grid(VideoShape(40, 100, 144))


@given(st.integers(-3, 500), st.sampled_from(list(MODELS)))
def test_a_frame_count_is_legal_exactly_when_it_is_4k_plus_1(num_frames, name):
    default = model(name).default_shape
    mistakes = model(name).shape_mistakes(VideoShape(num_frames, default.height, default.width))
    assert (not mistakes) == (num_frames >= 1 and num_frames % 4 == 1)


SIGMAS = [  # steps, shift before, shift after, transition, sigma_old(i), sigma_old(i+1), sigma_new(i+1)
    (50, 7, 9, 14, 0.9474, 0.9423, 0.9545),
    (50, 9, 11, 25, 0.9000, 0.8926, 0.9103),
    (50, 11, 11, 36, 0.8105, 0.7944, 0.7944),
    (50, 5, 9, 14, 0.9278, 0.9211, 0.9545),
    (40, 5, 9, 11, 0.9295, 0.9211, 0.9545),
    (40, 9, 11, 20, 0.9000, 0.8906, 0.9087),
    (40, 11, 11, 28, 0.8250, 0.8067, 0.8067),
    (12, 7, 9, 3, 0.9545, 0.9333, 0.9474),
    (12, 9, 11, 6, 0.9000, 0.8654, 0.8871),
    (12, 11, 11, 8, 0.8462, 0.7857, 0.7857),
    (25, 7, 9, 7, 0.9474, 0.9370, 0.9503),
    (25, 9, 11, 12, 0.9070, 0.8926, 0.9103),
    (25, 11, 11, 18, 0.8105, 0.7765, 0.7765),
]


@pytest.mark.parametrize(("steps", "before", "after", "step", "old", "old_next", "new_next"), SIGMAS)
def test_noise_levels_around_every_transition(steps, before, after, step, old, old_next, new_next):
    levels = (
        shifted_sigma(step, steps, before),
        shifted_sigma(step + 1, steps, before),
        shifted_sigma(step + 1, steps, after),
    )
    assert levels == pytest.approx((old, old_next, new_next), abs=5.1e-5)


@pytest.mark.parametrize(
    ("boundary", "shifts", "high_noise_steps"),
    [
        (0.875, (5, 5, 5, 5), 17),
        (0.875, (12, 12, 12, 12), 26),
        (0.875, (5, 9, 11, 11), 25),
        (0.900, (5, 5, 5, 5), 15),
        (0.900, (12, 12, 12, 12), 23),
        (0.900, (5, 9, 11, 11), 22),
    ],
)
def test_steps_on_wan22s_high_noise_expert(boundary, shifts, high_noise_steps):
    shift_of_step = [shifts[sum(step > cut for cut in (11, 20, 28))] for step in range(40)]
    timesteps = [int(1000 * shifted_sigma(step, 40, shift)) for step, shift in enumerate(shift_of_step)]
    assert sum(timestep >= 1000 * boundary for timestep in timesteps) == high_noise_steps


@given(st.integers(1, 100), st.floats(1.0, 20.0))
def test_noise_levels_fall_from_one_to_zero(num_steps, shift):
    levels = [shifted_sigma(step, num_steps, shift) for step in range(num_steps + 1)]
    assert levels[0] == pytest.approx(1.0)
    assert levels[-1] == 0.0
    assert all(after < before for before, after in pairwise(levels))


def test_another_shift_scales_the_stages_unless_the_release_fixes_them():
    assert model("wan2.1-1.3b").with_shift(3.0).stage_shifts == (3.0, 3.0, 3.0, 3.0)
    assert model("wan2.1-14b").with_shift(7.0).stage_shifts == pytest.approx((7.0, 9.0, 11.0, 11.0))
    for name in ("hunyuanvideo", "hunyuanvideo-1.5", "wan2.2-a14b"):
        assert model(name).with_shift(3.0).stage_shifts == model(name).stage_shifts
        assert model(name).with_shift(3.0).full_shift == 3.0
