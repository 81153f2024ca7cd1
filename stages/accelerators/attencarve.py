"""AttenCarve (Jenga, arXiv 2505.16864): blocks along a space-filling curve; a row keeps the most promising and the nearest.

Image tokens come in the order of a generalised Hilbert curve, 128 to a block, so that a block is a compact piece of the clip. A
row of blocks keeps those whose mean key promises most, as many as the drop rate leaves; the fewest that come to a share of the
mass; those with a token beside one of its own, in space or in time; and text.

That a token's neighbours are the six that differ by one along one side is our reading. The steps that the release leaves out
altogether are a cache's work, and not part of this.
"""

from __future__ import annotations

import functools

import torch
from pydantic import Field, field_validator
from torch import Tensor

from orchestrator.methods import Method
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid
from stages.accelerators.attending import Here
from stages.accelerators.base import StageEvent
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse.choosing import BlockSize, largest, pooled, reaching, sent
from stages.sparse.curve import hilbert
from stages.sparse.pattern import Blocks, Pattern, in_order


class AttenCarveSettings(SparseSettings):
    """The defaults are those of the release with two stages, which leaves no step or layer dense."""

    dense_steps: float = Field(0.0, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up."""
    drop_rates: tuple[float, ...] = Field((0.7, 0.8), min_length=1)
    """Share of a row's blocks that is dropped, by stage; later stages, and a clip that has but one, take the last. 0: dense."""
    mass: float = Field(0.3, ge=0, le=1)
    """Blocks that together reach this share of a row's pooled attention are kept whatever the drop rate; 0: no matter."""
    block: BlockSize = 128
    """Tokens in a block."""

    @field_validator("drop_rates")
    @classmethod
    def _check(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0 <= rate < 1 for rate in rates):
            raise ValueError(f"drop_rates is {rates}: each must be at least 0 and below 1")
        return rates

    def drop_rate(self, event: StageEvent) -> float:
        last = len(self.drop_rates) - 1
        return self.drop_rates[min(event.stage, last) if event.in_stages else last]


class AttenCarve(BlockSparse):
    """Of one stage."""

    def __init__(self, settings: AttenCarveSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings
        self._laid: tuple[Blocks, Tensor] | None = None

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        rate = self.settings.drop_rate(here.now.event)
        if rate == 0:
            return None
        blocks, beside = self._blocks(here.tokens, q.device)
        scores = pooled(q, k, blocks)
        num_kept = max(1, round((1 - rate) * blocks.num))
        return Pattern(blocks, blocks, largest(scores, num_kept) | reaching(scores, self.settings.mass) | beside)

    def _blocks(self, grid: Grid, device: torch.device) -> tuple[Blocks, Tensor]:
        """Made once: a stage has one grid."""
        if self._laid is None:
            order, beside = on_host(grid, self.settings.block)
            self._laid = in_order(sent(order.unsqueeze(0), device), self.settings.block), sent(beside, device)
        return self._laid


@functools.lru_cache(maxsize=32)
def on_host(grid: Grid, size: int) -> tuple[Tensor, Tensor]:
    """The curve, and which blocks are neighbours: made once for all clips, as devices wait for it where a host is busy."""
    order = hilbert(grid)
    return order, neighbours(order, grid, size)


def neighbours(order: Tensor, grid: Grid, size: int) -> Tensor:
    """Which blocks of ``size`` tokens along ``order`` hold tokens that are the same or one apart along one side, ``[n, n]``."""
    block = torch.empty_like(order)
    block[order] = torch.arange(len(order)) // size
    cells, num = block.view(grid), -(-len(order) // size)
    found = torch.eye(num, dtype=torch.bool)
    for axis, length in enumerate(grid):
        here, there = cells.narrow(axis, 0, length - 1), cells.narrow(axis, 1, length - 1)
        found[here.flatten(), there.flatten()] = True
    return found | found.T


METHODS = {
    "attencarve": Method(
        "attencarve", "accelerator", "attention", "AttenCarve of Jenga, arXiv 2505.16864",
        "a fifth of the blocks along a space-filling curve, those next to each other among them", "paper",
        make=AttenCarve,
        settings=AttenCarveSettings,
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
