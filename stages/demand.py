"""How much detail and motion a clean sketch shows: DVG's equations 3 and 4 (arXiv 2605.21042), and alternatives.

Every measure takes a clean latent [B, C, T, H, W] and gives one number in [0, 1]; larger means more demand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.dvg_config import DvgConfig, SpatialDemand, TemporalDemand
from orchestrator.types import Demand

TINY_STD = 1e-6
TINY_POWER = 1e-12
HIGHPASS_HALF = 0.0025
"""High-pass amplitude of brightness that counts as a demand of one half: the median over sketches of training captions."""
FLOW_HALF = 0.1
"""Flow, in frame widths a clip, that counts as a demand of one half: likewise."""
FLOW_RIDGE = 1e-5
"""Gradient energy of brightness below which a place counts as flat."""

Pixels = Callable[[Tensor], Tensor]
"""Decodes a clean latent [1, C, T, H, W] to video [1, 3, F, H, W] in [-1, 1]."""


class DemandNotFinite(RuntimeError):
    """A demand that is no number: what it was measured on is at fault."""


@torch.inference_mode()
def measure(x0: Tensor, config: DvgConfig) -> Demand:
    """Both demands of a clean latent [B, C, T, H, W]. One latent frame has no motion to compare: neutral, zero, zero.

    The host waits for the device once. Raises DemandNotFinite.
    """
    if x0.shape[2] < 2:
        return Demand(0.0, 0.0, neutral=True)
    pair = SPATIAL[config.spatial_demand](x0.float()), TEMPORAL[config.temporal_demand](x0.float())
    spatial, temporal = torch.stack(pair).tolist()
    for name, value in (("spatial", spatial), ("temporal", temporal)):
        if not math.isfinite(value):
            raise DemandNotFinite(f"the {name} demand is {value}")
    return Demand(spatial, temporal)


def spatial_demand(x0: Tensor, method: SpatialDemand = "fft") -> float:
    """Spatial demand in [0, 1]; ``fft`` is the release: the share of energy beyond half the largest frequency."""
    return float(SPATIAL[method](x0.float()))


def temporal_demand(x0: Tensor, method: TemporalDemand = "global_lk") -> float:
    """Temporal demand in [0, 1] of at least two latent frames; ``global_lk`` is the release."""
    return float(TEMPORAL[method](x0.float()))


def brightness(video: Tensor) -> Tensor:
    """Video [B, 3, F, H, W] in [-1, 1] to its brightness [B, 1, F, H, W] in [0, 1] (Rec. 601)."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=video.device).view(1, 3, 1, 1, 1)
    return (video.float().add(1).div(2) * weights).sum(1, keepdim=True)


def squash(value: Tensor) -> Tensor:
    """A non-negative number to [0, 1): r / (1 + r)."""
    return value / (1 + value)


def _standardise(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return (x - x.mean(dims, keepdim=True)) / x.std(dims, keepdim=True).clamp_min(TINY_STD)


def _scalar_frames(x0: Tensor) -> Tensor:
    """[B, T, H, W]: the mean over channels, every frame standardised by itself."""
    return _standardise(x0.mean(1), (-2, -1))


# Spatial


def _frequencies(size: int, exact: bool) -> Tensor:
    """Frequency of every bin after fftshift, 1 at the largest.

    The release spans the bins evenly from -1 to 1, which is off centre for even sizes; ``exact`` takes the true ones.
    """
    return torch.fft.fftshift(torch.fft.fftfreq(size)) * 2 if exact else torch.linspace(-1, 1, size)


def _high(x0: Tensor, exact: bool = False) -> Tensor:
    """Mask [H, W] of the bins at half the largest radius or beyond."""
    fy, fx = (_frequencies(size, exact) for size in x0.shape[-2:])
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2) / math.sqrt(2)
    mask: Tensor = radius >= 0.5
    return mask.to(x0.device)


def _power(x0: Tensor) -> Tensor:
    """Power per frequency bin [B, C, T, H, W] of a latent standardised per channel."""
    spectrum = torch.fft.fft2(_standardise(x0, (2, 3, 4)), norm="ortho")
    power: Tensor = torch.fft.fftshift(spectrum.abs().square(), dim=(-2, -1))
    return power


