"""RAS (arXiv 2502.10389): a step computes the liveliest tokens only; they see all, the others as these last were.

Published for images; here a token is a patch of video.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

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
from stages.token_sets import All, Some, TokenSet, in_patches

RESETS = (12, 22)
OF_STEPS = 28
"""Of the clips that these are published for."""


class RasSettings(Settings):
    """Ratio, first steps and resets are those published, for images in 28 steps."""

    sample_ratio: float = Field(0.5, gt=0, le=1)
    """Share of the tokens that a step computes; 1: all of them, at every step."""
    dense_steps: int = Field(4, ge=0)
    """The clip's first steps, which compute all tokens. The first step of every stage does, and its last one."""
    reset_steps: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    """Later steps that compute all tokens, from 0 for the clip's first. None: 12 and 22 of 28, in proportion to the steps."""
    metric: Literal["std", "l2"] = "std"
    """Of the velocity in a token's cells, as last computed: standard deviation, or length. Where it is large is computed."""
    starvation_scale: float = Field(0.1, ge=0, allow_inf_nan=False)
    """The metric counts e to the power of this as much for each time that a token has been left out in its stage."""


class Heads:
    """Keys and values ``[1, heads, tokens, head_dim]`` of this rank's heads, which may come in other chunks each time."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[Tensor, Tensor]] = {}

    def put(self, heads: range, keys: Tensor, values: Tensor) -> None:
        """In the place of what was kept: of all these heads, or of none."""
        if not self._met(heads):
            self._parts[heads.start] = keys.clone(), values.clone()
            return
        for kept, new in zip(self.of(heads), (keys, values), strict=True):
            kept.copy_(new)

    def of(self, heads: range) -> tuple[Tensor, Tensor]:
        """Views of what is kept. Heads that came in chunks are put together, once, for a chunk of several."""
        if len(self._met(heads)) > 1:
            first, parts = min(self._parts), [part for _, part in sorted(self._parts.items(), key=lambda item: item[0])]
            self._parts = {first: (torch.cat([keys for keys, _ in parts], 1), torch.cat([values for _, values in parts], 1))}
        (first,) = self._met(heads)
        keys, values = (kept.narrow(1, heads.start - first, len(heads)) for kept in self._parts[first])
        return keys, values

    def _met(self, heads: range) -> list[int]:
        """The first head of every part that has some of these."""
        sizes = {first: keys.shape[1] for first, (keys, _) in self._parts.items()}
        return [first for first, size in sizes.items() if first < heads.stop and heads.start < first + size]


class Ras:
    """Of one stage and one expert. Keys and values are kept by branch of guidance and layer, velocities by branch.

    Where guidance is split over ranks, both branches' velocities come joined: they are kept as those of this rank's.
    """

    def __init__(self, settings: RasSettings, geometry: ModelGeometry) -> None:
        self.settings, self.geometry = settings, geometry
        self.work = 1.0
        self._step, self._branch = -1, 0
        self._chosen: TokenSet | None = None
        self._every: All | None = None
        self._metric = torch.empty(0)
        self._missed: Tensor | None = None
        self._velocity: dict[int, Tensor] = {}
        self._memory: dict[tuple[int, int], Heads] = {}

    def tokens(self, now: Now, grid: Grid) -> TokenSet | None:
        """The same ones for both branches of a step. All of them come as a set too where the next step is to leave some out."""
        if now.step != self._step:
            self._step, self._chosen = now.step, self._choose(now, grid)
            self.work = 1.0 if self._chosen is None else self._share(self._chosen.num_tokens, math.prod(grid))
        self._branch = now.branch
        return self._chosen

    def saw(self, x: Tensor, v: Tensor, now: Now) -> None:
        """Where tokens were left out, ``v`` is what it was."""
        if self._chosen is not None:
            cells = in_patches(v, self.geometry.patch).float()
            self._metric = cells.std(1) if self.settings.metric == "std" else cells.norm(dim=1)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if self._chosen is None:
            return dense(q, k, v)
        memory = self._memory.setdefault((here.now.branch, here.layer), Heads())
        if not isinstance(self._chosen, Some):
            memory.put(here.heads, k, v)
            return dense(q, k, v)
        keys, values = memory.of(here.heads)
        places = _places(self._chosen, q.shape[2] - here.num_image)
        return dense(q, keys.index_copy_(2, places, k), values.index_copy_(2, places, v))

    def _choose(self, now: Now, grid: Grid) -> TokenSet | None:
        if not computes_all(self.settings, now.step, now.event):
            return Some(self._liveliest(), grid, self.geometry.patch, self._filled)
        if now.step == now.event.last or computes_all(self.settings, now.step + 1, now.event):
            return None
        self._every = self._every or All(grid, self._told)
        return self._every

    def _liveliest(self) -> Tensor:
        """Rows of this step's tokens, in the grid's order; the others are counted."""
        missed = torch.zeros_like(self._metric) if self._missed is None else self._missed
        urgency = self._metric * torch.exp(self.settings.starvation_scale * missed)
        rows = urgency.topk(num_computed(self.settings, len(urgency))).indices.sort().values
        self._missed = (missed + 1).index_add_(0, rows, torch.full_like(rows, -1, dtype=missed.dtype))
        return rows

    def _told(self, v: Tensor) -> None:
        self._velocity[self._branch] = v

    def _filled(self, v: Tensor) -> Tensor:
        """``v`` in the cells of tokens that were computed, elsewhere what it was."""
        if isinstance(self._chosen, Some):
            v = torch.where(self._chosen.cells, v, self._velocity[self._branch])
        self._told(v)
        return v

    def _share(self, num_tokens: int, num_all: int) -> float:
        """Of a forward's operations: few queries, but all keys."""
        return tokens_tflops(self.geometry, num_tokens, num_all) / tokens_tflops(self.geometry, num_all)


