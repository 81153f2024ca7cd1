"""AdaSpa (arXiv 2502.21079): which blocks matter is found exactly at a few search steps and used until the next one.

A search attends to everything, and sums the weights by blocks. A head keeps its largest blocks of all rows together, and those of
the first keys, which act as a sink. Heads whose blocks recall enough of the weights are given a higher sparsity, and as many of
those that recall least a lower one, so that the mean over all heads is what was asked for.

Reconstructed from summaries. The published search is one pass of a kernel of its own; here dense attention's kernel does it, in
more passes, which count: none is due where the steps left in the stage, or those since the last one, spare fewer operations than
it costs; text and empty slots are computed. With the defaults a stage needs 7 steps at 49,290 tokens and 12 at 115,200; shorter
ones stay dense. Heads are compared over all ranks: at the first step after a search each tells the others what its heads recall.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method
from orchestrator.model_geometry import ModelGeometry
from parallel.groups import Group
from parallel.seam import Attention
from stages.accelerators.attending import Here, Stopwatch
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse.choosing import BlockSize, block_sums, num_passes
from stages.sparse.pattern import Blocks, Pattern, in_a_row

MORE, USUAL, LESS = 0, 1, 2
"""How sparse a head is."""


class AdaSpaSettings(SparseSettings):
    """The defaults are for 50 steps searches at the 10th and the 30th, the first ten being dense."""

    dense_steps: float = Field(0.2, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up."""
    sparsity: float = Field(0.8, ge=0, lt=1)
    """Share of the blocks that is dropped, a mean over the heads of a layer. 0: everything is kept."""
    trusted_recall: float = Field(0.8, ge=0, le=1)
    """Heads that recall this share of dense attention's weights are given half of what they keep; 1: hardly any is."""
    block: BlockSize = 128
    """Tokens in a block."""
    first_search: int = Field(0, ge=0)
    """Steps of a stage that attend to everything before its first search."""
    search_again: tuple[float, ...] = (0.6,)
    """Shares of the clip's steps after which the next step that has been worth it searches again."""


@dataclass
class Found:
    """By a search, of some heads of a layer."""

    step: int
    levels: Tensor
    """The sparsest of ``MORE, USUAL, LESS`` of which a block is kept, and 3 for none: ``[heads, n, n]`` uint8."""
    recall: Tensor
    """Of the weights, what falls on the blocks kept at ``USUAL``, ``[heads]``."""
    level: Tensor | None = None
    """Of each head, once all have been compared."""


