"""VGDFR: after a few steps, frames that are alike become one, and decoding restores them (arXiv 2504.12259; thu-nics/VGDFR).

The clean estimate is decoded, frames that SSIM finds alike are merged, and what is left is encoded and noised again with the
first noise of the latent frames that stay. HunyuanVideo's half-size autoencoder is the release's own; other families look at
and encode whole frames.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from orchestrator import vgdfr
from orchestrator.actions import full_action
from orchestrator.methods import Method, Request, Settings
from orchestrator.types import Action, Decision, Merged, Stage, VideoShape
from stages.demand import Pixels
from stages.models.base import Model, Positions
from stages.planners.passage import first_noise
from stages.planners.task import BasePlanner, Crossing, Task
from stages.resize import Axes
from stages.similarity import WINDOW, likeness

RELEASED_RATIO = 0.75
"""Of the frames."""
RELEASED_LAYERS = (4, 19, 23, 31, 35, 36, 37, 40)
"""Of HunyuanVideo, counted through both kinds of blocks: those that are told the frames' places in the whole video."""


class VgdfrSettings(Settings):
    """Of the planner ``vgdfr``. One of the two schedules; none given: ``keep_token_ratio: 0.75``."""

    keep_token_ratio: float | None = Field(None, gt=0, le=1)
    """Share of the frames to keep, met by bisection on the similarity; 1: the plain run. So few frames that 0.75 is out of reach:
    the least share that they allow."""
    similarity_threshold: float | None = Field(None, gt=0, le=1)
    """Merge all windows that are more alike than this, by twos only (published: 0.75); 1: the plain run."""
    before_compression_steps: int | None = Field(None, ge=1)
    """Steps on all frames; None: a tenth of all steps, two at least."""
    global_layers: tuple[int, ...] | None = None
    """Transformer layers that rotate by the frames' places in the whole video; the others count the frames that are left.
    None: the release's for HunyuanVideo, none for other models."""
    rife: str | None = Field(None, min_length=1)
    """A network in TorchScript that restores frames, called ``(before, after, ratio)``; None: by motion compensation. Its path is
    filled up from the working directory of whoever plans."""
    rife_sha256: str = ""
    """Of that file, filled in."""

    @property
    def changes_nothing(self) -> bool:
        return vgdfr.changes_nothing(self.keep_token_ratio, self.similarity_threshold)


class VgdfrPlanner(BasePlanner):
    """One stage on all frames, one on those that are left. Raises ValueError for a model or a shape that it cannot serve."""

    def __init__(self, task: Task, settings: VgdfrSettings) -> None:
        request = Request(task.geometry, task.shape, task.num_steps, 1.0, "vgdfr", task.config)
        self.task, self.settings = task, resolve(settings, request)
        if wrong := mistakes(self.settings, request):
            raise ValueError("; ".join(wrong))

    def first(self) -> Stage:
        return self._action(self.task.full_grid[0]).stages[0]

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        """Raises DemandNotFinite for frames that are not finite."""
        if self.settings.changes_nothing:
            return Decision(self._action(self.task.full_grid[0]), "every frame is kept")
        if x0 is None or pixels is None:
            raise ValueError("vgdfr decides on the frames of a clean estimate, and was given none")
        merged, threshold = self._merged((pixels(x0) / 2 + 0.5).clamp(0, 1))
        kept = vgdfr.num_kept(merged)
        why = f"{merged.num_frames} frames to {kept}, where similarity is above {threshold:.3f}"
        return Decision(self._action(len(vgdfr.kept_latents(merged))), why, merged=merged if kept < merged.num_frames else None)

    def _merged(self, video: Tensor) -> tuple[Merged, float]:
        """What to merge of video ``[1, 3, F, H, W]`` in [0, 1], and the similarity that it takes."""
        threshold, num_frames = self.settings.similarity_threshold, video.shape[2]
        if threshold is not None:
            return vgdfr.scan(likeness(video, 1), num_frames, threshold, by_fours=False), threshold
        return vgdfr.scan_to_ratio(likeness(video, 3), num_frames, self.settings.keep_token_ratio or RELEASED_RATIO)

    def cross(self, x0: Tensor, crossing: Crossing) -> Tensor:
        """Merged frames as a latent, noised with the first noise of its frames. With nothing to merge, the solver's own step."""
        found = crossing.decision.merged
        if found is None:
            return crossing.onward()
        z = crossing.model.latent_of(merge(crossing.pixels(x0), found))
        sigma, axes = crossing.sigma, self.axes(crossing.action.stages, crossing.decision)[-1]
        noise = first_noise(self._all, self.task.full_grid, z.shape[1], crossing.seed, self.task.config)
        return (1 - sigma) * z + sigma * noise[:, :, list(axes[0])].to(z.device)

    def look(self, model: Model) -> Pixels:
        return model.preview

    def axes(self, stages: Sequence[Stage], decision: Decision | None) -> tuple[Axes, ...]:
        if decision is None or decision.merged is None:
            return (self._all,) * len(stages)
        return self._all, (vgdfr.kept_latents(decision.merged), *self._all[1:])

    def positions(self, decision: Decision | None, stage_index: int) -> Positions | None:
        if decision is None or decision.merged is None or stage_index == 0 or not self.settings.global_layers:
            return None
        return Positions(vgdfr.kept_latents(decision.merged), frozenset(self.settings.global_layers))

    @property
    def _all(self) -> Axes:
        t, h, w = (tuple(range(size)) for size in self.task.full_grid)
        return t, h, w

    def _action(self, num_latents: int) -> Action:
        return _action(self.settings, self.task.geometry, self.task.shape, self.task.num_steps, num_latents)


