"""Noise levels and steps agree with diffusers' scheduler."""

from __future__ import annotations

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st

from stages.sampling import clean_estimate, euler_step, initial_noise, sigmas


@given(st.integers(1, 60), st.floats(1.0, 12.0))
def test_levels_fall_from_one_to_zero(num_steps: int, shift: float) -> None:
    levels = sigmas(num_steps, shift)
    assert levels.dtype == torch.float32
    assert levels[0] == pytest.approx(1)
    assert levels[-1] == 0
    assert (levels[1:] < levels[:-1]).all()


@pytest.mark.parametrize("num_steps,shift", [(30, 3.0), (50, 7.0), (40, 12.0)])
def test_a_run_of_steps_equals_the_stock_scheduler_bit_for_bit(num_steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    levels, x = sigmas(num_steps, shift), initial_noise((2, 3, 4), 5, seed=1)
    stock = x.clone()
    for index, timestep in enumerate(scheduler.timesteps):
        assert timestep == levels[index] * 1000
        v = torch.sin(x * 3 + index)
        stock = scheduler.step(v, timestep, stock, return_dict=False)[0]
        x = euler_step(x, v, levels[index], levels[index + 1])
        assert torch.equal(x, stock)


def test_a_larger_shift_spends_more_steps_at_high_noise() -> None:
    assert (sigmas(20, 7.0)[1:-1] > sigmas(20, 3.0)[1:-1]).all()


def test_the_first_noise_is_what_the_stock_pipeline_draws() -> None:
    stock = randn_tensor((1, 4, 2, 6, 8), generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    assert torch.equal(initial_noise((2, 6, 8), 4, seed=7), stock)


def test_the_clean_estimate_is_exact_for_a_straight_path() -> None:
    clean, noise, sigma = torch.randn(3), torch.randn(3), torch.tensor(0.7)
    x = (1 - sigma) * clean + sigma * noise
    assert torch.allclose(clean_estimate(x, noise - clean, sigma), clean, atol=1e-6)
