"""An arm: one complete way to make a video, and the key that identifies each video made with it."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import vgdfr
from orchestrator.actions import DvgConfig
from orchestrator.budgets import Target
from orchestrator.cost import CostModel
from orchestrator.geometry import ModelGeometry, SolverName, model
from orchestrator.types import Item, VideoShape


class MethodUse(BaseModel):
    """A method with every setting that it needs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    settings: dict[str, Any] = {}


class LoraSpec(BaseModel):
    """A low-rank adapter merged into the transformer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    path: str = Field(min_length=1)
    """A file, a folder or a repository id."""
    scale: float = Field(1.0, allow_inf_nan=False)
    """Its strength."""
    expert: Literal["both", "high", "low"] = "both"
    """Which expert takes it, of models with a high-noise and a low-noise one."""


class Arm(BaseModel):
    """Everything a worker must know to make an item's video, resolved: no defaults left to fill in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    model: str
    weights: str | None = None
    """A folder in diffusers format; None means what ships with the project (``wan-mini`` only)."""
    revision: str = ""
    """Fingerprint of weights and adapters, so that changed weights are not mistaken for finished work."""
    lora: tuple[LoraSpec, ...] = ()
    planner: str
    planner_settings: dict[str, Any] = {}
    """Of a planner that has settings of its own; ``dvg`` and its ablations have ``dvg``."""
    accelerators: tuple[MethodUse, ...] = ()
    """What makes the steps on a grid cheaper."""
    reconstructed: tuple[str, ...] = ()
    """Which of these follow no released code."""
    budget: float | None = None
    """Share of the full run's token-steps, in (0, 1], which fixes stage 1; None where the planner has no budget."""
    target: Target | None = None
    """What was asked for, where that is a speedup or GPU-seconds; None: ``budget`` itself."""
    cost: CostModel | None = None
    """Predicted seconds, resolved before the run: every process filters actions by the same numbers and needs no file."""
    num_steps: int
    """Of the full run, which densities are shares of; some planners take fewer."""
    solver: SolverName | None = None
    """None: the model's own."""
    shift: float | None = None
    """Timestep shift of a plain full-grid run, as the checkpoint ships it or as asked; None: the model's own."""
    guidance: float
    guidance_low: float | None = None
    """Guidance of the low-noise expert; None: the same as ``guidance``."""
    negative_prompt: str = ""
    num_frames: int
    height: int
    width: int
    fps: int
    dvg: DvgConfig = DvgConfig()

    @property
    def sketch_parts(self) -> frozenset[str]:
        """The parts of the model that a sketch needs beyond text and transformer."""
        if self.planner == "vgdfr":
            plain = vgdfr.changes_nothing(
                *(self.planner_settings.get(key) for key in ("keep_token_ratio", "similarity_threshold"))
            )
            return frozenset() if plain else frozenset({"vae", "encoder"})
        return frozenset({"vae"}) if self.planner == "dvg" and self.dvg.demand_space == "pixels" else frozenset()

    @property
    def refine_parts(self) -> frozenset[str]:
        """The parts of the model that the later stages need beyond the transformer."""
        places = self.planner != "full" and self.dvg.image_condition == "encode" and model(self.model).image != "none"
        return frozenset({"encoder"}) if places else frozenset()

    def under_its_shift(self, geometry: ModelGeometry) -> ModelGeometry:
        """The model as this arm samples it."""
        return geometry if self.shift is None else geometry.with_shift(self.shift)

    @property
    def shape(self) -> VideoShape:
        return VideoShape(num_frames=self.num_frames, height=self.height, width=self.width, fps=self.fps)


def item_key(arm: Arm, prompt: str, seed: int, image_sha256: str = "") -> str:
    """Sixteen hex digits that change whenever anything that shapes the video changes, and never otherwise.

    Images, weights, adapters and networks that restore frames count by their bytes (``revision`` stands for weights and
    adapters), not by where they lie;
    predicted cost counts where it chooses the actions, which go by what one device takes.
    """
    if arm.cost is not None:
        arm = arm.model_copy(update={"cost": arm.cost.alone})
    idle: dict[str, Any] = {"weights": True, "lora": {"__all__": {"path"}}, "reconstructed": True}
    idle |= {name: True for name in ("planner_settings", "accelerators") if not getattr(arm, name)}
    if arm.planner_settings.get("rife_sha256"):
        idle["planner_settings"] = {"rife"}
    if arm.target is None:
        idle |= {"target": True, "cost": True}
    elif arm.cost is not None:
        idle["cost"] = _idle_of(arm.cost)
    settings = json.dumps(arm.model_dump(mode="json", exclude=idle), sort_keys=True)
    parts = (settings, prompt, str(seed), *([image_sha256] if image_sha256 else []))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _idle_of(cost: CostModel) -> dict[str, Any]:
    """What of one device's cost says nothing: how several exchange, and bends that nobody measured."""
    bent = any(forward.points or forward.floor_s for forward in cost.forwards)
    return {
        "split_decode_s": True,
        "forwards": {"__all__": {"backend", "predicted"} | (set() if bent else {"points", "floor_s"})},
    }


def make_item(
    arm: Arm,
    prompt_id: str,
    prompt: str,
    seed: int,
    image: str | None = None,
    image_sha256: str = "",
    deadline_s: float | None = None,
) -> Item:
    """An item with its key, in which a deadline does not count.

    Raises ValueError for an image without the hash of its bytes, or a hash without an image."""
    if (image is None) != (image_sha256 == ""):
        raise ValueError(f"image {image!r} and image_sha256 {image_sha256!r} belong together: give both or neither")
    key = item_key(arm, prompt, seed, image_sha256)
    return Item(key, arm.name, prompt_id, prompt, seed, image, image_sha256, deadline_s)
