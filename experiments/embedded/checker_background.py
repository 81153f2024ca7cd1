"""What lies behind the things: the background's class from its spectrum, the camera from how its pixels move.

Looks at pixels alone. Coordinates are in frame sides, as in `scenes`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .scenes import PAN_LENGTHS

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
Doubles = NDArray[np.float64]

NUM_CLASS_FRAMES = 5
BAND = (3.0, 26.0)  # cycles a side: between shading and pixel noise; every texture lies in it
LINE_WIDTH = 2.3  # cycles a side: what the window smears a spectral line to
FLAT_TEXTURE, FLAT_SHADE = 0.016, 0.035  # RMS of what still passes for plain
SHADED = 0.75  # share of the variance that a cubic surface explains, from which a background is a gradient
STRIPE_SHARE, SLANTED_SHARE = 0.75, 0.55  # of the power, on one line: any line, one off the vertical
CHECKER_SHARE, BRICK_SHARE = 0.25, 0.47  # of the power, on each diagonal, on the vertical
NOISE_SHARE = 0.45  # of the power on one line: the most that noise has

GRID = 32  # background points a side that are followed
LAGS = (0.05, 0.1, 0.2, 0.4)  # of the clip: short ones tell periods apart, long ones are exact
PAIRS_PER_LAG = 5
PANS = np.round(np.arange(-0.80, 0.801, 0.02), 2)
ZOOMS = np.array([0.7, 0.78, 0.86, 0.93, 1.07, 1.14, 1.22, 1.3, 1.4, 1.5, 1.6])
MIN_ZOOM = 1.18
SLOW_PAN, FAST_PAN = PAN_LENGTHS["slow"] / 2, (PAN_LENGTHS["slow"] + PAN_LENGTHS["fast"]) / 2


def background_class(luma: Floats, free: Bools) -> str:
    """One of `scenes.BACKGROUNDS`, or "other", of frames [F, H, W] where `free` marks the pixels without things."""
    picks = np.unique(np.linspace(0, len(luma) - 1, NUM_CLASS_FRAMES).round().astype(int))
    usable = [i for i in picks if free[i].mean() > 0.3]
    if not usable:
        return "other"
    features = np.median([_features(luma[i], free[i]) for i in usable], axis=0)
    return _class(*(float(number) for number in features))


def _features(luma: Floats, free: Bools) -> tuple[float, ...]:
    """Of one frame: RMS shading, share of the variance that is shading, RMS texture, share of its power on the line through its
    peak, on that line's mirror image and on the vertical, and the peak's angle from the nearest axis in degrees."""
    height, width = luma.shape
    surface = _cubic_surface(luma, free)
    total = float(luma[free].var())
    shade = float(surface[free].var())
    rest = np.where(free, luma - surface, 0)
    window = np.hanning(height)[:, None] * np.hanning(width)
    power = np.abs(np.fft.fft2(rest * window)) ** 2 / (window**2).sum() / luma.size
    fy, fx = np.fft.fftfreq(height, 1 / height)[:, None], np.fft.fftfreq(width, 1 / width)[None]
    radius = np.hypot(fy, fx)
    power *= (radius >= BAND[0]) & (radius <= BAND[1])
    texture = float(power.sum())
    row, column = np.unravel_index(power.argmax(), power.shape)
    peak_x, peak_y = float(fx[0, column]), float(fy[row, 0])

    def share(along_x: float, along_y: float) -> float:
        away = np.abs(fx * along_y - fy * along_x) / max(math.hypot(along_x, along_y), 1.0)
        return float(power[away <= LINE_WIDTH].sum()) / max(texture, 1e-12)

    angle = math.degrees(math.atan2(min(abs(peak_x), abs(peak_y)), max(abs(peak_x), abs(peak_y))))
    shares = share(peak_x, peak_y), share(-peak_x, peak_y), share(0.0, 1.0)
    return math.sqrt(shade), shade / max(total, 1e-12), math.sqrt(texture), *shares, angle


def _cubic_surface(luma: Floats, free: Bools) -> Doubles:
    """The cubic polynomial of x and y nearest to the free pixels, [H, W]."""
    height, width = luma.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    basis = np.stack([x**i * y**j for i in range(4) for j in range(4 - i)], -1)
    numbers = np.linalg.lstsq(basis[free][::5], luma[free][::5].astype(np.float64), rcond=None)[0]
    return basis @ numbers


def _class(shade: float, shaded: float, texture: float, line: float, mirror: float, vertical: float, angle: float) -> str:
    """The background's class from `_features`."""
    if texture < FLAT_TEXTURE and shade < FLAT_SHADE:
        return "plain"
    if shaded > SHADED:
        return "gradient"
    if line > STRIPE_SHARE or (line > SLANTED_SHARE and vertical < SLANTED_SHARE / 2):  # bricks lie on the vertical
        return "stripes"
    if min(line, mirror) > CHECKER_SHARE and angle > 25:
        return "checker"
    if vertical > BRICK_SHARE:
        return "bricks"
    return "noise" if line < NOISE_SHARE else "other"


