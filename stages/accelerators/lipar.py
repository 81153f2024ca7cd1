"""LIPAR (arXiv 2603.05811), reconstructed: patches that hardly differ from the frame before are left to that frame's.

No code is published. Reconstructed are: what "hardly" means, when the mask is made anew, and what a left-out patch's velocity is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.flops import tokens_tflops
from orchestrator.methods import Method, Request, Settings
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid
from parallel.seam import Attention
from stages.accelerators.attending import Here
from stages.accelerators.base import Now, StageEvent
from stages.sampling import clean_estimate
from stages.sparse.weighted import weighted
from stages.token_sets import Some, in_cells, in_patches


class LiparSettings(Settings):
    """What is pruned, and when. The published values are not known."""

    threshold: float = Field(0.1, ge=0, allow_inf_nan=False)
    """A token is pruned where its clean estimate differs from that of the frame before by less: the mean absolute difference, in
    standard deviations of its frame. 0: nothing is pruned, as in a plain run. The host waits once for each mask."""
    share: float | None = Field(None, ge=0, lt=1)
    """Instead of a threshold: this share of all tokens is pruned, those that differ least. The host never waits."""
    warmup: int = Field(5, ge=1)
    """The clip's first steps, which compute all tokens, as the first step of every stage does."""
    refresh: int = Field(5, ge=1)
    """Every so many steps of a stage compute all tokens, and the mask is made anew of their clean estimate."""
    last_steps: int = Field(2, ge=1)
    """The clip's last steps, which compute all tokens, as the last one of every stage does."""
    recover: bool = True
    """Whether a token's key counts as often in attention as there are tokens that it stands for."""


@dataclass(frozen=True)
class Mask:
    """Which tokens are left, and what stands for the others."""

    keep: Tensor
    """``[t, h, w]``; all of the first frame."""

    @property
    def sources(self) -> Tensor:
        """The frame of the token that stands for each, ``[t, h, w]``: its own, or the last one before that is kept there."""
        frames = torch.arange(len(self.keep), device=self.keep.device).view(-1, 1, 1)
        return torch.where(self.keep, frames, 0).cummax(dim=0).values

    @property
    def num_stood_for(self) -> Tensor:
        """By each token, itself among them, ``[t, h, w]`` int64; 0 for those pruned."""
        sources = self.sources
        return torch.zeros_like(sources).scatter_add_(0, sources, torch.ones_like(sources))


@dataclass(frozen=True, eq=False)
class Kept(Some):
    """Tokens of a mask, told of the latent that they are taken from."""

    log_weights: Tensor = field(default_factory=lambda: torch.empty(0))
    """``[n]`` float32: of how many tokens each stands for."""
    told: Callable[[Tensor], None] = lambda x: None

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        self.told(x)
        return super().take(x, cut)


class Lipar:
    """Of one stage and one expert. Both branches of guidance have one mask, of the guided clean estimate."""

    def __init__(self, settings: LiparSettings, geometry: ModelGeometry) -> None:
        self.settings, self.geometry = settings, geometry
        self.work = 1.0
        self._grid: Grid = (1, 1, 1)
        self._now: Now | None = None
        self._chosen: Kept | None = None
        self._kept: Kept | None = None
        self._sources = torch.empty(0)
        self._x: Tensor | None = None
        self._is_held: Tensor | None = None

    def tokens(self, now: Now, grid: Grid) -> Kept | None:
        self._now, self._grid, self._x = now, grid, None
        self._chosen = None if computes_all(self.settings, now.step, now.event) else self._kept
        num = math.prod(grid)
        chosen = num if self._chosen is None else self._chosen.num_tokens
        self.work = tokens_tflops(self.geometry, chosen) / tokens_tflops(self.geometry, num)
        return self._chosen

    def saw(self, x: Tensor, v: Tensor, now: Now) -> None:
        """A first frame whose velocity is nought is held as it is."""
        if now.step == now.event.last or not computes_all(self.settings, now.step, now.event):
            return
        if computes_all(self.settings, now.step + 1, now.event):
            return
        self._is_held = (v[:, :, :1] == 0).all()
        moved = differences(clean_estimate(x, v, now.level.sigma), self.geometry.patch)
        self._kept = self._made(Mask(kept(moved, self.settings)))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        chosen = self._chosen
        if chosen is None or not self.settings.recover:
            return dense(q, k, v)
        num_text = k.shape[2] - here.num_image
        return weighted(q, k, v, torch.cat([chosen.log_weights, chosen.log_weights.new_zeros(num_text)]))

    def _made(self, mask: Mask) -> Kept | None:
        """None if nothing is pruned."""
        keep = mask.keep.flatten()
        if self.settings.share is None:
            rows = keep.nonzero().squeeze(1)
        else:
            num = len(keep) - num_pruned(self.settings.share, self._grid)
            rows = keep.to(torch.uint8).argsort(descending=True, stable=True)[:num]
        if len(rows) == len(keep):
            return None
        self._sources = _cell_frames(mask.sources, self.geometry.patch)
        weights = mask.num_stood_for.flatten()[rows].float().log()
        return Kept(rows, self._grid, self.geometry.patch, self._filled, log_weights=weights, told=self._heard)

    def _heard(self, x: Tensor) -> None:
        """The first latent that a forward takes tokens of is the noisy one, its own channels before its condition's."""
        if self._x is None:
            self._x = x[:, : self.geometry.latent_channels].float()

    def _filled(self, v: Tensor) -> Tensor:
        """Where tokens are missing, the velocity that leads to the clean estimate of what stands for them."""
        if self._now is None or self._chosen is None or self._x is None or self._is_held is None:
            raise RuntimeError("a velocity came before its tokens were chosen")
        sigma, x, v = self._now.level.sigma, self._x, v.float()
        moving = torch.cat([torch.where(self._is_held, 0, v[:, :, :1]), v[:, :, 1:]], dim=2)
        clean = clean_estimate(x, moving, sigma)
        stands = torch.take_along_dim(clean, self._sources.expand_as(clean), dim=2)
        return torch.where(self._chosen.cells, v, (x - stands) / sigma)


