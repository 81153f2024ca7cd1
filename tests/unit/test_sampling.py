"""Noise levels and steps agree with diffusers' schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.geometry import shifted_sigma
from stages.sampling import UniPCSolver, clean_estimate, initial_noise, make_solver, nearest_sigma, sigmas


def unipc(num_steps: int, shift: float, start: int = 0) -> Any:
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    scheduler.set_timesteps(num_steps)
    scheduler.set_begin_index(start)
    return scheduler


@pytest.mark.parametrize("spacing", ["training", "uniform"])
@given(num_steps=st.integers(1, 60), shift=st.floats(1.0, 12.0))
def test_levels_fall_from_one_to_zero(spacing: Any, num_steps: int, shift: float) -> None:
    levels = sigmas(num_steps, shift, spacing)
    assert levels.dtype == torch.float32
    assert levels[0] == pytest.approx(1)
    assert levels[-1] == 0
    assert (levels[1:] < levels[:-1]).all()


@pytest.mark.parametrize("num_steps,shift", [(30, 3.0), (50, 7.0), (40, 12.0)])
def test_a_run_of_euler_steps_equals_the_stock_scheduler_bit_for_bit(num_steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(num_steps)
    solver, x = make_solver("euler", num_steps, shift), initial_noise((2, 3, 4), 5, seed=1)
    stock = x.clone()
    for index, timestep in enumerate(scheduler.timesteps):
        assert timestep == solver.levels[index].timestep
        v = torch.sin(x * 3 + index)
        stock = scheduler.step(v, timestep, stock, return_dict=False)[0]
        x = solver.step(x, v, index)
        assert torch.equal(x, stock)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 50), st.floats(1.0, 12.0), st.floats(0, 0.9))
def test_a_run_of_unipc_steps_equals_the_stock_scheduler_from_any_step_on(num_steps: int, shift: float, share: float) -> None:
    start = int(share * num_steps)
    scheduler, solver = unipc(num_steps, shift, start), make_solver("unipc", num_steps, shift)
    stock = x = initial_noise((2, 3, 4), 5, seed=1)
    for index in range(start, num_steps):
        timestep = scheduler.timesteps[index]
        assert timestep == solver.levels[index].timestep
        v = torch.sin(stock + index)
        stock = scheduler.step(v, timestep, stock, return_dict=False)[0]
        x = solver.step(x, v, index)
        assert torch.allclose(x, stock, rtol=0, atol=1e-5)


def test_unipc_starts_without_history_and_keeps_two_estimates_at_most() -> None:
    solver, x = UniPCSolver(10, 5.0), torch.randn(1, 2, 2, 3, 3)
    kept = [solver.num_remembered]
    for index in range(4, 8):
        x = solver.step(x, torch.sin(x), index)
        kept.append(solver.num_remembered)
    assert kept == [0, 1, 2, 2, 2]


def test_unipc_is_more_exact_than_euler_on_a_smooth_path() -> None:
    """dx/dsigma = x has the solution x(0) = x(1) / e."""
    errors = {}
    for name in ("euler", "unipc"):
        solver, x = make_solver(name, 20, 1.0, "uniform"), torch.ones(1, 1, 1, 1, 1)  # type: ignore[arg-type]
        start = solver.levels[0].sigma
        for index in range(20):
            x = solver.step(x, x, index)
        errors[name] = abs(float(x) - float(torch.exp(torch.tensor(-start))))
    assert errors["unipc"] < errors["euler"] / 10


def test_an_unknown_solver_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'heun'.*euler, unipc"):
        make_solver("heun", 10, 3.0)  # type: ignore[arg-type]


LEVELS = [  # steps, shifts, transitions, sigma_old(i), sigma_old(i + 1), sigma_new(i + 1)
    (50, (7, 9, 11, 11), (14, 25, 36), (0.9474, 0.9000, 0.8105), (0.9423, 0.8926, 0.7944), (0.9545, 0.9103, 0.7944)),
    (50, (5, 9, 11, 11), (14, 25, 36), (0.9278, 0.9000, 0.8105), (0.9211, 0.8926, 0.7944), (0.9545, 0.9103, 0.7944)),
    (40, (5, 9, 11, 11), (11, 20, 28), (0.9295, 0.9000, 0.8250), (0.9211, 0.8906, 0.8067), (0.9545, 0.9087, 0.8067)),
    (12, (7, 9, 11, 11), (3, 6, 8), (0.9545, 0.9000, 0.8462), (0.9333, 0.8654, 0.7857), (0.9474, 0.8871, 0.7857)),
    (25, (7, 9, 11, 11), (7, 12, 18), (0.9474, 0.9070, 0.8105), (0.9370, 0.8926, 0.7765), (0.9503, 0.9103, 0.7765)),
]


@pytest.mark.parametrize("num_steps,shifts,cuts,before,unshifted,after", LEVELS)
def test_levels_around_the_released_transitions(num_steps, shifts, cuts, before, unshifted, after) -> None:  # type: ignore[no-untyped-def]
    for k, i in enumerate(cuts):
        old, new = (sigmas(num_steps, shift, "uniform") for shift in shifts[k : k + 2])
        assert (float(old[i]), float(old[i + 1]), float(new[i + 1])) == pytest.approx(
            (before[k], unshifted[k], after[k]), abs=6e-5
        )


@given(st.integers(1, 60), st.floats(1.0, 12.0))
def test_uniform_levels_are_the_ideal_formula_and_unipcs_are_near_it(num_steps: int, shift: float) -> None:
    ideal = [shifted_sigma(i, num_steps, shift) for i in range(num_steps + 1)]
    assert sigmas(num_steps, shift, "uniform").tolist() == pytest.approx(ideal, abs=1e-5)
    assert [level.sigma for level in UniPCSolver(num_steps, shift).levels] == pytest.approx(ideal[:-1], abs=0.012)


def test_a_larger_shift_spends_more_steps_at_high_noise() -> None:
    assert (sigmas(20, 7.0)[1:-1] > sigmas(20, 3.0)[1:-1]).all()


def test_each_level_says_where_its_step_ends() -> None:
    levels = make_solver("euler", 8, 7.0, "uniform").levels
    assert [level.timestep_next for level in levels] == [*[level.timestep for level in levels[1:]], 0.0]


def test_the_nearest_level_is_found_by_its_timestep() -> None:
    levels = make_solver("euler", 10, 1.0, "uniform").levels
    assert nearest_sigma(levels, 712.0) == pytest.approx(0.7)
    assert nearest_sigma(levels, 2000.0) == 1.0


def test_the_first_noise_is_what_the_stock_pipeline_draws() -> None:
    stock = randn_tensor((1, 4, 2, 6, 8), generator=torch.Generator().manual_seed(7), dtype=torch.float32)
    assert torch.equal(initial_noise((2, 6, 8), 4, seed=7), stock)


def test_the_clean_estimate_is_exact_for_a_straight_path() -> None:
    clean, noise, sigma = torch.randn(3), torch.randn(3), 0.7
    x = (1 - sigma) * clean + sigma * noise
    assert torch.allclose(clean_estimate(x, noise - clean, sigma), clean, atol=1e-6)
    part = clean_estimate(x, noise - clean, sigma, extrapolation=0.5)
    assert torch.allclose(part, (x + clean) / 2, atol=1e-6)