def computes_all(settings: RasSettings, step: int, event: StageEvent) -> bool:
    """Whether a step of the stage leaves no token out."""
    at_border = step in (event.steps[0], event.last)
    return settings.sample_ratio == 1 or at_border or step < settings.dense_steps or step in resets(settings, event.num_steps)


def resets(settings: RasSettings, num_steps: int) -> tuple[int, ...]:
    """Of a clip of so many steps."""
    if settings.reset_steps is not None:
        return settings.reset_steps
    return tuple(round(step * num_steps / OF_STEPS) for step in RESETS)


def num_computed(settings: RasSettings, num_tokens: int) -> int:
    """Known without asking the device."""
    return max(1, round(settings.sample_ratio * num_tokens))


def _places(chosen: Some, num_text: int) -> Tensor:
    """Where what is computed lies among the keys of all: image tokens, then all text."""

    def make() -> Tensor:
        return torch.cat([chosen.rows, torch.arange(num_text, device=chosen.rows.device) + math.prod(chosen.grid)])

    found: Tensor = chosen.once(("places", num_text), make)
    return found


def mistakes(settings: RasSettings, request: Request) -> list[str]:
    """A clip that computes everything anyway."""
    if settings.sample_ratio == 1 or settings.dense_steps < request.num_steps - 1:
        return []
    return [
        f"dense_steps is {settings.dense_steps}, and a clip has {request.num_steps} steps, of which the last computes all tokens "
        "too: take fewer dense steps, more steps, or tome, which merges tokens in every step"
    ]


METHODS = {
    "ras": Method(
        "ras", "accelerator", "tokens", "RAS, arXiv 2502.10389",
        "half of the tokens are computed, where the velocity is liveliest; keys, values and velocities of the others are kept",
        "paper",
        make=Ras,
        settings=RasSettings, mistakes=mistakes,
        kept_tensors=lambda settings, geometry: 2.0 * geometry.num_layers if settings.sample_ratio < 1 else 0.0,
    )
}  # fmt: skip