def differences(clean: Tensor, patch: Grid) -> Tensor:
    """How far each token of a latent ``[1, C, T, H, W]`` is from the one before it in time: ``[t, h, w]`` float32.

    The mean absolute difference over its cells, in standard deviations of its frame; infinite in the first frame.
    """
    t, h, w = (size // step for size, step in zip(clean.shape[2:], patch, strict=True))
    cells = in_patches(clean.float(), patch).view(t, h, w, -1)
    spread = cells[1:].flatten(1).std(1).clamp(min=1e-6).view(-1, 1, 1)
    moved = (cells[1:] - cells[:-1]).abs().mean(-1) / spread
    return torch.cat([torch.full_like(cells[:1, :, :, 0], torch.inf), moved])


def kept(moved: Tensor, settings: LiparSettings) -> Tensor:
    """Which tokens stay, of what :func:`differences` gives."""
    if settings.share is None:
        return moved >= settings.threshold
    t, h, w = moved.shape
    least = moved.flatten().topk(num_pruned(settings.share, (t, h, w)), largest=False).indices
    return torch.ones_like(moved, dtype=torch.bool).flatten().index_fill_(0, least, False).view_as(moved)


def num_pruned(share: float, grid: Grid) -> int:
    """Of all tokens, none of the first frame's."""
    return min(int(share * math.prod(grid)), math.prod(grid) - grid[1] * grid[2])


def computes_all(settings: LiparSettings, step: int, event: StageEvent) -> bool:
    """Whether a step of the stage leaves no token out."""
    first = max(event.steps[0], settings.warmup - 1)
    ends = step == event.last or step >= event.num_steps - settings.last_steps
    prunes = settings.threshold > 0 if settings.share is None else settings.share > 0
    return not prunes or ends or step <= first or (step - first) % settings.refresh == 0


def _cell_frames(sources: Tensor, patch: Grid) -> Tensor:
    """The latent frame that each cell is made of, ``[T, H, W]``, by the tokens' ``[t, h, w]``."""
    within = torch.arange(len(sources) * patch[0], device=sources.device).view(-1, 1, 1) % patch[0]
    return in_cells(sources, patch) * patch[0] + within


def mistakes(settings: LiparSettings, request: Request) -> list[str]:
    """A clip that computes everything anyway, without its settings asking for that."""
    if not (settings.share or settings.threshold) or request.num_steps > settings.warmup + settings.last_steps:
        return []
    return [
        f"warmup is {settings.warmup} and last_steps {settings.last_steps}, and a clip has {request.num_steps} steps, so nothing "
        "would be pruned: take smaller ones, more steps, or tome, which merges tokens in every step"
    ]


METHODS = {
    "lipar": Method(
        "lipar", "accelerator", "tokens", "LIPAR, arXiv 2603.05811",
        "tokens that hardly differ from the frame before are left out; their keys count as often as they stand for",
        "reconstructed",
        make=Lipar,
        settings=LiparSettings, mistakes=mistakes, kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
