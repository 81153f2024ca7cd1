"""Spatial demand: how much detail a clean latent [B, C, T, H, W] shows, in [0, 1] (DVG's equation 3, and alternatives)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from orchestrator.dvg_config import SpatialDemand
from stages.frames import TINY_POWER, box, scalar_frames, sobel, squash, standardise
from stages.motion import temporal_spectrum

HIGHPASS_HALF = 0.0025
"""High-pass amplitude of brightness that counts as a demand of one half: the median over sketches of training captions."""


def _frequencies(size: int, exact: bool, device: torch.device) -> Tensor:
    """Frequency of every bin after fftshift, 1 at the largest.

    The release spans the bins evenly from -1 to 1, which is off centre for even sizes; ``exact`` takes the true ones.
    """
    if exact:
        centred: Tensor = torch.fft.fftshift(torch.fft.fftfreq(size, device=device)) * 2
        return centred
    return torch.linspace(-1, 1, size, device=device)


def _high(x0: Tensor, exact: bool = False) -> Tensor:
    """Ones [H, W] at the bins at half the largest radius or beyond, else zeros. (Picking by a mask would wait for the device.)"""
    fy, fx = (_frequencies(size, exact, x0.device) for size in x0.shape[-2:])
    radius = torch.sqrt(fy[:, None] ** 2 + fx[None, :] ** 2) / math.sqrt(2)
    return (radius >= 0.5).to(x0.dtype)


def _power(x0: Tensor) -> Tensor:
    """Power per frequency bin [B, C, T, H, W] of a latent standardised per channel."""
    spectrum = torch.fft.fft2(standardise(x0, (2, 3, 4)), norm="ortho")
    power: Tensor = torch.fft.fftshift(spectrum.abs().square(), dim=(-2, -1))
    return power


def _fft(x0: Tensor, exact: bool = False) -> Tensor:
    power = _power(x0)
    high = _high(x0, exact)
    return (power * high).sum() / power.sum().clamp_min(TINY_POWER)


def _fft_per_frame(x0: Tensor) -> Tensor:
    """The paper's equation 3: one ratio per frame, then their mean."""
    power = _power(x0)
    high = _high(x0)
    ratios = (power * high).sum((1, 3, 4)) / power.sum((1, 3, 4)).clamp_min(TINY_POWER)
    return ratios.mean()


def _fft_energy(x0: Tensor) -> Tensor:
    """High-band power per cell in the latent's own scale, so that a faint texture counts less than a strong one."""
    power = torch.fft.fftshift(torch.fft.fft2(x0, norm="ortho").abs().square(), dim=(-2, -1))
    return squash((power * _high(x0)).sum() / x0.numel())


def _sobel_magnitude(x0: Tensor) -> Tensor:
    """Mean gradient; it peaks at middling detail, because a Sobel kernel smooths across its direction."""
    gx, gy = sobel(scalar_frames(x0))
    return squash(torch.sqrt(gx**2 + gy**2).mean())


def _from_blur(x0: Tensor, size: int) -> Tensor:
    """Mean distance from a box blur of ``size`` cells."""
    frames = scalar_frames(x0).flatten(0, 1).unsqueeze(1)
    return (frames - box(frames, size)).abs().mean()


def _multiscale(x0: Tensor) -> Tensor:
    """Mean distance from box blurs of 3, 5 and 7 cells."""
    return torch.stack([_from_blur(x0, size) for size in (3, 5, 7)]).mean()


def _spectrum_multiscale(x0: Tensor) -> Tensor:
    """Half the share of fast temporal energy, half the distance from the blurs."""
    return squash(0.5 * temporal_spectrum(x0) + 0.5 * _multiscale(x0))


def _highpass(x0: Tensor) -> Tensor:
    """Energy of what a box blur of 5 cells takes away, in the input's own scale, at its median place.

    The median looks past a thing that fills less than half of the picture: the ground decides.
    """
    frames = x0.flatten(0, 2).unsqueeze(1)
    return squash(((frames - box(frames, 5)).abs().median() / HIGHPASS_HALF).square())


SPATIAL: dict[SpatialDemand, Callable[[Tensor], Tensor]] = {
    "fft": _fft,
    "fft_exact": lambda x0: _fft(x0, exact=True),
    "fft_per_frame": _fft_per_frame,
    "fft_energy": _fft_energy,
    "sobel": _sobel_magnitude,
    "blur3": lambda x0: squash(_from_blur(x0, 3)),
    "blur5": lambda x0: squash(_from_blur(x0, 5)),
    "blur7": lambda x0: squash(_from_blur(x0, 7)),
    "multiscale": lambda x0: squash(_multiscale(x0)),
    "spectrum_multiscale": _spectrum_multiscale,
    "highpass": _highpass,
}
