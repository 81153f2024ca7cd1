"""DraftAttention (arXiv 2505.14708): a draft of attention among the means of tiles of a frame says which tiles to attend to.

A tile is 8 x 16 tokens of one frame. Where the frame is no multiple, tiles at its far borders have fewer tokens, and their means
are of those alone; the published code leaves such grids out. Where a tile is more than half of a frame, as on a small model's
grids and in first stages, its longer side is halved until it is not, as long as it is made of sixteens of tokens.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator
from torch import Tensor

from orchestrator.methods import Method
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Grid
from stages.accelerators.attending import Here
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse.choosing import largest, pooled, whole_tiles
from stages.sparse.kernel import LEAST_TILE
from stages.sparse.pattern import Blocks, Pattern, in_tiles

Side = Annotated[int, Field(ge=1)]


class DraftSettings(SparseSettings):
    """Sparsity and tile are the release's; which steps and layers it leaves dense we do not know, and take SVG's share."""

    sparsity: float = Field(0.9, ge=0, lt=1)
    """Share of a head's draft, all rows together, that is dropped; a row keeps its largest entry in any case. 0: dense."""
    tile: tuple[Side, Side] = (8, 16)
    """Rows and columns of tokens, halved where they are more than half of a frame."""

    @field_validator("tile")
    @classmethod
    def _check(cls, tile: tuple[int, int]) -> tuple[int, int]:
        whole_tiles(tile[0] * tile[1])
        return tile


class DraftAttention(BlockSparse):
    """Of one stage."""

    def __init__(self, settings: DraftSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings
        self._tiles: Blocks | None = None

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        if self.settings.sparsity == 0:
            return None
        if self._tiles is None:
            self._tiles = in_tiles(here.tokens, (1, *fitting(self.settings.tile, here.tokens)), q.device)
        draft = pooled(q, k, self._tiles)
        num_kept = max(1, round((1 - self.settings.sparsity) * draft[0].numel()))
        above = largest(draft.flatten(1), num_kept).view_as(draft)
        return Pattern(self._tiles, self._tiles, above | largest(draft, 1))


def fitting(shape: tuple[int, int], grid: Grid) -> tuple[int, int]:
    """With its longer side halved while it is more than half of a frame of ``grid`` tokens, and the half is made of sixteens."""
    height, width = shape
    while height * width > grid[1] * grid[2] // 2:
        half = (height, width // 2) if width > height else (height // 2, width)
        if half[0] * half[1] % LEAST_TILE:
            break
        height, width = half
    return height, width


METHODS = {
    "draft-attention": Method(
        "draft-attention", "accelerator", "attention", "DraftAttention, arXiv 2505.14708",
        "a tenth of the tiles of frames, chosen by attention among their means", "release",
        make=DraftAttention,
        settings=DraftSettings,
        kept_tensors=lambda settings, geometry: 0.0,
    )
}  # fmt: skip
