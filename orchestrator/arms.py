"""An arm: one complete way to make a video, and the key that identifies each video made with it."""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict

from orchestrator.actions import DvgConfig
from orchestrator.types import Item, VideoShape


class Arm(BaseModel):
    """Everything a worker must know to make an item's video, resolved: no defaults left to fill in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str
    weights: str | None = None
    """A folder in diffusers format; None means what ships with the project (``wan-mini`` only)."""
    revision: str = ""
    """Fingerprint of the weights, so that changed weights are not mistaken for finished work."""
    planner: Literal["full", "dvg"]
    budget: float | None = None
    """Share of the full run's token-steps, in (0, 1]; None where the planner has no budget."""
    num_steps: int
    guidance: float
    negative_prompt: str = ""
    num_frames: int
    height: int
    width: int
    fps: int
    dvg: DvgConfig = DvgConfig()

    @property
    def sketch_parts(self) -> frozenset[str]:
        """The parts of the model that a sketch needs beyond text and transformer."""
        return frozenset({"vae"}) if self.planner == "dvg" and self.dvg.demand_space == "pixels" else frozenset()

    @property
    def shape(self) -> VideoShape:
        return VideoShape(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)


def item_key(arm: Arm, prompt: str, seed: int) -> str:
    """Sixteen hex digits that change whenever anything that shapes the video changes, and never otherwise."""
    settings = json.dumps(arm.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256("\0".join((settings, prompt, str(seed))).encode()).hexdigest()[:16]


def make_item(arm: Arm, prompt_id: str, prompt: str, seed: int) -> Item:
    return Item(item_key=item_key(arm, prompt, seed), arm=arm.name, prompt_id=prompt_id, prompt=prompt, seed=seed)
