"""Long videos by blocks of latent frames in a queue (DualParal, arXiv 2505.21070), which here overlap and move.

Reconstructed. As published: blocks in a queue, each ahead of the next, the noisiest first in every round; layers spread over the
ranks; with ``context_frames``, keys and values of the block before kept where the layer runs. Otherwise here:

- A block goes back by ``overlap_frames`` at every step and sees as many of the next one, at its own level: no border stays in
  place, and what two blocks find of a frame is cross-faded. With kept keys alone, borders could be seen.
- ``in_flight`` blocks at once, whatever the ranks, so that a video does not depend on them. In the release there are as many as
  steps, each a step ahead of the next; here ``ceil(steps / in_flight)`` steps. Kept keys are then of a level so many steps less
  one cleaner (none, with as many in flight as steps), and memory is bounded.
- Noise is a function of the seed and the global frame; the release draws one block's and shuffles it.
- Blocks that stay in place differ in length by a frame at most, so that the last one is no stub.
- Every rank holds all weights, as other arms of the pool use them.
"""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from orchestrator.actions import full_action
from orchestrator.long_video import Queue, blockwise
from orchestrator.methods import Lever, Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Action, Decision, Stage
from stages.block_queue import BlockLeg
from stages.demand import Pixels
from stages.denoise import Boundary, OnStep
from stages.models.base import Condition, Model
from stages.planners.passage import field
from stages.planners.task import BasePlanner, Task
from stages.resize import Axes

BLOCKS = "blocks of one video are at different steps at once, and it keeps what it keeps for one step of all frames"
TEXT_ONLY = "only two blocks would see a first frame"
WITHOUT: dict[Lever, str] = dict.fromkeys(("cache", "attention", "tokens", "reflection"), BLOCKS)


class DualParalSettings(Settings):
    """Latent frames and blocks. With one block it is the plain run."""

    block_frames: int | None = Field(None, ge=1)
    """Latent frames of a block, at most. None: with the overlap, or with the context, as many as a clip of the model's own length
    has."""
    overlap_frames: int | None = Field(None, ge=0)
    """Latent frames of the next block that a block sees at its own level, and goes back at every step: what two blocks find of
    the same frames is cross-faded. None: two sevenths of the model's own length; 0 with a context."""
    context_frames: int = Field(0, ge=0)
    """Published instead of an overlap (8 with blocks of 8): latent frames of the block before, its last ones, whose kept keys
    and values a block attends to; no more than it has."""
    in_flight: int = Field(8, ge=1)
    """Blocks on their way at once, at most. Slices of more ranks than these leave some idle."""
    order: Literal["noisiest", "cleanest"] = "noisiest"
    """Which block goes first in each round. ``cleanest``: the block before is one ``ceil(steps / in_flight)`` ahead, and the keys
    of one block are kept instead of all in flight."""

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if self.context_frames and self.overlap_frames:
            raise ValueError(
                f"context_frames is {self.context_frames} and overlap_frames {self.overlap_frames}: blocks that overlap keep "
                "no keys of each other; leave one of them out"
            )
        return self


