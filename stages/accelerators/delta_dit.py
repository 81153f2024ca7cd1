"""Delta-DiT (arXiv 2406.01125), from its abstract: what a run of blocks adds is reused, rear ones' early, front ones' late.

Front blocks draw the outline and rear ones the detail, and early steps are about the outline.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from stages.accelerators.base import Now
from stages.accelerators.trunk import State, Trunk

Side = Literal["front", "rear"]


class DeltaDitSettings(Settings):
    """The defaults come near the published 1.6x: 1.51x in 20 steps and 1.56x in 50 of a model of 28 blocks, as the last step is
    computed."""

    blocks: float = Field(0.75, gt=0, lt=1)
    """Share of all blocks that are left out."""
    interval: int = Field(2, ge=1)
    """Every so many steps all blocks are computed; 1: at every step."""
    boundary: float = Field(0.5, ge=0, le=1)
    """Share of the steps in which the rear blocks are left out; in those after it, the front ones. Where the clip changes its
    grid on the way, its last stage leaves out the front and those before it the rear."""


@dataclass(frozen=True)
class Kept:
    """What the blocks of a side added, to each tensor of the state, when they were last computed."""

    side: Side
    step: int
    deltas: State


class DeltaDit:
    """Of one stage."""

    def __init__(self, settings: DeltaDitSettings, geometry: ModelGeometry) -> None:
        self.settings = settings
        self._kept: dict[int, Kept] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        if self.settings.interval == 1 or now.step == now.event.last:
            return trunk.compute()
        side, kept = self._side(now), self._kept.get(now.branch)
        start, stop = left_out(self.settings, side, trunk.num_blocks)
        before = trunk.run(trunk.inputs, 0, start)
        is_old = kept is None or kept.side != side or now.step - kept.step >= self.settings.interval
        if kept is None or is_old:
            after = trunk.run(before, start, stop)
            deltas = tuple(x - was for x, was in zip(after, before, strict=True))
            self._kept[now.branch] = Kept(side, now.step, deltas)
        else:
            after = tuple(was + delta for was, delta in zip(before, kept.deltas, strict=True))
        return trunk.image(trunk.run(after, stop, trunk.num_blocks))

    def _side(self, now: Now) -> Side:
        if now.event.in_stages:
            return "rear" if now.event.crosses else "front"
        return "rear" if now.step < int(self.settings.boundary * now.event.num_steps) else "front"


def left_out(settings: DeltaDitSettings, side: Side, num_blocks: int) -> tuple[int, int]:
    """The blocks of a side that are left out, first and one past the last: at least one, and never all."""
    num = num_left_out(settings, num_blocks)
    return (0, num) if side == "front" else (num_blocks - num, num_blocks)


def num_left_out(settings: DeltaDitSettings, num_blocks: int) -> int:
    return min(max(1, round(settings.blocks * num_blocks)), num_blocks - 1)


def _mistakes(settings: DeltaDitSettings, request: Request) -> list[str]:
    if request.geometry.num_layers > 1:
        return []
    return [f"{request.geometry.name} has one block, and some must be computed; take teacache, which leaves out whole forwards"]


METHODS = {
    "delta-dit": Method(
        "delta-dit", "accelerator", "cache", "Delta-DiT, arXiv 2406.01125",
        "what the rear blocks add is reused in early steps, the front blocks' in late ones", "reconstructed",
        make=DeltaDit,
        settings=DeltaDitSettings,
        mistakes=_mistakes,
        whole_forwards=False,
    )
}  # fmt: skip