def camera_class(luma: Floats, free: Bools, times: Doubles) -> str:
    """One of `scenes.CAMERAS`, "zoom out", or "unseen" where no pan would change the picture, of frames [F, H, W]."""
    pan_misfits, zoom_misfits = misfits(luma, free, times)
    if zoom_misfits.min() < pan_misfits.min() and not 1 / MIN_ZOOM < ZOOMS[zoom_misfits.argmin()] < MIN_ZOOM:
        return "zoom" if ZOOMS[zoom_misfits.argmin()] > 1 else "zoom out"
    if pan_misfits[np.abs(PANS) <= 0.5].max() < 1.5 * pan_misfits.min() + 1e-5:
        return "unseen"
    pan = float(PANS[pan_misfits.argmin()])
    if abs(pan) < SLOW_PAN:
        return "static"
    return f"{'slow' if abs(pan) < FAST_PAN else 'fast'} pan {'right' if pan > 0 else 'left'}"


def misfits(luma: Floats, free: Bools, times: Doubles) -> tuple[Doubles, Doubles]:
    """Mean squared change of followed background points, for each of `PANS` and each of `ZOOMS`."""
    height, width = luma.shape[1:]
    blur = 0.006
    smooth = ndimage.gaussian_filter(luma, (0, blur * height, blur * width))
    pans = np.concatenate([PANS, np.zeros(len(ZOOMS))])
    zooms = np.concatenate([np.ones(len(PANS)), ZOOMS])
    pairs = _pairs(times)
    misfit = np.mean([_pair_misfit(smooth, free, times, pair, pans, zooms) for pair in pairs], axis=0)
    return misfit[: len(PANS)], misfit[len(PANS) :]


def _pairs(times: Doubles) -> list[tuple[int, int]]:
    """Pairs of frames about each of `LAGS` apart, spread over the clip."""
    pairs = set()
    for lag in LAGS:
        step = max(round(lag * (len(times) - 1)), 1)
        pairs |= {(int(i), int(i) + step) for i in np.linspace(0, len(times) - 1 - step, PAIRS_PER_LAG)}
    return sorted(pairs)


def _pair_misfit(luma: Floats, free: Bools, times: Doubles, pair: tuple[int, int], pans: Doubles, zooms: Doubles) -> Doubles:
    """Mean squared difference between a grid of points of one frame and where each camera would show them in the other."""
    first, second = pair
    height, width = luma.shape[1:]
    grid = (np.arange(GRID) + 0.5) / GRID
    rows, columns = (grid * height).astype(int), (grid * width).astype(int)
    x, y = (columns + 0.5) / width, (rows + 0.5) / height
    lag = times[second] - times[first]
    scale = zooms**lag
    shift = pans * lag
    to_x = (0.5 + (x - 0.5) * scale[:, None] - shift[:, None]) * width - 0.5
    to_y = (0.5 + (y - 0.5) * scale[:, None]) * height - 0.5
    inside = _inside(to_x, width)[:, None, :] & _inside(to_y, height)[:, :, None]
    here = luma[first][np.ix_(rows, columns)]
    there, open_there = _sample(luma[second], free[second], to_x, to_y)
    valid = inside & open_there & free[first][np.ix_(rows, columns)]
    squared = np.where(valid, (there - here) ** 2, 0)
    return np.asarray(squared.sum((1, 2)) / np.maximum(valid.sum((1, 2)), 1))


def _inside(position: Doubles, side: int) -> Bools:
    return (position >= 0) & (position <= side - 1)


def _sample(frame: Floats, free: Bools, x: Doubles, y: Doubles) -> tuple[Doubles, Bools]:
    """Bilinear values and openness of a frame [H, W] on grids given by columns x [K, N] and rows y [K, N]: [K, N, N]."""
    left = np.clip(np.floor(x), 0, frame.shape[1] - 2).astype(int)
    top = np.clip(np.floor(y), 0, frame.shape[0] - 2).astype(int)
    a, b = np.clip(x - left, 0, 1)[:, None, :], np.clip(y - top, 0, 1)[:, :, None]
    i, j = top[:, :, None], left[:, None, :]
    upper = frame[i, j] * (1 - a) + frame[i, j + 1] * a
    lower = frame[i + 1, j] * (1 - a) + frame[i + 1, j + 1] * a
    return upper * (1 - b) + lower * b, free[i, j] & free[i + 1, j + 1]
