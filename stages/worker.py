"""The worker every shell uses, in this process or behind Ray: items and boundaries in, boundaries and clips out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch

from orchestrator.arms import Arm
from orchestrator.types import Clip, Decision, Item
from stages import decode, sketch
from stages.denoise import Boundary, OnStep, ignore, run_stages
from stages.models.base import ALL_PARTS, Model, load
from stages.planners.base import Planner, make_planner

log = logging.getLogger(__name__)


class ClipWorker:
    """Holds the models of the arms on one device; loads ``parts`` of each when it is first asked for.

    The same item gives the same bytes on every worker of the same device kind and thread count.
    """

    def __init__(
        self,
        arms: Mapping[str, Arm],
        parts: frozenset[str] = ALL_PARTS,
        device: str = "cpu",
        num_threads: int | None = None,
    ) -> None:
        if num_threads is not None:
            torch.set_num_threads(num_threads)
        self.arms = dict(arms)
        self.parts = parts
        self.device = device
        self._models: dict[tuple[str, str | None], Model] = {}
        self._planners: dict[str, Planner] = {}

    def warm_up(self) -> None:
        """Load every arm's model now, so that the first item does not pay for it. Raises ValueError for bad weights."""
        for arm in self.arms.values():
            self._model(arm)

    def sketch(self, item: Item, on_step: OnStep = ignore) -> tuple[Decision, dict[str, float], Boundary]:
        """Text, stage 1 and the decision. Needs the parts "text" and "transformer"."""
        arm = self._arm(item)
        model, planner = self._model(arm), self._planner(arm)
        return sketch.sketch(model, planner, item.prompt, arm.negative_prompt, arm.guidance, item.seed, on_step)

    def refine(self, item: Item, boundary: Boundary, on_step: OnStep = ignore) -> tuple[Boundary, dict[str, float]]:
        """All stages after ``boundary``. Needs the part "transformer"."""
        arm = self._arm(item)
        if boundary.decision is None:
            raise RuntimeError(f"item {item.item_key}: the boundary to refine from carries no decision")
        num_stages = len(boundary.decision.action.stages)
        boundary, timings_s = run_stages(self._model(arm), self._planner(arm), boundary, num_stages, on_step)
        return boundary, {"refine_s": sum(timings_s.values()), **timings_s}

    def decode(self, item: Item, boundary: Boundary, path: Path) -> Clip:
        """Frames and the mp4 at ``path``. Needs the part "vae"."""
        arm = self._arm(item)
        return decode.decode(self._model(arm), boundary, Path(path), arm.fps)

    def _arm(self, item: Item) -> Arm:
        if item.arm not in self.arms:
            raise ValueError(f"item {item.item_key} is of arm {item.arm!r}; this worker has {', '.join(self.arms)}")
        return self.arms[item.arm]

    def _model(self, arm: Arm) -> Model:
        key = (arm.model, arm.weights)
        if key not in self._models:
            log.info("loading %s of %s on %s", ", ".join(sorted(self._parts(key))), arm.model, self.device)
            self._models[key] = load(arm.model, arm.weights, self.device, self._parts(key))
        return self._models[key]

    def _parts(self, key: tuple[str, str | None]) -> frozenset[str]:
        """This worker's parts, with what the sketches of any arm of this model need if it sketches."""
        if "text" not in self.parts:
            return self.parts
        sketches = (arm.sketch_parts for arm in self.arms.values() if (arm.model, arm.weights) == key)
        return self.parts.union(*sketches)

    def _planner(self, arm: Arm) -> Planner:
        if arm.name not in self._planners:
            geometry = self._model(arm).geometry
            self._planners[arm.name] = make_planner(arm.planner, geometry, arm.shape, arm.num_steps, arm.budget, arm.dvg)
        return self._planners[arm.name]
