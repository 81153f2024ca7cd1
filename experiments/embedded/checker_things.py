"""Coloured things in a video: their colours, shapes, sizes and tracks. Looks at pixels alone.

Coordinates are in frame sides (x right, y down) and time runs from 0 to 1 over the clip, as in `scenes`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .checker_motion import find_course, speed_class
from .scenes import COLOURS, RADII, SHAPES, Scene, Thing, place

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

SATURATED = 0.3  # opponent length of a thing's pixel: the palette has at least 0.62, the backgrounds at most 0.1
MIN_AREA, MAX_AREA = 0.006, 0.25  # of the frame; things cover 0.0175 to 0.116
MIN_PRESENCE = 0.7  # share of the frames in which a thing is seen
COPY_AREA = 0.35  # of a blob's area: a second blob of its colour this large is a second thing
CANVAS_SIDE, CANVAS_REACH = 33, 1.9  # pixels, and radii from the centre, of a normalised mask
MEAN_SHAPE_AREA = 3.0  # of a shape of radius 1
BLURS = (0.0, 0.7, 1.4, 2.2)  # softness that a template is tried with, in canvas pixels
MIN_LIKENESS, THING_LIKENESS = 0.8, 0.6  # correlation with the best shape: below, the shape is "other"; far below, no thing
SOLID = 0.75  # mean opacity that a thing's core reaches, over all frames; specks of noise stay below 0.6
TEMPLATE_SIDE = 320  # pixels of the drawing that a template is cut from


@dataclass(frozen=True)
class SeenThing:
    """What the pixels show of one thing; `shape` may be "other", `course` is a direction, "bounce", "orbit", "none" (still)
    or "other"."""

    colour: str
    shape: str
    size: str
    course: str
    speed: str
    radius: float
    path_length: float
    centre: tuple[float, float]
    num_copies: int = 1


@dataclass(frozen=True)
class _Blob:
    """The largest blob of a colour in a frame: centre and area (in sides), opacity around it from the pixel `corner` on,
    number of blobs like it."""

    centre: tuple[float, float]
    area: float
    opacity: Floats
    corner: tuple[int, int]
    frame_shape: tuple[int, int]
    num_copies: int


def opponents(frames: Floats) -> Floats:
    """Two colour-opponent planes [2, F, H, W] of RGB frames [F, H, W, 3]: their angle is the hue, their length 0 for grey."""
    red, green, blue = (frames[..., i] for i in range(3))
    return np.stack([red - (green + blue) / 2, (green - blue) * np.float32(math.sqrt(0.75))])


def find_things(planes: Floats, times: NDArray[np.float64]) -> tuple[SeenThing, ...]:
    """The things of a clip, largest first, from its `opponents` planes [2, F, H, W] and its frame times [F]."""
    labels = colour_labels(planes)
    things = []
    for colours in _colour_groups(labels):
        blobs = _blobs(planes, np.isin(labels, colours), labels < 0)
        seen = [(time, blob) for time, blob in zip(times, blobs, strict=True) if blob is not None]
        if len(seen) >= MIN_PRESENCE * len(times):
            things.append(_describe(tuple(COLOURS)[colours[0]], [blob for _, blob in seen], [time for time, _ in seen]))
    return tuple(sorted((thing for thing in things if thing is not None), key=lambda thing: -thing.radius))


def colour_labels(planes: Floats) -> NDArray[np.int8]:
    """Number of the palette colour nearest in hue for each pixel, -1 where it is near grey: [F, H, W]."""
    degrees = np.degrees(np.arctan2(planes[1], planes[0])).astype(np.int16) % 360
    saturated = np.hypot(planes[0], planes[1]) > SATURATED
    labels: NDArray[np.int8] = _hue_table()[degrees]
    labels[~saturated] = -1
    return labels


@lru_cache(maxsize=1)
def _hue_table() -> NDArray[np.int8]:
    """Number of the palette colour nearest to each hue, in whole degrees."""
    palette = opponents(np.array(list(COLOURS.values()), np.float32))
    distance = np.arange(360)[:, None] - np.degrees(np.arctan2(palette[1], palette[0]))
    return np.asarray(np.abs((distance + 180) % 360 - 180).argmin(1), np.int8)


def _colour_groups(labels: NDArray[np.int8]) -> list[list[int]]:
    """Colours seen for most of the clip, largest first; colours that share one place are one thing of uneven colour."""
    areas = np.stack([(labels == i).mean(axis=(1, 2)) for i in range(len(COLOURS))])
    often = [int(i) for i in np.argsort(-areas.sum(1)) if (areas[i] > MIN_AREA / 2).mean() >= MIN_PRESENCE]
    groups: list[list[int]] = []
    for colour in often:
        home = next((group for group in groups if _share_a_place(labels, group[0], colour)), None)
        if home is not None:
            home.append(colour)
        elif np.median(areas[colour]) > MIN_AREA:
            groups.append([colour])
    return groups


def _share_a_place(labels: NDArray[np.int8], major: int, minor: int) -> bool:
    """True if the minor colour's centre lies inside the major colour's blob, in most frames."""
    inside = []
    for frame in labels:
        (y, x), (v, u) = np.nonzero(frame == major), np.nonzero(frame == minor)
        if len(x) and len(u):
            inside.append(math.hypot(u.mean() - x.mean(), v.mean() - y.mean()) < 0.6 * math.sqrt(len(x) / math.pi))
    return sum(inside) > len(inside) / 2


def _blobs(planes: Floats, mask: Bools, grey_mask: Bools) -> list[_Blob | None]:
    """One thing in every frame: opacity is a pixel's colour, less the background's tint, projected on the thing's own."""
    tint = np.array([np.median(plane[grey_mask][::11]) if grey_mask.any() else 0.0 for plane in planes], np.float32)
    strength = np.hypot(planes[0][mask], planes[1][mask])
    core = planes[:, mask][:, strength >= 0.85 * np.quantile(strength, 0.8)].mean(1) - tint
    weight = core / float(core @ core)
    opacity = (planes[0] - tint[0]) * weight[0] + (planes[1] - tint[1]) * weight[1]
    return [_blob(*frame) for frame in zip(opacity, mask, mask | grey_mask, strict=True)]


