"""Checks a video against the scene it was asked for, by looking at its pixels.

`classify` sees only the video; `check` compares what it saw with the scene. `python -m experiments.embedded.checker`
measures both on rendered scenes, clean and degraded, and on videos of other scenes, of one frozen frame and of nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .checker_background import background_class, camera_class
from .checker_things import SeenThing, find_things, opponents
from .scenes import SPEED_CLASSES, Scene, Thing

ATTRIBUTES = ("colour", "shape", "size", "direction", "speed", "background", "camera")
MAX_FRAMES = 41
TINTED = 0.2  # opponent length from which a pixel is not background
MARGIN = 0.02  # frame sides around a thing that are not background either


@dataclass(frozen=True)
class Observed:
    """What a video shows: things from large to small, the background ("other" if no class fits), the camera ("unseen" if
    it cannot be told)."""

    things: tuple[SeenThing, ...]
    background: str
    camera: str


def classify(video: NDArray[np.uint8]) -> Observed:
    """The attributes of a video [F, H, W, 3], from its pixels alone; ValueError unless it is uint8 of that shape, F >= 5."""
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3 or len(video) < 5:
        raise ValueError(f"video is {video.dtype} {list(video.shape)}: must be uint8 [at least 5, height, width, 3]")
    picks = sampled(len(video))
    return observe(video[picks], picks / (len(video) - 1))


def sampled(num_frames: int) -> NDArray[np.int64]:
    """Which frames of a video are looked at."""
    return np.unique(np.linspace(0, num_frames - 1, min(num_frames, MAX_FRAMES)).round().astype(np.int64))


def observe(frames: NDArray[np.uint8], times: NDArray[np.float64]) -> Observed:
    """`classify` of the frames that were `sampled`, shown at `times` in [0, 1] of the clip."""
    shown = frames.astype(np.float32) / 255
    planes = opponents(shown)
    luma, free = shown.mean(-1), _free(planes)
    background = background_class(luma, free)
    camera = "unseen" if background == "plain" else camera_class(luma, free, times)
    return Observed(find_things(planes, times), background, camera)


def _free(planes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels away from any coloured thing, [F, H, W]."""
    tinted = np.hypot(planes[0], planes[1]) > TINTED
    height, width = tinted.shape[1:]
    size = (1, 2 * round(MARGIN * height) + 1, 2 * round(MARGIN * width) + 1)
    return np.asarray(~ndimage.maximum_filter(tinted, size), np.bool_)


def check(video: NDArray[np.uint8], scene: Scene) -> dict[str, bool | None]:
    """Whether a video [F, H, W, 3] uint8 shows each of `ATTRIBUTES` of a scene; with two things, both must be right.

    Direction stands for the course: left, right, up, down, bounce or orbit. None where there is nothing to see: the
    direction of a still thing, the camera before a plain background. An empty video before a plain background has nothing
    right. ValueError as `classify`.
    """
    return compare(classify(video), scene)


def compare(seen: Observed, scene: Scene) -> dict[str, bool | None]:
    """`check` of a video that was classified already."""
    pairs = _match(seen.things, scene.things)
    blank = not seen.things and seen.background == "plain"
    moving = [(thing, found) for thing, found in pairs if thing.motion != "still"]
    num_seen = sum(found.num_copies for found in seen.things)
    return {
        "colour": num_seen == len(pairs) and all(found is not None and found.colour == thing.colour for thing, found in pairs),
        "shape": all(found is not None and found.shape == thing.shape for thing, found in pairs),
        "size": all(found is not None and found.size == thing.size for thing, found in pairs),
        "direction": all(found is not None and found.course == course(thing) for thing, found in moving) if moving else None,
        "speed": all(found is not None and found.speed == SPEED_CLASSES[thing.motion] for thing, found in pairs),
        "background": seen.background == scene.background and not blank,
        "camera": None if scene.background == "plain" else seen.camera == scene.camera,
    }


def course(thing: Thing) -> str:
    """The course that a thing should be seen to take."""
    return thing.motion if thing.motion in ("bounce", "orbit") else thing.direction


def _match(seen: tuple[SeenThing, ...], wanted: tuple[Thing, ...]) -> list[tuple[Thing, SeenThing | None]]:
    """Each wanted thing with the seen one of its colour, else with the largest of those left over."""
    left = list(seen)
    found: dict[str, SeenThing] = {}
    for thing in wanted:
        for candidate in left:
            if candidate.colour == thing.colour:
                found[thing.colour] = candidate
                left.remove(candidate)
                break
    for thing in wanted:
        if thing.colour not in found and left:
            found[thing.colour] = left.pop(0)
    return [(thing, found.get(thing.colour)) for thing in wanted]


if __name__ == "__main__":
    from .checker_validation import main

    main()
