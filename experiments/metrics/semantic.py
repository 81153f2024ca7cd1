"""Whether a video of ``wan-mini`` shows what its prompt says: colour, shape, size, direction, speed, background, camera.

The prompt is read back into a scene of ``experiments.embedded``, whose checker then looks at the pixels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from experiments.embedded import captions
from experiments.embedded.scenes import COLOURS, RADII, SHAPES, Scene, Thing
from experiments.metrics.names import ATTRIBUTES

if TYPE_CHECKING:
    from stages.video import Frames

FEWEST_FRAMES = 5
"""That the checker can tell motion from."""
UNSAID_SIZE, UNSAID_MOTION, UNSAID_BACKGROUND = "medium", "still", "plain"
"""Stand for what a prompt leaves open, which is not judged."""


@dataclass(frozen=True)
class Asked:
    """The scene of a prompt, and which of ``ATTRIBUTES`` can be judged: those that it states and that can be seen."""

    scene: Scene
    judged: frozenset[str]


def asked(prompt: str) -> Asked | None:
    """What a prompt asks for; None for one that does not name one or two things of different colours."""
    text = " ".join(captions.words(prompt))
    camera, text = _cut(text, _camera_patterns())
    background, text = _cut(text, _background_patterns())
    found = list(_thing_pattern().finditer(text))
    ends = [*(match.start() for match in found[1:]), len(text)]
    things = [_thing(match, text[match.end() : end]) for match, end in zip(found, ends, strict=False)]
    if len({thing.colour for thing, _ in things}) != len(things) or not 1 <= len(things) <= 2:
        return None
    scene = Scene(tuple(thing for thing, _ in things), background or UNSAID_BACKGROUND, camera or "static")
    unsaid = {name for _, names in things for name in names} | (set() if background else {"background", "camera"})
    if scene.background == "plain":
        unsaid.add("camera")
    if all(thing.motion == "still" for thing in scene.things):
        unsaid.add("direction")
    return Asked(scene, frozenset(ATTRIBUTES) - unsaid)


def why_not(model: str, prompt: str, num_frames: int) -> dict[str, str]:
    """Attributes that cannot be judged, and why."""
    from stages.models import embedded

    if model != embedded.NAME:
        return dict.fromkeys(ATTRIBUTES, f"the checker knows what {embedded.NAME} draws, not {model}")
    if num_frames < FEWEST_FRAMES:
        return dict.fromkeys(ATTRIBUTES, f"{num_frames} frames are too few to judge: at least {FEWEST_FRAMES}")
    wanted = asked(prompt)
    if wanted is None:
        return dict.fromkeys(ATTRIBUTES, "the prompt does not name one or two things of different colours, as the captions do")
    return {
        name: f"the prompt leaves the {name} open, or nothing of it can be seen"
        for name in ATTRIBUTES
        if name not in wanted.judged
    }


class Semantic:
    """``semantic_*`` of those of ``ATTRIBUTES`` that are asked for: 1 where the video shows what the prompt says, else 0.

    Holds the frames that the checker looks at, 41 at most. Raises ValueError for a prompt of which nothing can be judged.
    """

    def __init__(self, attributes: Iterable[str], prompt: str, num_frames: int) -> None:
        from experiments.embedded.checker import sampled

        wanted = asked(prompt)
        if wanted is None:
            raise ValueError(f"prompt {prompt!r} does not name one or two things of different colours")
        self.scene = wanted.scene
        self.attributes = tuple(name for name in attributes if name in wanted.judged)
        self.names = tuple(f"semantic_{name}" for name in self.attributes)
        self._picks, self._last = sampled(num_frames), num_frames - 1
        self._kept: list[Frames] = []
        self._num_seen = 0

    def add(self, frames: Frames, reference: Frames | None = None) -> None:
        numbers = np.arange(self._num_seen, self._num_seen + len(frames))
        self._kept.extend(np.array(frame) for frame in frames[np.isin(numbers, self._picks)])
        self._num_seen += len(frames)

    def values(self) -> dict[str, float]:
        from experiments.embedded.checker import compare, observe

        shown = compare(observe(np.stack(self._kept), self._picks / self._last), self.scene)
        return {f"semantic_{name}": float(bool(shown[name])) for name in self.attributes}


def _thing(match: re.Match[str], says: str) -> tuple[Thing, set[str]]:
    """A thing, from its name and the words that follow it, and what they leave open."""
    size, motion = _canonical(match["size"]), _motion(says)
    thing = Thing(_canonical(match["shape"]), _canonical(match["colour"]), size or UNSAID_SIZE, UNSAID_MOTION)
    unsaid = (set() if size else {"size"}) | (set() if motion else {"direction", "speed"})
    return (replace(thing, motion=motion[0], direction=motion[1]) if motion else thing), unsaid


def _canonical(word: str | None) -> str:
    """``huge`` -> ``large``; a word that has no synonyms is its own."""
    return next((kept for kept, words in captions.SYNONYMS.items() if word in words), word or "")


def _motion(says: str) -> tuple[str, str] | None:
    """Motion and direction, by the first of the known phrases in a text."""
    found = [(match.start(), kind, way) for pattern, kind, way in _motion_patterns() if (match := pattern.search(says))]
    return min(found)[1:] if found else None


@lru_cache
def _thing_pattern() -> re.Pattern[str]:
    sizes, colours, shapes = (_either(_words_of(words)) for words in (RADII, COLOURS, SHAPES))
    return re.compile(rf"\b(?:(?P<size>{sizes}) )?(?P<colour>{colours}) (?P<shape>{shapes})\b")


def _words_of(words: Iterable[str]) -> list[str]:
    return [synonym for word in words for synonym in {word, *captions.SYNONYMS.get(word, ())}]


@lru_cache
def _motion_patterns() -> tuple[tuple[re.Pattern[str], str, str], ...]:
    plain = {"still": captions.STILL, "bounce": captions.BOUNCE, "orbit": captions.ORBIT}
    ways = {"drift": captions.DRIFT, "travel": captions.TRAVEL}
    found = [(phrase, kind, "none") for kind, phrases in plain.items() for phrase in phrases]
    for kind, phrases in ways.items():
        for way, toward in captions.TOWARD.items():
            found += [(phrase.format(words), kind, way) for phrase in phrases for words in toward]
    return tuple((re.compile(rf"\b{re.escape(phrase)}\b"), kind, way) for phrase, kind, way in found)


@lru_cache
def _camera_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return _longest_first(captions.CAMERA_PHRASES)


@lru_cache
def _background_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return _longest_first(captions.BACKGROUND_PHRASES)


def _longest_first(phrases: Mapping[str, Sequence[str]]) -> tuple[tuple[re.Pattern[str], str], ...]:
    pairs = sorted(((phrase, name) for name, texts in phrases.items() for phrase in texts if phrase), key=lambda p: -len(p[0]))
    return tuple((re.compile(rf"\b{re.escape(phrase)}\b"), name) for phrase, name in pairs)


def _cut(text: str, patterns: Iterable[tuple[re.Pattern[str], str]]) -> tuple[str | None, str]:
    """The name of the longest phrase in a text, and the text without it."""
    for pattern, name in patterns:
        if match := pattern.search(text):
            return name, f"{text[: match.start()]} , {text[match.end() :]}"
    return None, text


def _either(words: Iterable[str]) -> str:
    return "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
