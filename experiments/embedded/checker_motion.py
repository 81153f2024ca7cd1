"""The course of a track: which of the known motions explains it best, and how long its path is."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .scenes import DIRECTIONS

Doubles = NDArray[np.float64]

STILL_BELOW = 0.08  # frame sides: a drift covers at least 0.16
FAST_FROM = 0.33  # frame sides of path: a drift covers at most 0.20, a travel at least 0.48
MAX_MISFIT = 0.06  # RMS distance of a track from its best course, in frame sides
MAX_SLANT_DEGREES = 30  # from an axis


def speed_class(path_length: float) -> str:
    """ "still", "slow" or "fast", from the path's length in frame sides a clip."""
    if path_length < STILL_BELOW:
        return "still"
    return "slow" if path_length < FAST_FROM else "fast"


def find_course(centres: Doubles, times: Doubles) -> tuple[str, float]:
    """A direction, "bounce", "orbit", "none" (still) or "other", and the path's length, from centres [N, 2] at times [N]."""
    fits = [_straight(centres, times), _bounce(centres, times), _orbit(centres, times, 1), _orbit(centres, times, -1)]
    misfit, course, extent, length = min(fits)
    if misfit > MAX_MISFIT:
        return "other", _smoothed_length(centres)
    return ("none", extent) if extent < STILL_BELOW else (course, length)


def _straight(centres: Doubles, times: Doubles) -> tuple[float, str, float, float]:
    """Misfit, course, extent and path length of the best straight line."""
    basis = np.stack([np.ones_like(times), times], 1)
    numbers, misfit = _fit(basis, centres)
    step = numbers[1]
    length = float(np.hypot(*step))
    return misfit, _direction(step), length, length


def _bounce(centres: Doubles, times: Doubles) -> tuple[float, str, float, float]:
    """The same for two hops, upwards from the ground."""
    hops = np.abs(np.sin(2 * np.pi * times))
    numbers, misfit_y = _fit(np.stack([np.ones_like(times), -hops], 1), centres[:, 1:])
    misfit = math.hypot(misfit_y, float(centres[:, 0].std()))
    height = float(numbers[1, 0])
    return misfit, "bounce" if height > 0 else "other", abs(height), 4 * abs(height)


def _orbit(centres: Doubles, times: Doubles, sense: int) -> tuple[float, str, float, float]:
    """The same for one full circle, clockwise for sense 1."""
    cos, sin = np.cos(2 * np.pi * times), sense * np.sin(2 * np.pi * times)
    one, zero = np.ones_like(times), np.zeros_like(times)
    basis = np.concatenate([np.stack([one, zero, cos, -sin], 1), np.stack([zero, one, sin, cos], 1)])
    numbers, misfit = _fit(basis, centres.T.reshape(-1, 1))
    radius = float(np.hypot(numbers[2, 0], numbers[3, 0]))
    return misfit * math.sqrt(2), "orbit", 2 * radius, 2 * math.pi * radius


def _fit(basis: Doubles, values: Doubles) -> tuple[Doubles, float]:
    """Least-squares numbers, and the RMS length of the residual rows."""
    numbers = np.asarray(np.linalg.lstsq(basis, values, rcond=None)[0], np.float64)
    return numbers, float(np.sqrt(((values - basis @ numbers) ** 2).sum(1).mean()))


def _direction(step: Doubles) -> str:
    """The direction within `MAX_SLANT_DEGREES` of a step, or "other"."""
    slants = {name: float(step @ np.array(unit)) for name, unit in DIRECTIONS.items() if name != "none"}
    best = max(slants, key=lambda name: slants[name])
    steep = slants[best] >= math.cos(math.radians(MAX_SLANT_DEGREES)) * float(np.hypot(*step))
    return best if steep else "other"


def _smoothed_length(centres: Doubles) -> float:
    """Path length after a running mean of three: what is left of a track that follows no known course."""
    smooth = (centres[:-2] + centres[1:-1] + centres[2:]) / 3
    return float(np.hypot(*np.diff(smooth, axis=0).T).sum())