def _fft(x0: Tensor, exact: bool = False) -> Tensor:
    power = _power(x0)
    high = _high(x0, exact)
    return power[..., high].sum() / power.sum().clamp_min(TINY_POWER)


def _fft_per_frame(x0: Tensor) -> Tensor:
    """The paper's equation 3: one ratio per frame, then their mean."""
    power = _power(x0)
    high = _high(x0)
    ratios = power[..., high].sum((1, 3)) / power.sum((1, 3, 4)).clamp_min(TINY_POWER)
    return ratios.mean()


def _fft_energy(x0: Tensor) -> Tensor:
    """High-band power per cell in the latent's own scale, so that a faint texture counts less than a strong one."""
    power = torch.fft.fftshift(torch.fft.fft2(x0, norm="ortho").abs().square(), dim=(-2, -1))
    return squash(power[..., _high(x0)].sum() / x0.numel())


def _sobel_magnitude(x0: Tensor) -> Tensor:
    """Mean gradient; it peaks at middling detail, because a Sobel kernel smooths across its direction."""
    gx, gy = _sobel(_scalar_frames(x0))
    return squash(torch.sqrt(gx**2 + gy**2).mean())


def _multiscale(x0: Tensor) -> Tensor:
    """Mean distance from box blurs of 3, 5 and 7 cells."""
    frames = _scalar_frames(x0).flatten(0, 1).unsqueeze(1)
    distances = [(frames - _box(frames, size)).abs().mean() for size in (3, 5, 7)]
    return squash(torch.stack(distances).mean())


def _highpass(x0: Tensor) -> Tensor:
    """Energy of what a box blur of 5 cells takes away, in the input's own scale, at its median place.

    The median looks past a thing that fills less than half of the picture: the ground decides.
    """
    frames = x0.flatten(0, 2).unsqueeze(1)
    return squash(((frames - _box(frames, 5)).abs().median() / HIGHPASS_HALF).square())


