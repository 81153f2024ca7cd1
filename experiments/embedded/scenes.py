"""Scenes whose every attribute is known: what moves, where, how fast, and over which background.

Lengths are in frame sides, time `t` runs from 0 to 1 over the clip whatever its number of frames, x points right and y down.
A scene is its attributes plus one seed; everything the caption does not say (positions, tones, phases) follows from the seed.
`captions.caption` puts a scene into words, `render.render` draws it.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.07, 0.07),
    "orange": (1.00, 0.50, 0.00),
    "yellow": (0.98, 0.92, 0.05),
    "green": (0.08, 0.72, 0.12),
    "cyan": (0.05, 0.85, 0.90),
    "blue": (0.08, 0.22, 0.95),
    "purple": (0.50, 0.10, 0.85),
    "pink": (1.00, 0.15, 0.65),
}
RADII = {"small": 0.085, "medium": 0.125, "large": 0.18}
MOTIONS = ("still", "drift", "travel", "bounce", "orbit")
DIRECTIONS: dict[str, tuple[float, float]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "none": (0, 0)}
SPEED_CLASSES = {"still": "still", "drift": "slow", "travel": "fast", "bounce": "fast", "orbit": "fast"}
#: the order feeds the random draws, so it fixes the held-out scenes
BACKGROUNDS = ("plain", "gradient", "stripes", "noise", "checker", "bricks")
#: mean squared pixel gradient of the background alone (brightness in [0, 1], 144 x 144, mean of 40 scenes), in 1e-4
DETAIL = {"plain": 0.0, "gradient": 0.1, "noise": 37.4, "stripes": 49.6, "checker": 81.1, "bricks": 91.7}
CAMERAS = ("static", "slow pan left", "slow pan right", "fast pan left", "fast pan right", "zoom")
PAN_LENGTHS = {"slow": 0.12, "fast": 0.50}  # frame sides a clip
ZOOM_FACTOR = 1.4  # size at t=1 over size at t=0
MEAN_CENTRE_DISTANCE = 0.3826  # of a uniform point of the unit square
NUM_HELD_OUT = 200
#: bounding box of a shape of radius 1 about its centre: left, right, up, down
EXTENTS = {
    "circle": (1.0, 1.0, 1.0, 1.0),
    "square": (0.89, 0.89, 0.89, 0.89),
    "triangle": (1.256, 1.256, 1.45, 0.725),
    "cross": (1.15, 1.15, 1.15, 1.15),
}


@dataclass(frozen=True)
class Thing:
    """A coloured shape and how it moves; `direction` is "none" unless the motion is drift or travel."""

    shape: str
    colour: str
    size: str
    motion: str
    direction: str = "none"


@dataclass(frozen=True)
class Scene:
    """One or two things (of different colours) before a background; `wording` picks the caption's template and synonyms."""

    things: tuple[Thing, ...]
    background: str
    camera: str = "static"
    wording: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Placed:
    """A thing's radius and path: (x, y)(t) = start + delta t + orbit (cos, sin)(2 pi t + phase) - (0, bounce |sin 2 pi t|)."""

    radius: float
    start: tuple[float, float]
    delta: tuple[float, float] = (0.0, 0.0)
    bounce: float = 0.0
    orbit: float = 0.0
    phase: float = 0.0

    def at(self, t: float) -> tuple[float, float]:
        """Centre at time t in [0, 1], in frame sides."""
        angle = 2 * math.pi * t
        x = self.start[0] + self.delta[0] * t + self.orbit * math.cos(angle + self.phase)
        y = self.start[1] + self.delta[1] * t + self.orbit * math.sin(angle + self.phase)
        return x, y - self.bounce * abs(math.sin(angle))

    @property
    def length(self) -> float:
        """Length of the path over the clip, in frame sides."""
        return math.hypot(*self.delta) + 4 * self.bounce + 2 * math.pi * self.orbit


