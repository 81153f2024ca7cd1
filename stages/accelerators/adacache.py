"""AdaCache (arXiv 2411.02397): how fast a block in the middle moves sets for how many steps everything is kept.

As ported to Wan (LightX2V), what all blocks add together is reused; the paper reuses every block's own parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Settings
from stages.accelerators.base import Now
from stages.accelerators.pace import Pace
from stages.accelerators.trunk import Trunk, absolute, relative_change

CodebookName = Literal["fast", "slow", "long"]
LONG_RUN = 60
"""Steps from which the codebook of long runs is taken unasked."""
MOTION_POWER = 8
MEASURED = (0.1, 0.9)
"""The share of a clip's steps between which motion counts."""
NUM_LAST = 2
"""Steps at a clip's end that are always computed."""


@dataclass(frozen=True)
class Codebook:
    """Steps from one computed one to the next, by the change between the last two."""

    num_steps: int
    """Of the clips that it was made for."""
    rows: tuple[tuple[float, int], ...]
    """(Change, length): the first row whose change is not reached counts."""
    otherwise: int

    def length(self, change: float, num_steps: int) -> int:
        """Scaled to another number of steps."""
        asked = next((length for limit, length in self.rows if change < limit), self.otherwise)
        return max(1, int(asked * num_steps / self.num_steps + 0.5))


CODEBOOKS: Mapping[CodebookName, Codebook] = {
    "long": Codebook(100, ((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4)), 3),
    "fast": Codebook(30, ((0.08, 6), (0.16, 5), (0.24, 4), (0.32, 3), (0.40, 2)), 1),
    "slow": Codebook(30, ((0.08, 3), (0.16, 2)), 1),
}


class AdaCacheSettings(Settings):
    """The defaults are those of LightX2V's port to Wan, whose codebooks and measure of motion are the paper's."""

    codebook: CodebookName | None = None
    """``fast`` and ``slow`` are for 30 steps, ``long`` for 100, scaled to the clip's; None: ``fast``, or ``long`` from 60."""
    motion: bool = True
    """Compute more often where the content moves (the paper's MoReg)."""
    expected_motion: float = Field(0.385, gt=0)
    """Difference of neighbouring frames that changes nothing: with less, steps are kept for longer."""
    gradient: float = Field(10.0, ge=0)
    """Weight of the motion's own change from one computed step to the next; where it jumps, little is left out."""
    warmup: int = Field(1, ge=1)
    """Steps at the beginning that are computed, and of every stage (2 at most) where the clip changes its grid on the way."""
    max_skips: int | None = Field(None, ge=0)
    """Steps in a row that may be reused; 0: none. None: any number, and 3 where the clip changes its grid on the way."""


@dataclass
class Kept:
    """Of one branch of guidance, of the step that was computed last."""

    step: int
    middle: Tensor
    """What attention of the middle block adds to the image tokens."""
    residual: Tensor
    """What all blocks add."""
    motion: float
    next_step: int
    in_a_row: int = 0


class AdaCache:
    """Of one stage."""

    def __init__(self, settings: AdaCacheSettings, geometry: ModelGeometry) -> None:
        self.settings = settings
        self.pace = Pace(settings.warmup, settings.max_skips)
        self._kept: dict[int, Kept] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        kept = self._kept.get(now.branch)
        if kept is not None and self._is_kept(now, kept):
            kept.in_a_row += 1
            return trunk.inputs[0] + kept.residual
        if self.settings.max_skips == 0 or now.step == now.event.last:
            return trunk.compute()
        out, middle = _computed(trunk)
        length, motion = self._measure(trunk, now, kept, middle)
        self._kept[now.branch] = Kept(now.step, middle, out - trunk.inputs[0], motion, now.step + length)
        return out

    def _is_kept(self, now: Now, kept: Kept) -> bool:
        is_end = now.step >= now.event.num_steps - NUM_LAST
        return not is_end and now.step < kept.next_step and self.pace.allows(now, kept.in_a_row)

    def _measure(self, trunk: Trunk, now: Now, kept: Kept | None, middle: Tensor) -> tuple[int, float]:
        """Steps to the next computed one, and the motion's weight. A branch's first step tells no change yet."""
        weight = self._motion(trunk, now, middle)
        if kept is None:
            return 1, weight
        since = now.step - kept.step
        change = relative_change(trunk, middle, kept.middle) / since
        factor = weight + abs(self.settings.gradient * (weight - kept.motion) / since) if self.settings.motion else 1.0
        return self.codebook(now.event.num_steps).length(change * factor, now.event.num_steps), weight

    def codebook(self, num_steps: int) -> Codebook:
        return CODEBOOKS[self.settings.codebook or ("fast" if num_steps < LONG_RUN else "long")]

    def _motion(self, trunk: Trunk, now: Now, middle: Tensor) -> float:
        """Differences of neighbouring frames as a share of what is usual; 1 where that is not measured."""
        first, last = (share * now.event.num_steps for share in MEASURED)
        if not self.settings.motion or not first < now.step < last:
            return 1.0
        change = frame_change(trunk, middle)
        return 1.0 if change is None else (change / self.settings.expected_motion) ** MOTION_POWER


def _computed(trunk: Trunk) -> tuple[Tensor, Tensor]:
    """The image tokens after all blocks, and what attention of the middle block adds to them."""
    middle = trunk.num_blocks // 2
    state = trunk.run(trunk.inputs, 0, middle) if middle else trunk.inputs
    found = trunk.run_attend(middle, state)
    added = trunk.image(found) * trunk.gate(middle).to(found[0].dtype)
    after = trunk.run(trunk.run_finish(middle, state, found), middle + 1, trunk.num_blocks)
    return trunk.image(after), added


def frame_change(trunk: Trunk, rows: Tensor) -> float | None:
    """``|next - this| / (|next| + |this|)`` over all pairs of neighbouring frames; None for one frame, or where frames mix."""
    stride = trunk.tokens_per_frame
    if stride == 0:
        return None
    after, num_all = trunk.following(rows, stride)
    if num_all <= stride:
        return None
    joined = torch.cat([rows, after], dim=1)
    num_pairs = max(joined.shape[1] - stride, 0)
    this, following = joined[:, :num_pairs], joined[:, stride:]
    parts = (absolute(following - this), absolute(following), absolute(this))
    change, *sizes = trunk.total(*parts)
    return change / max(sum(sizes), 1e-12)


METHODS = {
    "adacache": Method(
        "adacache", "accelerator", "cache", "AdaCache, arXiv 2411.02397",
        "whole forwards are left out, the more in a row the slower the middle block moves", "paper",
        make=AdaCache,
        settings=AdaCacheSettings,
        whole_forwards=False,
    )
}  # fmt: skip