def _box(frames: Tensor, size: int) -> Tensor:
    """Box mean of [N, 1, H, W], the border counted by the cells it has."""
    return F.avg_pool2d(frames, size, stride=1, padding=size // 2, count_include_pad=False)


def _sobel(frames: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of [B, T, H, W] along width and height: 3 x 3 Sobel kernels over 8, zeros outside."""
    kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=frames.device) / 8
    kernels = torch.stack((kernel, kernel.T)).unsqueeze(1)
    gradients = F.conv2d(frames.flatten(0, 1).unsqueeze(1), kernels, padding=1)
    gx, gy = gradients.unbind(1)
    return gx.reshape(frames.shape), gy.reshape(frames.shape)


# Temporal


def _lucas_kanade_sums(x0: Tensor) -> tuple[Tensor, ...]:
    """Per cell of every frame pair, the products (xx, yy, xy, -xd, -yd) of gradients and difference."""
    frames = _scalar_frames(x0)
    before, difference = frames[:, :-1], frames[:, 1:] - frames[:, :-1]
    gx, gy = _sobel(before)
    return gx * gx, gy * gy, gx * gy, -gx * difference, -gy * difference


def _solve(xx: Tensor, yy: Tensor, xy: Tensor, bx: Tensor, by: Tensor, floor: float = 1e-6) -> Tensor:
    """Length of the flow that solves each 2 x 2 system, whose determinant counts as ``floor`` at least."""
    det = (xx * yy - xy * xy).clamp_min(floor)
    return torch.sqrt(((bx * yy - by * xy) / det) ** 2 + ((by * xx - bx * xy) / det) ** 2)


def _global_lk(x0: Tensor) -> Tensor:
    """One translation per frame pair, in latent cells: Lucas-Kanade over the whole frame, as in DVG's release."""
    xx, yy, xy, bx, by = (value.sum((-2, -1)) for value in _lucas_kanade_sums(x0))
    return squash(_solve(xx, yy, xy, bx, by).mean())


def _windowed_lk(x0: Tensor, size: int = 5) -> Tensor:
    """Dense Lucas-Kanade flow over 5 x 5 windows, weighted by gradient energy: the closest reading of the paper."""
    xx, yy, xy, bx, by = (_box(value.flatten(0, 1).unsqueeze(1), size).reshape(value.shape) for value in _lucas_kanade_sums(x0))
    energy = xx + yy
    ridge = 0.05 * energy.mean((-2, -1), keepdim=True)
    flow = _solve(xx + ridge, yy + ridge, xy, bx, by)
    return squash((flow * energy).sum() / energy.sum().clamp_min(TINY_POWER))


def _dense_lk(x0: Tensor) -> Tensor:
    """Mean length of the dense Lucas-Kanade flow, every cell counted alike, in frame widths a clip.

    Flat places have no flow; the unit does not depend on the sketch's grid.
    """
    frames = _box(x0.mean(1).flatten(0, 1).unsqueeze(1), 3).reshape(x0.shape[0], *x0.shape[2:])
    before, after = frames[:, :-1], frames[:, 1:]
    gx, gy = _sobel((before + after) / 2)
    difference = after - before
    products = (gx * gx, gy * gy, gx * gy, -gx * difference, -gy * difference)
    xx, yy, xy, bx, by = (_box(value.flatten(0, 1).unsqueeze(1), 5) for value in products)
    flow = _solve(xx + FLOW_RIDGE, yy + FLOW_RIDGE, xy, bx, by, floor=0.0).mean()
    return squash(flow * (x0.shape[2] - 1) / x0.shape[4] / FLOW_HALF)


def _phase_correlation(x0: Tensor) -> Tensor:
    """Length of the shift at the peak of each frame pair's phase correlation, to a fraction of a cell."""
    frames = _scalar_frames(x0)
    spectra = torch.fft.fft2(frames)
    cross = spectra[:, 1:] * spectra[:, :-1].conj()
    surface = torch.fft.ifft2(cross / cross.abs().clamp_min(TINY_POWER)).real.flatten(0, 1)
    peak = surface.flatten(1).argmax(1)
    row, column = peak // surface.shape[2], peak % surface.shape[2]
    pair = torch.arange(len(surface), device=x0.device)
    dy = _sub_cell(surface[pair, :, column], row)
    dx = _sub_cell(surface[pair, row, :], column)
    return squash(torch.sqrt(dx**2 + dy**2).mean())


def _sub_cell(line: Tensor, peak: Tensor) -> Tensor:
    """Signed position of a periodic line's peak [N, L] -> [N], refined by the parabola through its neighbours."""
    length = line.shape[1]
    low, mid, high = (line.gather(1, ((peak + step) % length)[:, None])[:, 0] for step in (-1, 0, 1))
    offset = 0.5 * (low - high) / (low - 2 * mid + high).clamp_max(-TINY_POWER)
    position = peak + offset.clamp(-0.5, 0.5)
    return torch.where(position > length / 2, position - length, position)


def _difference(x0: Tensor) -> Tensor:
    """Mean absolute change between standardised frames."""
    frames = _scalar_frames(x0)
    return squash((frames[:, 1:] - frames[:, :-1]).abs().mean())


def _change(x0: Tensor) -> Tensor:
    """Mean absolute change of every channel, in the latent's own scale: sees cuts and small objects too."""
    return squash((x0[:, :, 1:] - x0[:, :, :-1]).abs().mean())


def _spectrum(x0: Tensor) -> Tensor:
    """Share of temporal energy, the still part included, in the upper half of the frequencies."""
    power: Tensor = torch.fft.rfft(_scalar_frames(x0), dim=1, norm="ortho").abs() ** 2
    frequency = torch.fft.rfftfreq(x0.shape[2], device=x0.device)
    return power[:, frequency >= 0.25].sum() / power.sum().clamp_min(TINY_POWER)


SPATIAL: dict[SpatialDemand, Callable[[Tensor], Tensor]] = {
    "fft": _fft,
    "fft_exact": lambda x0: _fft(x0, exact=True),
    "fft_per_frame": _fft_per_frame,
    "fft_energy": _fft_energy,
    "sobel": _sobel_magnitude,
    "multiscale": _multiscale,
    "highpass": _highpass,
}
TEMPORAL: dict[TemporalDemand, Callable[[Tensor], Tensor]] = {
    "global_lk": _global_lk,
    "windowed_lk": _windowed_lk,
    "phase_correlation": _phase_correlation,
    "difference": _difference,
    "change": _change,
    "spectrum": _spectrum,
    "dense_lk": _dense_lk,
}