@dataclass(frozen=True)
class Backdrop:
    """The background's free numbers: two tones (RGB in [0, 1]), scale (sides), angle (radians), phases (periods), seed."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    scale: float
    angle: float
    phase: tuple[float, float]
    texture_seed: int


def place(scene: Scene) -> tuple[Placed, ...]:
    """Radius and path of each thing; paths stay inside the frame, and two things stay in separate halves of it."""
    rng = random.Random(scene.seed)
    regions = _regions(scene.things, rng)
    return tuple(_place_one(thing, region, rng) for thing, region in zip(scene.things, regions, strict=True))


def _regions(things: tuple[Thing, ...], rng: random.Random) -> list[tuple[float, float, float, float]]:
    """The part (x0, y0, x1, y1) of the frame for each thing: halves along the axis in which they move."""
    if len(things) == 1:
        return [(0.0, 0.0, 1.0, 1.0)]
    axes = {_axis(thing) for thing in things} - {None}
    axis = axes.pop() if axes else rng.choice("xy")
    halves = [(0.0, 0.0, 1.0, 0.5), (0.0, 0.5, 1.0, 1.0)] if axis == "x" else [(0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)]
    rng.shuffle(halves)
    return halves


def _axis(thing: Thing) -> str | None:
    if thing.motion == "still":
        return None
    return "y" if thing.motion == "bounce" or thing.direction in ("up", "down") else "x"


def _place_one(thing: Thing, region: tuple[float, float, float, float], rng: random.Random) -> Placed:
    radius = RADII[thing.size] * rng.uniform(0.94, 1.06)
    left, right, up, down = (radius * extent + 0.01 for extent in EXTENTS[thing.shape])
    x0, y0, x1, y1 = region[0] + left, region[1] + up, region[2] - right, region[3] - down  # where the centre may be
    step_x, step_y = DIRECTIONS[thing.direction]
    wanted = {"drift": rng.uniform(0.16, 0.20), "travel": rng.uniform(0.58, 0.66)}.get(thing.motion, 0.0)
    length = min(wanted, x1 - x0 if step_x else y1 - y0)
    delta = (step_x * length, step_y * length)
    bounce = min(rng.uniform(0.28, 0.34), y1 - y0) if thing.motion == "bounce" else 0.0
    orbit = min(rng.uniform(0.18, 0.22), (x1 - x0) / 2, (y1 - y0) / 2) if thing.motion == "orbit" else 0.0
    phase = rng.uniform(0, 2 * math.pi) if orbit else 0.0
    start = (
        rng.uniform(x0 + max(-delta[0], 0) + orbit, x1 - max(delta[0], 0) - orbit),
        rng.uniform(y0 + max(-delta[1], 0) + orbit + bounce, y1 - max(delta[1], 0) - orbit),
    )
    return Placed(radius, start, delta, bounce, orbit, phase)


def backdrop(scene: Scene) -> Backdrop:
    """Tones and texture: near-neutral, a contrast of at least 0.28 of the range (noise: a deviation of at least 0.09)."""
    rng = random.Random(scene.seed + 1)
    warm, green = rng.uniform(-0.07, 0.07), rng.uniform(-0.02, 0.02)
    middle = rng.uniform(0.30, 0.75) if scene.background == "plain" else rng.uniform(0.42, 0.60)
    contrast = {"plain": 0.0, "noise": rng.uniform(0.09, 0.11)}.get(scene.background, rng.uniform(0.28, 0.40))
    tones = [tuple(lum * (1 + tint) for tint in (warm, green, -warm)) for lum in (middle - contrast / 2, middle + contrast / 2)]
    low, high = tones if rng.random() < 0.5 or scene.background == "noise" else tones[::-1]
    scale, angles = {
        "gradient": (2.0, (0.0, math.pi / 4, -math.pi / 4)),  # never vertical: a pan must show
        "stripes": (rng.uniform(0.11, 0.15), (0.0, math.pi / 4, -math.pi / 4)),
        "checker": (rng.uniform(0.075, 0.10), (0.0,)),
        "bricks": (rng.uniform(0.19, 0.23), (0.0,)),
    }.get(scene.background, (1.0, (0.0,)))
    return Backdrop(low, high, scale, rng.choice(angles), (rng.random(), rng.random()), rng.getrandbits(24))  # type: ignore[arg-type]


def camera_path(camera: str) -> tuple[float, float]:
    """(pan over the clip in frame sides, positive to the right; zoom factor at t=1). It moves the background alone."""
    if camera == "zoom":
        return 0.0, ZOOM_FACTOR
    if camera == "static":
        return 0.0, 1.0
    pace, _, side = camera.split()
    return PAN_LENGTHS[pace] * (1 if side == "right" else -1), 1.0


def object_speed(scene: Scene) -> float:
    """Mean speed of the things, in frame sides a clip."""
    return sum(placed.length for placed in place(scene)) / len(scene.things)


def camera_speed(scene: Scene) -> float:
    """Mean speed of a background point in the picture, in frame sides a clip; 0 on a plain background."""
    pan, zoom = camera_path(scene.camera)
    return 0.0 if scene.background == "plain" else abs(pan) + MEAN_CENTRE_DISTANCE * math.log(zoom)


def speed(scene: Scene) -> float:
    """Mean true speed over all pixels of the picture, in frame sides a clip: things and background weighted by their areas."""
    areas = [math.pi * placed.radius**2 for placed in place(scene)]
    moved = sum(area * placed.length for area, placed in zip(areas, place(scene), strict=True))
    return moved + (1 - sum(areas)) * camera_speed(scene)


def detail(scene: Scene) -> float:
    """How finely the background is textured: its gradient energy, see `DETAIL`."""
    return DETAIL[scene.background]


def sample_scene(rng: random.Random) -> Scene:
    """A scene from the whole distribution: a quarter have two things; a plain background has a static camera."""
    background = rng.choice(BACKGROUNDS)
    camera = rng.choices(CAMERAS, (40, 11, 11, 13, 13, 12))[0] if background != "plain" else "static"
    colours = rng.sample(tuple(COLOURS), 2)
    num_things = 2 if rng.random() < 0.25 else 1
    axis = rng.choice("xy")
    things = tuple(_sample_thing(colours[i], axis if num_things == 2 else "any", rng) for i in range(num_things))
    return Scene(things, background, camera, rng.getrandbits(16), rng.getrandbits(30))


def _sample_thing(colour: str, axis: str, rng: random.Random) -> Thing:
    """A thing whose motion keeps to `axis` ("x", "y" or "any")."""
    motion = rng.choices(MOTIONS, {"x": (20, 30, 40, 0, 0), "y": (20, 30, 35, 15, 0), "any": (15, 25, 34, 13, 13)}[axis])[0]
    sides = {"x": ("left", "right"), "y": ("up", "down"), "any": ("left", "right", "up", "down")}[axis]
    direction = rng.choice(sides) if motion in ("drift", "travel") else "none"
    return Thing(rng.choice(SHAPES), colour, rng.choice(tuple(RADII)), motion, direction)


def is_held_out(scene: Scene) -> bool:
    """True for one attribute combination in twelve, by a fixed hash: never trained on, whatever the seed or wording."""
    key = repr((scene.things, scene.background, scene.camera)).encode()
    return hashlib.blake2b(key, digest_size=8).digest()[0] % 12 == 0


def training_scenes(seed: int) -> Iterator[Scene]:
    """An endless stream of scenes that are not held out."""
    rng = random.Random(seed)
    while True:
        scene = sample_scene(rng)
        if not is_held_out(scene):
            yield scene


@lru_cache(maxsize=1)
def held_out_scenes() -> tuple[Scene, ...]:
    """The fixed 200 scenes of the evaluation, none of them ever trained on; the first 20 are its short form."""
    rng = random.Random(20261120)
    return tuple(islice((scene for scene in iter(lambda: sample_scene(rng), None) if is_held_out(scene)), NUM_HELD_OUT))