class AdaSpa(BlockSparse):
    """Of one stage."""

    def __init__(self, settings: AdaSpaSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self.settings = settings
        self._found: dict[tuple[int, int], dict[int, Found]] = {}
        """By branch and layer, then by the first of the heads."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if self.is_dense(here) or not self._is_due(q, here):
            return super().attend(q, k, v, here, dense)
        with Stopwatch(q.device) as choosing:
            self._of_layer(here)[here.heads.start] = self._searched(q, k, here, dense)
        with Stopwatch(q.device) as attending:
            out = dense(q, k, v)
        here.log.add(here, 1.0, None, choosing, attending, executed=1.0 + num_passes(self._blocks(q, here), q.shape[-1]))
        return out

    def is_dense(self, here: Here) -> bool:
        return self.settings.sparsity == 0 or here.now.since < self.settings.first_search or super().is_dense(here)

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        found = self._of_layer(here).get(here.heads.start)
        if found is None:
            return None
        level = self._compared(here)[here.heads.start] if found.level is None else found.level
        blocks = self._blocks(q, here)
        return Pattern(blocks, blocks, found.levels <= level[:, None, None])

    def _blocks(self, q: Tensor, here: Here) -> Blocks:
        return in_a_row(here.num_image, self.settings.block, q.device)

    def _of_layer(self, here: Here) -> dict[int, Found]:
        return self._found.setdefault((here.now.branch, here.layer), {})

    def _is_due(self, q: Tensor, here: Here) -> bool:
        """Only where the steps left in the stage spare more than a search costs, and those since the last one have."""
        found, now = self._of_layer(here).get(here.heads.start), here.now
        cost, spared = num_passes(self._blocks(q, here), q.shape[-1]), self._spared(q, here)
        if (now.event.last - now.step) * spared <= cost:
            return False
        if found is None:
            return True
        marks = (math.ceil(share * now.event.num_steps) for share in self.settings.search_again)
        return (now.step - found.step - 1) * spared > cost and any(found.step < mark <= now.step for mark in marks)

    def _spared(self, q: Tensor, here: Here) -> float:
        """Of dense attention's operations, what a step leaves out after a search: ``1 - Pattern.executed``, without a device."""
        size, num_tokens = self.settings.block, q.shape[2]
        num, num_text = (math.ceil(some / size) for some in (here.num_image, num_tokens - here.num_image))
        num_kept = usually_kept(num, self.settings.sparsity) + (2 * num + num_text) * num_text
        return 1 - num_kept * (size / num_tokens) ** 2

    def _searched(self, q: Tensor, k: Tensor, here: Here, dense: Attention) -> Found:
        sums = block_sums(q, k, self._blocks(q, here), dense)
        levels = graded(sums, self.settings.sparsity)
        return Found(here.now.step, levels, 1 - (sums * (levels > USUAL)).sum((1, 2)) / here.num_image)

    def _compared(self, here: Here) -> dict[int, Tensor]:
        """How sparse this rank's heads of the layer are, by the first of each chunk. Other ranks come here alike."""
        chunks = dict(sorted(self._of_layer(here).items()))
        own = torch.cat([found.recall for found in chunks.values()])
        recall, first = gathered(own, here.sequence)
        mine = settled(recall, self.settings.trusted_recall)[first : first + len(own)]
        parts = torch.split(mine, [len(found.recall) for found in chunks.values()])
        for found, level in zip(chunks.values(), parts, strict=True):
            found.level = level
        return dict(zip(chunks, parts, strict=True))


def graded(sums: Tensor, sparsity: float) -> Tensor:
    """Which blocks of ``[heads, n, n]`` a head keeps at which sparsity (``Found.levels``).

    A sparser head keeps half of what is usual, a less sparse one as many more, so that the two come to the same mean. The first
    column is always kept.
    """
    num = sums.shape[-1]
    usual = usually_kept(num, sparsity)
    change = min(usual - max(num, usual // 2), num * num - usual)
    first = torch.arange(num, device=sums.device) == 0
    order = sums.masked_fill(first, torch.inf).flatten(1).argsort(dim=1, descending=True, stable=True)
    place = torch.arange(num * num, device=sums.device)
    grades = torch.stack([place >= bound for bound in (usual - change, usual, usual + change)]).sum(0, dtype=torch.uint8)
    return torch.empty_like(order, dtype=torch.uint8).scatter(1, order, grades.expand_as(order)).view_as(sums)


def usually_kept(num: int, sparsity: float) -> int:
    """Of ``num`` times ``num`` blocks, a mean over heads: every row keeps one at least."""
    return max(num, round((1 - sparsity) * num * num))


def settled(recall: Tensor, trusted: float) -> Tensor:
    """How sparse each of all heads of a layer is, by its ``recall [heads]``: as many more as less."""
    num = len(recall)
    place = recall.argsort(descending=True, stable=True).argsort()
    moved = (recall >= trusted).sum().clamp(max=num // 2)
    return USUAL - (place < moved).int() + (place >= num - moved).int()


def gathered(own: Tensor, group: Group | None) -> tuple[Tensor, int]:
    """Of all ranks, each of which has as many heads, and where this one's begin."""
    if group is None:
        return own, 0
    return group.gather_rows(own, (len(own),) * group.size), group.rank * len(own)


def kept(settings: AdaSpaSettings, geometry: ModelGeometry) -> float:
    """A byte for each block of every layer and head, against two for each number of a token, at the model's own size."""
    num = geometry.num_tokens(geometry.latent_grid(geometry.default_shape)) / settings.block
    return geometry.num_layers * num / (2 * settings.block * geometry.head_dim)


METHODS = {
    "adaspa": Method(
        "adaspa", "accelerator", "attention", "AdaSpa, arXiv 2502.21079",
        "a fifth of the blocks, found exactly at a few search steps and used until the next, more for heads that need it",
        "reconstructed",
        make=AdaSpa,
        settings=AdaSpaSettings,
        kept_tensors=kept,
    )
}  # fmt: skip
