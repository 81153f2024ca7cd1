"""The first frames of a sweep's videos: found, read once each and matched to what the models take, before anything starts."""

from __future__ import annotations

import pathlib

from orchestrator import geometry
from orchestrator.arms import Arm
from orchestrator.methods import WITHOUT_SETTINGS, find
from orchestrator.prompts import find_file, looked_in
from stages.image import image_sha256

Found = tuple[str | None, str]
"""Absolute path and hash of an image; None and "" without one."""
NONE: Found = (None, "")


class FirstFrames:
    """Looks images up in ``base``, then in the working directory. Whatever is wrong is appended to ``mistakes``."""

    def __init__(self, base: pathlib.Path, mistakes: list[str]) -> None:
        self.base = base
        self.mistakes = mistakes
        self._read: dict[str, Found] = {}
        self._without: dict[tuple[str, str], list[str]] = {}

    def find(self, arm: Arm, prompt_id: str, image: str | None) -> Found:
        """The image that a prompt of an arm starts from."""
        takes = geometry.model(arm.model).image
        if image is None and takes == "required":
            self._without.setdefault((arm.name, arm.model), []).append(prompt_id)
        if image is not None and takes == "none":
            others = ", ".join(name for name, model in geometry.MODELS.items() if model.image != "none")
            self._tell(f"arm {arm.name}: model {arm.model} takes no image (got {image!r}); models that do: {others}")
            return NONE
        if image is not None and (why := text_only(arm)):
            what = f"planner {arm.planner} makes videos of text alone ({why})"
            self._tell(f"arm {arm.name}: {what}; drop image {image!r}, or take another planner")
            return NONE
        return NONE if image is None else self.check(image)

    def tell_missing(self) -> None:
        """One line for each arm with prompts that :func:`find` found no image for, though the model needs one."""
        for (arm, model), prompts in self._without.items():
            names = list(dict.fromkeys(prompts))
            who = f"prompt {names[0]!r} has" if len(names) == 1 else f"{len(names)} prompts have ({names[0]!r} first)"
            self._tell(
                f"arm {arm}: model {model} makes a video from a first frame, and {who} none; "
                "give one with --image, or as image: with the prompt or on the arm"
            )

    def check(self, image: str) -> Found:
        """The image itself, whoever takes it."""
        if image not in self._read:
            self._read[image] = self._look(image)
        return self._read[image]

    def _look(self, image: str) -> Found:
        path = find_file(image, self.base)
        if path is None:
            self._tell(f"image {image!r} does not exist ({looked_in(self.base)})")
            return NONE
        try:
            return str(path.resolve()), image_sha256(path)
        except ValueError as error:
            self._tell(str(error))
            return NONE

    def _tell(self, line: str) -> None:
        if line not in self.mistakes:
            self.mistakes.append(line)


def text_only(arm: Arm) -> str:
    """Why the arm's planner takes no first frame; empty if it does."""
    return "" if arm.planner in WITHOUT_SETTINGS else find(arm.planner, "planner").text_only
