"""Scenes in words: a closed vocabulary, a few templates, synonyms."""

from __future__ import annotations

import random
import re

from .scenes import Scene, Thing

SYNONYMS: dict[str, tuple[str, ...]] = {
    "small": ("small", "small", "little", "tiny"),
    "medium": ("medium", "medium", "mid-sized"),
    "large": ("large", "large", "big", "huge"),
    "purple": ("purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "turquoise"),
    "pink": ("pink", "pink", "magenta"),
    "circle": ("circle", "circle", "disc", "ball"),
    "square": ("square", "square", "box"),
    "cross": ("cross", "cross", "plus"),
}
STILL = ("stays still", "rests", "is still", "does not move")
DRIFT = ("drifts slowly {}", "drifts {}", "moves slowly {}", "floats slowly {}")
TRAVEL = ("travels fast {}", "rushes {}", "moves quickly {}", "races {}")
BOUNCE = ("bounces up and down", "bounces", "keeps bouncing")
ORBIT = ("orbits", "moves in an orbit", "goes around and around")
TOWARD = {
    "left": ("left", "to the left"),
    "right": ("right", "to the right"),
    "up": ("up", "upwards"),
    "down": ("down", "downwards"),
}
BACKGROUND_PHRASES = {
    "plain": ("a plain background", "an empty background", "a plain wall"),
    "gradient": ("a smooth gradient", "a gradient background", "a soft gradient background"),
    "stripes": ("a striped background", "stripes", "a striped wall"),
    "checker": ("a checkered background", "a checkerboard", "a checkered wall"),
    "noise": ("a noisy background", "noise", "a background of grainy noise"),
    "bricks": ("a brick wall", "bricks", "a background of bricks"),
}
CAMERA_PHRASES = {
    "static": ("", "", "static camera", "the camera is still"),
    "slow pan left": ("the camera pans slowly left", "slow camera pan to the left"),
    "slow pan right": ("the camera pans slowly right", "slow camera pan to the right"),
    "fast pan left": ("the camera pans fast left", "fast camera pan to the left"),
    "fast pan right": ("the camera pans fast right", "fast camera pan to the right"),
    "zoom": ("the camera zooms in", "slow zoom in"),
}
TEMPLATES = ("{things} on {background}{camera}", "{things} in front of {background}{camera}", "on {background}, {things}{camera}",
             "{things} over {background}{camera}")  # fmt: skip
EXAMPLE = "a large red circle travels fast to the left on a brick wall"


def caption(scene: Scene) -> str:
    """The scene in lower-case words; `scene.wording` picks the template and the synonyms."""
    rng = random.Random(scene.wording)
    things = " and ".join(_thing(thing, rng) for thing in scene.things)
    camera = rng.choice(CAMERA_PHRASES[scene.camera])
    return rng.choice(TEMPLATES).format(
        things=things, background=rng.choice(BACKGROUND_PHRASES[scene.background]), camera=f", {camera}" if camera else ""
    )


def _thing(thing: Thing, rng: random.Random) -> str:
    size, colour, shape = (rng.choice(SYNONYMS.get(word, (word,))) for word in (thing.size, thing.colour, thing.shape))
    return f"{'an' if size[0] in 'aeiou' else 'a'} {size} {colour} {shape} {_motion(thing, rng)}"


def _motion(thing: Thing, rng: random.Random) -> str:
    phrase = rng.choice({"still": STILL, "drift": DRIFT, "travel": TRAVEL, "bounce": BOUNCE, "orbit": ORBIT}[thing.motion])
    return phrase.format(rng.choice(TOWARD[thing.direction])) if "{}" in phrase else phrase


def words(text: str) -> list[str]:
    """The words and commas of a text, as the tokenizer splits it."""
    return re.findall(r"[a-z0-9-]+|,", text.lower())


def vocabulary() -> list[str]:
    """Every word that a caption can hold, sorted."""
    from .scenes import COLOURS, RADII, SHAPES

    groups = (STILL, DRIFT, TRAVEL, BOUNCE, ORBIT, TEMPLATES, *SYNONYMS.values(), *TOWARD.values(), *BACKGROUND_PHRASES.values(),
              *CAMERA_PHRASES.values(), COLOURS, RADII, SHAPES, ("a an and ,",))  # fmt: skip
    text = " ".join(re.sub(r"\{\w*\}", " ", phrase) for group in groups for phrase in group)
    return sorted(set(words(text)))
