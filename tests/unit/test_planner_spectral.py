"""Spectral progressive diffusion, as reconstructed: bands of cosines, levels that match, noise where nothing was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.actions import forwards_per_stage
from orchestrator.config import build_sweep
from orchestrator.mistakes import ConfigError
from stages.models.base import Placed
from stages.planners.spectral import cosines, low_band, widened
from stages.sampling import NoiseLevel
from tests.spies import SpyModel
from tests.unit.planner_runs import SEED, draws, made, refusals, scheduled, watched

SMALL, LARGE = (2, 8, 8), (2, 16, 16)


def coefficients(x: Tensor) -> Tensor:
    """Of the cosines of every frame."""
    rows, columns = (cosines(size).float() for size in x.shape[3:])
    return rows @ x @ columns.T


def white(grid: tuple[int, int, int], seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn((1, channels, *grid), generator=torch.Generator().manual_seed(seed))


class Noise(SpyModel):
    """Sees nothing but noise."""

    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        super().denoise(x, level, placed)
        self.outputs[-1] = (x, x / level.sigma)
        return x / level.sigma


@pytest.mark.parametrize("size", [1, 2, 7, 18])
def test_the_cosines_are_orthonormal_and_the_first_is_flat(size: int) -> None:
    waves = cosines(size)
    assert torch.allclose(waves @ waves.T, torch.eye(size, dtype=torch.float64))
    assert torch.allclose(waves[0], torch.full((size,), size**-0.5, dtype=torch.float64))


@pytest.mark.parametrize("large", [(2, 16, 16), (2, 13, 21), (2, 8, 8)])
def test_widening_pads_the_coefficients_with_zeros(large: tuple[int, int, int]) -> None:
    x = white(SMALL)
    found = coefficients(widened(x, large))
    assert torch.allclose(found[..., :8, :8], coefficients(x), atol=1e-5)
    assert found[..., 8:, :].abs().sum() + found[..., :, 8:].abs().sum() < 1e-2


def test_a_picture_sized_up_keeps_its_brightness() -> None:
    flat = torch.full((1, 3, *SMALL), 0.7)
    assert torch.allclose(widened(flat, LARGE) * 2, torch.full((1, 3, *LARGE), 0.7), atol=1e-5)


def test_a_low_band_is_what_the_small_grid_holds() -> None:
    x = white(LARGE)
    low = low_band(x, SMALL)
    assert torch.allclose(low_band(low, SMALL), low, atol=1e-5)
    assert torch.allclose(coefficients(low)[..., :8, :8], coefficients(x)[..., :8, :8], atol=1e-5)
    assert torch.allclose(low_band(widened(white(SMALL), LARGE), SMALL), widened(white(SMALL), LARGE), atol=1e-5)


def test_the_schedule_on_wan_at_its_default_and_at_the_smaller_threshold() -> None:
    default, careful = (scheduled("spectral", "wan2.1-14b", delta=delta) for delta in (0.05, 0.01))
    assert [stage.grid for stage in default.stages] == [(21, 14, 26), (21, 30, 52), (21, 60, 104)]
    assert forwards_per_stage([stage.steps for stage in default.stages]) == (24, 8, 18)
    assert forwards_per_stage([stage.steps for stage in careful.stages]) == (15, 7, 28)
    expected = [5 * math.sqrt(h * w / (60 * 104)) for h, w in ((14, 26), (30, 52), (60, 104))]
    assert [stage.shift for stage in default.stages] == pytest.approx(expected)


def test_rewinding_raises_the_shift_of_every_grid_but_the_first() -> None:
    plain, rewound = (scheduled("spectral", "wan2.1-14b", mode=mode).stages for mode in ("dct", "dct_rewind"))
    assert [b.shift / a.shift for a, b in zip(plain, rewound, strict=True)] == pytest.approx([1, 1.5, 1.5])
    assert [stage.steps for stage in plain] == [stage.steps for stage in rewound]


def test_the_latents_band_goes_on_as_it_is_and_noise_fills_the_rest() -> None:
    """Sized up and scaled, the low band of what crosses is the noisy latent that one more Euler step would have given."""
    spy = SpyModel()
    passages = watched(made("spectral", levels=2), spy)
    (passage,) = passages
    step = len([x for x, _ in spy.outputs if x.shape == passage.x.shape]) - 1
    before, after = spy.levels[step], spy.levels[step + 1]
    own = passage.clean + passage.v
    assert torch.allclose((1 - before.sigma) * passage.clean + before.sigma * own, passage.x, atol=1e-5)
    found = coefficients(passage.after)
    expected = coefficients((1 - after.sigma) * 2 * passage.clean + after.sigma * own)
    assert torch.allclose(found[..., :8, :8], expected, atol=1e-4)
    fresh = coefficients(draws([SMALL, LARGE])[1])
    assert torch.allclose(found[..., 8:, :], after.sigma * fresh[..., 8:, :], atol=1e-4)
    assert torch.allclose(found[..., :8, 8:], after.sigma * fresh[..., :8, 8:], atol=1e-4)


def test_after_a_rewind_all_noise_is_fresh() -> None:
    (passage,) = watched(made("spectral", levels=2, mode="dct_rewind"), SpyModel())
    noise = draws([SMALL, LARGE], seed=SEED)[1]
    expected = (1 - passage.sigma) * widened(passage.clean, LARGE) * 2 + passage.sigma * noise
    assert torch.allclose(passage.after, expected, atol=1e-5)


def test_what_crosses_is_as_noisy_as_its_level_says_in_every_band() -> None:
    """Of white noise and a clean zero: every coefficient has the level's variance."""
    (passage,) = watched(made("spectral", levels=2), Noise())
    assert passage.clean.abs().max() < 1e-5
    powers = coefficients(passage.after).square().mean(dim=(0, 1, 2)) / passage.sigma**2
    assert powers[:8, :8].mean().item() == pytest.approx(1, abs=0.1)
    assert powers[8:, :].mean().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    ("num_steps", "settings", "told"),
    [
        (2, {}, "no smaller grid gets a step of its own; take more steps"),
        (50, {"levels": 0}, "greater than or equal to 1"),
        (50, {"mode": "fft"}, "dct_rewind"),
        (50, {"rewind": 0.5}, "rewind"),
    ],
)
def test_what_it_cannot_do_is_refused(num_steps: int, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(AssertionError, match=told):
        assert refusals("spectral", num_steps, **settings) == ""


def test_a_level_without_a_step_is_left_out() -> None:
    assert len(scheduled("spectral", "wan2.1-14b", levels=6).stages) <= 6
    assert len(scheduled("spectral", "wan2.1-14b", 5).stages) == 3
    assert len(scheduled("spectral", "wan2.1-14b", 4, levels=4).stages) < 4


@pytest.mark.parametrize("dvg", [{"extrapolation": 0.9}])
def test_the_latent_goes_on_only_where_its_own_noise_is_known(dvg: dict[str, Any]) -> None:
    def arm_of(**settings: Any) -> Any:
        return build_sweep({"prompts": ["a"], "planner": {"spectral": settings}, "dvg": dvg}, Path(), with_weights=False)

    with pytest.raises(ConfigError, match=r"leave out dvg.extrapolation, or take mode dct_rewind"):
        arm_of()
    assert arm_of(mode="dct_rewind").arms
    assert arm_of(levels=1).arms