def _action(settings: VgdfrSettings, geometry: Any, shape: VideoShape, num_steps: int, num_latents: int) -> Action:
    if settings.changes_nothing:
        return full_action(geometry, shape, num_steps)
    before = vgdfr.steps_before(num_steps, settings.before_compression_steps)
    return vgdfr.schedule(geometry, shape, num_steps, before, num_latents)


def merge(video: Tensor, merged: Merged) -> Tensor:
    """The mean of each group of frames of ``[1, 3, F, H, W]``, at the place of its first."""
    return torch.stack([video[:, :, group.start : group.stop].mean(2) for group in vgdfr.groups(merged)], dim=2)


def resolve(settings: VgdfrSettings, request: Request) -> VgdfrSettings:
    """With what model and steps decide filled in. Raises ValueError for two schedules at once, or a network that is none."""
    if settings.keep_token_ratio is not None and settings.similarity_threshold is not None:
        raise ValueError("vgdfr: keep_token_ratio and similarity_threshold are two schedules: give one of them")
    found: dict[str, Any] = {}
    if settings.keep_token_ratio is None and settings.similarity_threshold is None:
        found["keep_token_ratio"] = max(RELEASED_RATIO, _least(request.shape)) if _has_window(request.shape) else RELEASED_RATIO
    if settings.global_layers is None:
        released = request.geometry.family == "hunyuan" and request.geometry.num_layers > max(RELEASED_LAYERS)
        found["global_layers"] = RELEASED_LAYERS if released else ()
    if settings.before_compression_steps is None:
        found["before_compression_steps"] = vgdfr.steps_before(request.num_steps, None)
    if settings.rife is not None and not settings.rife_sha256:
        found["rife_sha256"] = _digest(settings.rife)
    if settings.rife is not None:
        found["rife"] = str(Path(settings.rife).resolve())
    return settings.model_copy(update=found)


def _digest(path: str) -> str:
    """Of a file that restores frames. Raises ValueError for one that cannot, or cannot be read."""
    from stages.restore import load_network

    load_network(path, torch.device("cpu"))
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _has_window(shape: VideoShape) -> bool:
    return shape.num_frames >= vgdfr.FEWEST_FRAMES


def _least(shape: VideoShape) -> float:
    """The smallest share of the frames that merging can leave, in thousandths; cut, for a search for more never ends there."""
    latents = vgdfr.reachable(shape.num_frames, by_fours=True)[-1]
    return math.floor(1000 * (1 + vgdfr.STRIDE * (latents - 1)) / shape.num_frames) / 1000


def mistakes(settings: VgdfrSettings, request: Request) -> list[str]:
    """Why there is nothing that it could do."""
    if settings.changes_nothing:
        return []
    geometry, shape, found = request.geometry, request.shape, []
    before = vgdfr.steps_before(request.num_steps, settings.before_compression_steps)
    if before >= request.num_steps:
        found.append(f"{before} steps before the compression leave none of {request.num_steps} after it: take fewer of them")
    if not _has_window(shape):
        found.append(f"num_frames is {shape.num_frames}: it takes {vgdfr.FEWEST_FRAMES} at least, for one window of 8")
    elif settings.keep_token_ratio is not None and settings.keep_token_ratio < (least := _least(shape)):
        found.append(
            f"keep_token_ratio is {settings.keep_token_ratio:g}: of {shape.num_frames} frames windows leave "
            f"{least:g} at least; take that or more"
        )
    if min(shape.height, shape.width) < 2 * WINDOW:
        found.append(f"frames of {shape.height}x{shape.width} are too small for SSIM: {2 * WINDOW} pixels a side at least")
    if wrong := [layer for layer in settings.global_layers or () if not 0 <= layer < geometry.num_layers]:
        found.append(f"global_layers {wrong} are none of the {geometry.num_layers} layers, counted from 0")
    if geometry.vae_stride[0] != vgdfr.STRIDE or geometry.patch[0] != 1:
        found.append(f"{geometry.name} has no latent frame for every {vgdfr.STRIDE} frames; planner dvg serves it")
    return found


def actions(settings: VgdfrSettings, request: Request) -> tuple[Action, ...]:
    """One for each number of latent frames that may be left: that nearest to the ratio asked for first, else all of them."""
    if settings.changes_nothing:
        return (full_action(request.geometry, request.shape, request.num_steps),)
    ratio = settings.keep_token_ratio
    found = vgdfr.reachable(request.shape.num_frames, by_fours=ratio is not None)
    counts = sorted(found, key=lambda n: abs(n / found[0] - (ratio or 1.0)))
    return tuple(_action(settings, request.geometry, request.shape, request.num_steps, n) for n in counts)


METHODS = {
    "vgdfr": Method(
        "vgdfr", "planner", "grid", "VGDFR, arXiv 2504.12259",
        "frames that are alike become one after the first steps, and are interpolated after decoding", "release",
        make=lambda settings, task, budget: VgdfrPlanner(task, settings),
        settings=VgdfrSettings, resolve=resolve, mistakes=mistakes, actions=actions,
        needs="the VAE's encoder; for RIFE a network in TorchScript (setting rife), else motion-compensated interpolation",
    )
}  # fmt: skip
