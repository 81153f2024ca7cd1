"""What a video shows by itself, from differences of its frames: flickering, motion, whether anything happens at all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stages.video import Frames

EDGE_LEVELS = 4.0
"""Change of brightness from pixel to pixel, of 255, from which motion can be told from noise."""
VISIBLE_LEVELS = 10.0
"""Change of a pixel's brightness that is no noise of the codec."""
STATIC_SHARE = 0.005
"""Of the pixels, those that may change visibly in a clip that counts as static."""

Plane = np.ndarray[Any, np.dtype[np.float32]]


class Flicker:
    """VBench's ``temporal_flickering`` of one video: (255 - mean absolute difference of neighbouring frames) / 255.

    (Huang et al. 2024, VBench; its ``cal_score``.) In the same precision, so that the same frames give the same bits. VBench
    looks at videos of static scenes only, and at frames decoded by OpenCV.
    """

    names = ("flicker",)

    def __init__(self) -> None:
        self._last: Frames | None = None
        self._differences: list[np.float32] = []

    def add(self, frames: Frames, reference: Frames | None = None) -> None:
        for frame in frames:
            now = frame.astype(np.float32)
            if self._last is not None:
                self._differences.append(np.mean(np.abs(now - self._last)))
            self._last = now

    def values(self) -> dict[str, float]:
        return {"flicker": (255.0 - np.mean(np.array(self._differences)).item()) / 255.0}


class Motion:
    """How far the picture moves, in frame heights a second: the change of brightness over its gradient, at edges.

    That is the normal flow (Horn and Schunck 1981), each edge weighted by its strength; a camera cut and noise count as motion.
    """

    names = ("motion",)

    def __init__(self, fps: int) -> None:
        self.fps = fps
        self._last: Plane | None = None
        self._changes = self._gradients = 0.0
        self._height = 1

    def add(self, frames: Frames, reference: Frames | None = None) -> None:
        self._height = frames.shape[1]
        for frame in frames:
            now = brightness(frame)
            if self._last is not None:
                change, gradient = _edges(self._last, now)
                self._changes += change
                self._gradients += gradient
            self._last = now

    def values(self) -> dict[str, float]:
        pixels_per_frame = self._changes / self._gradients if self._gradients else 0.0
        return {"motion": pixels_per_frame * self.fps / self._height}


def _edges(before: Plane, now: Plane) -> tuple[float, float]:
    """Sums over the edges of two frames of the change between them and of the gradient of their mean."""
    mean = (before + now) / 2
    along_x, along_y = (mean[1:-1, 2:] - mean[1:-1, :-2]) / 2, (mean[2:, 1:-1] - mean[:-2, 1:-1]) / 2
    gradient = np.hypot(along_x, along_y)
    edge = gradient > EDGE_LEVELS
    change = np.abs(now - before)[1:-1, 1:-1]
    return float(change[edge].sum(dtype=np.float64)), float(gradient[edge].sum(dtype=np.float64))


class Static:
    """1 where in no frame more than ``STATIC_SHARE`` of the pixels differ visibly from the first frame, else 0.

    Plain frame differencing: not the filter by optical flow with which VBench picks static videos.
    """

    names = ("static",)

    def __init__(self) -> None:
        self._first: Plane | None = None
        self._most = 0.0

    def add(self, frames: Frames, reference: Frames | None = None) -> None:
        for frame in frames:
            now = brightness(frame)
            if self._first is None:
                self._first = now
            self._most = max(self._most, float((np.abs(now - self._first) > VISIBLE_LEVELS).mean()))

    def values(self) -> dict[str, float]:
        return {"static": float(self._most <= STATIC_SHARE)}


def brightness(frame: Frames) -> Plane:
    """The mean of red, green and blue [H, W], 0 to 255."""
    return np.asarray(frame.mean(-1, dtype=np.float32))