def _blob(opacity: Floats, mask: Bools, allowed: Bools) -> _Blob | None:
    """The largest blob of `mask` in a frame [H, W]; None if there is none worth the name."""
    parts, num = ndimage.label(mask)
    if not num:
        return None
    sizes = np.bincount(parts.ravel())[1:]
    largest = int(sizes.argmax())
    if sizes[largest] < MIN_AREA / 2 * mask.size:
        return None
    rows, columns = ndimage.find_objects(parts)[largest]
    box = slice(max(rows.start - 3, 0), rows.stop + 3), slice(max(columns.start - 3, 0), columns.stop + 3)
    near = ndimage.binary_dilation(parts[box] == largest + 1, iterations=2) & allowed[box]
    crop = np.where(near, opacity[box], 0).clip(0, 1)
    total = float(crop.sum())
    x = float(crop.sum(0) @ np.arange(crop.shape[1])) / total + box[1].start + 0.5
    y = float(crop.sum(1) @ np.arange(crop.shape[0])) / total + box[0].start + 0.5
    height, width = mask.shape
    num_copies = int((sizes >= COPY_AREA * sizes[largest]).sum())
    corner = (box[0].start, box[1].start)
    return _Blob((x / width, y / height), total / mask.size, crop, corner, (height, width), num_copies)


def _describe(colour: str, blobs: list[_Blob], times: list[float]) -> SeenThing | None:
    """A thing from its blobs at their times; None if it is too large, not solid, or like no shape at all."""
    area = float(np.median([blob.area for blob in blobs]))
    canvas = np.mean([_normalised(blob, area) for blob in blobs], axis=0)
    likeness, nearest = _nearest_shape(canvas)
    if area > MAX_AREA or likeness < THING_LIKENESS or np.quantile(canvas, 0.95) < SOLID:
        return None
    shape = nearest if likeness >= MIN_LIKENESS else "other"
    radius = math.sqrt(area / _template(nearest)[1])
    size = min(RADII, key=lambda name: abs(math.log(RADII[name] / radius)))
    centres = np.array([blob.centre for blob in blobs])
    course, path_length = find_course(centres, np.array(times))
    num_copies = round(float(np.median([blob.num_copies for blob in blobs])))
    x, y = centres.mean(0)
    return SeenThing(colour, shape, size, course, speed_class(path_length), radius, path_length, (x, y), num_copies)


def _normalised(blob: _Blob, area: float) -> Floats:
    """A blob's opacity on a square canvas: centred, and scaled as if its area were `MEAN_SHAPE_AREA`."""
    offsets = np.linspace(-CANVAS_REACH, CANVAS_REACH, CANVAS_SIDE) * math.sqrt(area / MEAN_SHAPE_AREA)
    height, width = blob.frame_shape
    rows = (blob.centre[1] + offsets) * height - 0.5 - blob.corner[0]
    columns = (blob.centre[0] + offsets) * width - 0.5 - blob.corner[1]
    return np.asarray(ndimage.map_coordinates(blob.opacity, np.meshgrid(rows, columns, indexing="ij"), order=1))


def _nearest_shape(canvas: Floats) -> tuple[float, str]:
    """The shape whose drawing, at some softness, correlates best with a normalised mask, after that correlation."""

    def likeness(shape: str) -> float:
        return max(float(np.corrcoef(drawn.ravel(), canvas.ravel())[0, 1]) for drawn in _template(shape)[0])

    return max((likeness(shape), shape) for shape in SHAPES)


@lru_cache(maxsize=len(SHAPES))
def _template(shape: str) -> tuple[tuple[Floats, ...], float]:
    """A shape's normalised mask at each of `BLURS`, and its area for radius 1: both taken from the renderer's drawing."""
    from .render import render  # torch is needed for this alone

    scene = Scene((Thing(shape, "red", "large", "still"),), "plain")
    drawing = (render([scene], 1, TEMPLATE_SIDE, TEMPLATE_SIDE)[0].permute(1, 2, 3, 0).numpy() + 1) / 2
    planes = opponents(drawing.astype(np.float32))
    labels = colour_labels(planes)
    (blob,) = _blobs(planes, labels >= 0, labels < 0)
    if blob is None:
        raise RuntimeError(f"the drawing of a {shape} shows no thing")
    canvas = _normalised(blob, blob.area)
    return tuple(ndimage.gaussian_filter(canvas, blur) for blur in BLURS), blob.area / place(scene)[0].radius ** 2
