"""Temporal demand: how much motion a clean latent [B, C, T, H, W] shows, in [0, 1] (DVG's equation 4, and alternatives)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.dvg_config import TemporalDemand
from stages.frames import TINY_POWER, box, scalar_frames, sobel, squash

FLOW_HALF = 0.1
"""Flow, in frame widths a clip, that counts as a demand of one half: the median over sketches of training captions."""
FLOW_RIDGE = 1e-5
"""Gradient energy of brightness below which a place counts as flat."""


def _lucas_kanade_sums(x0: Tensor) -> tuple[Tensor, ...]:
    """Per cell of every frame pair, the products (xx, yy, xy, -xd, -yd) of gradients and difference."""
    frames = scalar_frames(x0)
    before, difference = frames[:, :-1], frames[:, 1:] - frames[:, :-1]
    gx, gy = sobel(before)
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
    xx, yy, xy, bx, by = (box(value.flatten(0, 1).unsqueeze(1), size).reshape(value.shape) for value in _lucas_kanade_sums(x0))
    energy = xx + yy
    ridge = 0.05 * energy.mean((-2, -1), keepdim=True)
    flow = _solve(xx + ridge, yy + ridge, xy, bx, by)
    return squash((flow * energy).sum() / energy.sum().clamp_min(TINY_POWER))


def _dense_lk(x0: Tensor) -> Tensor:
    """Mean length of the dense Lucas-Kanade flow, every cell counted alike, in frame widths a clip.

    Flat places have no flow; the unit does not depend on the sketch's grid.
    """
    frames = box(x0.mean(1).flatten(0, 1).unsqueeze(1), 3).reshape(x0.shape[0], *x0.shape[2:])
    before, after = frames[:, :-1], frames[:, 1:]
    gx, gy = sobel((before + after) / 2)
    difference = after - before
    products = (gx * gx, gy * gy, gx * gy, -gx * difference, -gy * difference)
    xx, yy, xy, bx, by = (box(value.flatten(0, 1).unsqueeze(1), 5) for value in products)
    flow = _solve(xx + FLOW_RIDGE, yy + FLOW_RIDGE, xy, bx, by, floor=0.0).mean()
    return squash(flow * (x0.shape[2] - 1) / x0.shape[4] / FLOW_HALF)


def _phase_correlation(x0: Tensor) -> Tensor:
    """Length of the shift at the peak of each frame pair's phase correlation, to a fraction of a cell."""
    frames = scalar_frames(x0)
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
    frames = scalar_frames(x0)
    return squash((frames[:, 1:] - frames[:, :-1]).abs().mean())


def _squared_difference(x0: Tensor) -> Tensor:
    """Mean squared change between standardised frames."""
    frames = scalar_frames(x0)
    return squash((frames[:, 1:] - frames[:, :-1]).square().mean())


def _multiscale_cosine(x0: Tensor) -> Tensor:
    """Mean cosine distance between frames of intensity and both gradients, at 1, 2 and 4 cells a cell."""
    frames = scalar_frames(x0)
    scales = [scale for scale in (1, 2, 4) if min(frames.shape[-2:]) >= scale]
    return squash(torch.stack([_cosine_distance(F.avg_pool2d(frames, scale)) for scale in scales]).mean())


def _cosine_distance(frames: Tensor) -> Tensor:
    seen = torch.cat([part.flatten(2) for part in (frames, *sobel(frames))], dim=2)
    return (1 - F.cosine_similarity(seen[:, 1:], seen[:, :-1], dim=2)).clamp_min(0).mean()


def _change(x0: Tensor) -> Tensor:
    """Mean absolute change of every channel, in the latent's own scale: sees cuts and small objects too."""
    return squash((x0[:, :, 1:] - x0[:, :, :-1]).abs().mean())


def temporal_spectrum(x0: Tensor) -> Tensor:
    """Share of temporal energy, the still part included, in the upper half of the frequencies."""
    power: Tensor = torch.fft.rfft(scalar_frames(x0), dim=1, norm="ortho").abs() ** 2
    upper = math.ceil(x0.shape[2] / 4)  # the first of the frequencies k / T from 1/4 on
    return power[:, upper:].sum() / power.sum().clamp_min(TINY_POWER)


TEMPORAL: dict[TemporalDemand, Callable[[Tensor], Tensor]] = {
    "global_lk": _global_lk,
    "windowed_lk": _windowed_lk,
    "phase_correlation": _phase_correlation,
    "difference": _difference,
    "squared_difference": _squared_difference,
    "multiscale_cosine": _multiscale_cosine,
    "change": _change,
    "spectrum": temporal_spectrum,
    "dense_lk": _dense_lk,
}
