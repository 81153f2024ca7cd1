"""Spatial and temporal demand of a clean latent."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import DvgConfig, weights
from stages.demand import FLOW_HALF, SPATIAL, TEMPORAL, brightness, measure, spatial_demand, temporal_demand
from stages.noise import coordinate_noise


def wave():
    """The reference latent, C4 T6 H12 W16."""
    c, t, h, w = torch.meshgrid(*map(torch.arange, (4, 6, 12, 16)), indexing="ij")
    x = torch.sin(0.4 * w + 0.3 * h + 0.5 * t + 0.7 * c) + 0.1 * torch.cos(2.5 * w - 1.7 * h + 0.2 * t)
    return x[None].float()


def noise():
    return coordinate_noise((tuple(range(6)), tuple(range(12)), tuple(range(16))), 4, 7, "cpu")


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blur(x, sigma):
    """Gaussian blur of every frame, zeros outside."""
    radius = int(4 * sigma + 0.5)
    kernel = torch.exp(-(torch.arange(-radius, radius + 1.0) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    frames = F.conv2d(x.flatten(0, 2)[:, None], kernel[None, None, :, None], padding=(radius, 0))
    return F.conv2d(frames, kernel[None, None, None, :], padding=(0, radius)).reshape(x.shape)


def moving(shift, seed=0, num_frames=6):
    """A smooth periodic texture moving ``shift`` cells a frame along the width."""
    spectrum = torch.fft.fft2(blur(randn(1, 1, 1, 64, 64, seed=seed), 3.0)[0, 0, 0])
    frequency = torch.fft.fftfreq(64)[None, :]
    frames = [torch.fft.ifft2(spectrum * torch.exp(-2j * math.pi * frequency * shift * i)).real for i in range(num_frames)]
    return torch.stack(frames)[None, None]


def flow(x, method):
    """The cells a frame behind a squashed temporal demand."""
    value = temporal_demand(x, method)
    return value / (1 - value)


def test_golden_wave():
    demand = measure(wave(), DvgConfig())
    assert demand.spatial == pytest.approx(0.0398, abs=5.1e-5)
    assert spatial_demand(wave(), "fft_exact") == pytest.approx(0.0307, abs=5.1e-5)
    assert flow(wave(), "global_lk") == pytest.approx(0.9723, abs=5.1e-5)
    assert demand.temporal == pytest.approx(0.4930, abs=5.1e-5)
    assert not demand.neutral
    assert weights(demand, 2.6) == pytest.approx((0.2354, 0.7646), abs=5.1e-5)


def test_golden_noise():
    demand = measure(noise(), DvgConfig())
    assert demand.spatial == pytest.approx(0.6786, abs=5.1e-5)
    assert spatial_demand(noise(), "fft_exact") == pytest.approx(0.6407, abs=5.1e-5)
    assert flow(noise(), "global_lk") == pytest.approx(0.2603, abs=5.1e-5)
    assert demand.temporal == pytest.approx(0.2065, abs=5.1e-5)


@pytest.mark.parametrize(("height", "width", "value"), [(15, 26, 0.661), (30, 52, 0.630), (45, 80, 0.621)])
def test_white_noise_fills_the_high_band_by_its_area(height, width, value):
    assert spatial_demand(randn(1, 8, 12, height, width)) == pytest.approx(value, abs=0.004)


@pytest.mark.parametrize(("sigma", "value"), [(0.5, 0.448), (1.0, 0.038), (2.0, 0.017)])
def test_blur_empties_the_high_band(sigma, value):
    assert spatial_demand(blur(randn(1, 8, 12, 15, 26), sigma)) == pytest.approx(value, abs=0.01)


@pytest.mark.parametrize(("shift", "value", "slack"), [(0.25, 0.23, 0.03), (0.5, 0.46, 0.05), (1, 0.9, 0.1)])
def test_the_released_flow_tracks_a_translation_up_to_a_cell_a_frame(shift, value, slack):
    assert flow(moving(shift), "global_lk") == pytest.approx(value, abs=slack)


def test_phase_correlation_tracks_a_translation_of_several_cells():
    assert flow(moving(4), "phase_correlation") == pytest.approx(4.0, abs=0.1)
    assert flow(moving(-4), "phase_correlation") == pytest.approx(4.0, abs=0.1)


@pytest.mark.parametrize("method", TEMPORAL)
def test_every_temporal_measure_grows_with_the_speed_of_one_texture(method):
    values = [temporal_demand(moving(shift), method) for shift in (0, 0.25, 0.5, 1, 2)]
    assert values == sorted(values)
    assert values[-1] > 2 * values[1] > 0


@pytest.mark.parametrize("method", sorted(set(TEMPORAL) - {"phase_correlation"}))
def test_a_still_video_shows_no_motion(method):
    assert temporal_demand(randn(1, 4, 1, 12, 16).expand(-1, -1, 6, -1, -1), method) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("method", SPATIAL)
def test_every_spatial_measure_grows_with_detail(method):
    values = [spatial_demand(blur(randn(1, 4, 6, 24, 24), sigma), method) for sigma in (3.0, 1.0, 0.5)]
    if method == "sobel":
        values = values[:2]  # a Sobel kernel is blind to the finest detail
    else:
        values.append(spatial_demand(randn(1, 4, 6, 24, 24), method))
    assert values == sorted(values)
    assert values[-1] > values[0]


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(2, 5), st.integers(2, 9), st.integers(2, 9)),
    st.integers(0, 99),
    st.floats(0.01, 100.0),
    st.sampled_from(sorted(SPATIAL)),
    st.sampled_from(sorted(TEMPORAL)),
)
def test_demands_stay_within_zero_and_one_at_any_scale(grid, seed, scale, spatial, temporal):
    x = randn(1, 3, *grid, seed=seed) * scale
    assert 0 <= spatial_demand(x, spatial) <= 1
    assert 0 <= temporal_demand(x, temporal) <= 1


@given(st.integers(0, 99), st.floats(0.1, 10.0), st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_the_released_measures_ignore_contrast_and_brightness(seed, gain, offset):
    x = randn(1, 1, 4, 10, 12, seed=seed)
    y = x * gain + offset
    assert spatial_demand(y) == pytest.approx(spatial_demand(x), abs=1e-3)
    assert temporal_demand(y) == pytest.approx(temporal_demand(x), abs=1e-3)


@pytest.mark.parametrize("method", sorted(SPATIAL))
def test_a_blank_latent_shows_no_detail(method):
    assert spatial_demand(torch.full((1, 4, 3, 9, 9), 2.0), method) == pytest.approx(0.0, abs=1e-4)


def test_only_the_measures_in_the_inputs_own_scale_see_contrast():
    x = 0.01 * wave()
    faint = {method for method in SPATIAL if spatial_demand(x / 4, method) < 0.9 * spatial_demand(x, method)}
    slight = {method for method in TEMPORAL if temporal_demand(x / 4, method) < 0.9 * temporal_demand(x, method)}
    assert (faint, slight) == ({"fft_energy", "highpass"}, {"change", "dense_lk"})


def test_one_latent_frame_is_neutral_and_says_so():
    demand = measure(randn(1, 4, 1, 8, 8), DvgConfig())
    assert demand.neutral
    assert weights(demand, 2.6) == (0.5, 0.5)


def test_the_configured_measures_are_used():
    config = DvgConfig(spatial_demand="multiscale", temporal_demand="difference")
    demand = measure(wave(), config)
    assert demand.spatial == spatial_demand(wave(), "multiscale") != spatial_demand(wave())
    assert demand.temporal == temporal_demand(wave(), "difference") != temporal_demand(wave())


def test_a_latent_that_is_not_finite_is_an_error():
    x = wave()
    x[0, 0, 0, 0, 0] = math.nan
    with pytest.raises(RuntimeError, match="not finite"):
        measure(x, DvgConfig())


def test_half_precision_latents_are_measured_in_float32():
    assert spatial_demand(wave().bfloat16()) == pytest.approx(0.0398, abs=0.002)


def panned(shift_per_clip: float, frames: int = 13, side: int = 48) -> torch.Tensor:
    """Brightness [1, 1, F, H, W] of a smooth texture that moves to the right by ``shift_per_clip`` frame widths."""
    x = torch.arange(side) / side
    shifts = torch.linspace(0, shift_per_clip, frames)
    pattern = (
        torch.sin(2 * torch.pi * 3 * (x[None, :] - shifts[:, None]))[:, None, :] + torch.sin(2 * torch.pi * 2 * x)[None, :, None]
    )
    return (0.5 + 0.1 * pattern)[None, None]


@pytest.mark.parametrize("shift", [0.05, 0.1, 0.2])
def test_the_dense_flow_is_in_frame_widths_a_clip_whatever_the_grid(shift):
    for frames, side in ((13, 48), (21, 48), (13, 64)):
        demand = temporal_demand(panned(shift, frames, side), "dense_lk")
        assert FLOW_HALF * demand / (1 - demand) == pytest.approx(shift, rel=0.35)


def test_a_still_clip_has_no_dense_flow_and_a_flat_one_no_high_pass_energy():
    assert temporal_demand(panned(0.0), "dense_lk") == 0.0
    assert spatial_demand(torch.full((1, 1, 4, 32, 32), 0.5), "highpass") == pytest.approx(0.0, abs=1e-6)


def test_brightness_is_one_for_white_and_zero_for_black_and_green_counts_most():
    assert brightness(torch.ones(1, 3, 1, 1, 1)).item() == pytest.approx(1.0)
    assert brightness(-torch.ones(1, 3, 1, 1, 1)).item() == pytest.approx(0.0)
    red, green, blue = (brightness(2.0 * torch.eye(3)[i].view(1, 3, 1, 1, 1) - 1).item() for i in range(3))
    assert green > red > blue