class DualParalPlanner(BasePlanner):
    """One stage, which it runs itself."""

    needs_sketch = False

    def __init__(self, task: Task, settings: DualParalSettings) -> None:
        if task.accelerators:
            raise ValueError(f"dualparal cannot be combined with an accelerator: {BLOCKS}")
        if found := model_mistakes(task.geometry):
            raise ValueError("; ".join(found))
        self.task, self.settings = task, settings
        self.queue = queue_of(settings, task.geometry, task.full_grid[0], task.num_steps)
        full = full_action(task.geometry, task.shape, task.num_steps)
        self.action = blockwise(task.geometry, full, self.queue, settings.context_frames)

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None = None, pixels: Pixels | None = None) -> Decision:
        queue = self.queue
        size, ahead = queue.num_seen, f"{queue.gap} step{'s' if queue.gap > 1 else ''}"
        joined = f", {queue.overlap} of them the next one's too" if queue.is_slanted else ""
        blocks = f"{queue.num_blocks} blocks of at most {size} latent frames{joined}"
        why = f"{blocks}, each {ahead} ahead of the next, all on the full grid"
        return Decision(self.action, why)

    def noise(self, axes: Axes, seed: int) -> Tensor:
        """By the global frame, block by block: the whole field at once would take many times the video's memory."""
        frames, rows, columns = axes
        given = self.task.full_grid, self.task.geometry.latent_channels, seed, torch.device("cpu"), self.task.config
        size = self.queue.most
        return torch.cat([field((frames[i : i + size], rows, columns), *given) for i in range(0, len(frames), size)], dim=2)

    def leg(self, model: Model, boundary: Boundary, on_step: OnStep) -> BlockLeg:
        require_text_only(boundary.condition)
        return BlockLeg(model, self.task, self.queue, self.settings.context_frames, boundary, on_step)


def require_text_only(condition: Condition) -> None:
    """Raises ValueError for a clip with a first frame."""
    if condition.image is not None or condition.latent is not None:
        raise ValueError(f"dualparal makes videos of text alone: {TEXT_ONLY}; drop it")


def frames_of(settings: DualParalSettings, geometry: ModelGeometry) -> tuple[int, int]:
    """Of a block, and of its overlap with the next."""
    trained = geometry.latent_grid(geometry.default_shape)[0]
    overlap = settings.overlap_frames
    if overlap is None:
        overlap = 0 if settings.context_frames else 2 * trained // 7
    return settings.block_frames or max(trained - overlap - settings.context_frames, 1), overlap


def queue_of(settings: DualParalSettings, geometry: ModelGeometry, num_frames: int, num_steps: int) -> Queue:
    size, overlap = frames_of(settings, geometry)
    return Queue(num_frames, size, num_steps, settings.in_flight, settings.order, overlap)


def model_mistakes(geometry: ModelGeometry) -> list[str]:
    found = []
    if geometry.boundary is not None:
        found.append(
            f"{geometry.name} has two experts, and blocks at different steps would need both at once; take a model with one"
        )
    if geometry.image == "required":
        found.append(f"{geometry.name} needs a first frame, and only two blocks would see it; take its text-to-video form")
    if geometry.patch[0] != 1:
        found.append(f"{geometry.name} joins {geometry.patch[0]} latent frames in a token, and blocks are cut between frames")
    return found


def mistakes(settings: DualParalSettings, request: Request) -> list[str]:
    return model_mistakes(request.geometry)


def actions(settings: DualParalSettings, request: Request) -> tuple[Action, ...]:
    full = full_action(request.geometry, request.shape, request.num_steps)
    queue = queue_of(settings, request.geometry, full.stages[0].grid[0], request.num_steps)
    return (blockwise(request.geometry, full, queue, settings.context_frames),)


def kept_tensors(settings: DualParalSettings, geometry: ModelGeometry) -> float:
    """Keys and values of every layer, of as many blocks as are kept at once."""
    many = settings.in_flight + 1 if settings.order == "noisiest" else 2
    return 2.0 * geometry.num_layers * many * min(1.0, settings.context_frames / frames_of(settings, geometry)[0])


METHODS = {
    "dualparal": Method(
        "dualparal", "planner", "grid", "DualParal, arXiv 2505.21070",
        "videos beyond the trained length: blocks of frames in a queue, layers in a row over the ranks", "reconstructed",
        make=lambda settings, task, budget: DualParalPlanner(task, settings),
        settings=DualParalSettings, mistakes=mistakes, actions=actions, without=WITHOUT,
        knobs=("noise_seed", "noise_hash"), text_only=TEXT_ONLY, whole_forwards=False, kept_tensors=kept_tensors,
    )
}  # fmt: skip
