"""Re-ttention (arXiv 2505.22918): a static window and sinks, very sparse, and the share of the weight that they should have.

A softmax over few keys gives them all of the weight. Steps that attend to everything measure, query by query, which share the
kept keys have of it; the sparse steps after them scale what they find by it, and may add what was missing when it was measured.

A step that measures takes as long as a dense step and a sparse one: dense attention's kernel gives sums of weights too. What the
kept pairs take of it counts as choosing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.methods import Method
from orchestrator.model_geometry import ModelGeometry
from stages.accelerators.attending import Here, Stopwatch
from stages.accelerators.block_sparse import BlockSparse, SparseSettings
from stages.sparse.choosing import BlockSize
from stages.sparse.dense import dense_with_sums
from stages.sparse.kernel import attend_with_sums
from stages.sparse.pattern import Pattern, in_a_row


class ReTtentionSettings(SparseSettings):
    """The sparsity is the paper's; steps between measurements and blocks are ours."""

    sparsity: float = Field(0.969, ge=0, lt=1)
    """Share of the blocks of keys that a query does not see; 0: attention is dense."""
    sinks: int = Field(1, ge=0)
    """Blocks of keys at the beginning of the clip that all queries see."""
    block: BlockSize = 128
    """Tokens of a block."""
    interval: int = Field(5, ge=1)
    """Every so many steps of a stage, the first one among them, attend to everything and measure."""
    residual: bool = True
    """Whether what the kept keys missed at the last measurement is kept and added: a tensor of all tokens for every layer."""
    dense_steps: float = Field(0.0, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything and measure nothing."""
    dense_layers: float = Field(0.0, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up."""


@dataclass(frozen=True)
class Measured:
    """Of some heads of a layer, in one branch of guidance."""

    step: int
    share: Tensor
    """Of each query's weight, what falls on kept keys, ``[1, heads, tokens, 1]`` float32."""
    missed: Tensor | None
    """What everything gives less the kept keys' scaled part, ``[1, heads, tokens, head_dim]``."""


class ReTtention(BlockSparse):
    """Of one stage. With sparsity 0 it is dense attention, bit for bit."""

    sparse: ReTtentionSettings

    def __init__(self, settings: ReTtentionSettings, geometry: ModelGeometry) -> None:
        super().__init__(settings, geometry)
        self._measured: dict[tuple[int, int, int], Measured] = {}
        self._keep: Tensor | None = None

    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        blocks = in_a_row(here.num_image, self.sparse.block, q.device)
        num_kept = max(1, round((1 - self.sparse.sparsity) * blocks.num))
        if num_kept == blocks.num:
            return None
        if self._keep is None:
            self._keep = window_and_sinks(blocks.num, max(1, num_kept - self.sparse.sinks), self.sparse.sinks, q.device)
        return Pattern(blocks, blocks, self._keep.expand(q.shape[1], -1, -1))

    def attend_within(
        self, q: Tensor, k: Tensor, v: Tensor, here: Here, pattern: Pattern, choosing: Stopwatch | None = None
    ) -> Tensor:
        place = here.now.branch, here.layer, here.heads.start
        measured = self._measured.get(place)
        if measured is None or here.now.step >= measured.step + self.sparse.interval:
            found, self._measured[place] = self._measure(q, k, v, here, pattern, choosing or Stopwatch(q.device))
            return found
        found = super().attend_within(q, k, v, here, pattern, choosing)
        scaled = measured.share * found
        return (scaled if measured.missed is None else scaled + measured.missed).to(found.dtype)

    def _measure(
        self, q: Tensor, k: Tensor, v: Tensor, here: Here, pattern: Pattern, choosing: Stopwatch
    ) -> tuple[Tensor, Measured]:
        with Stopwatch(q.device) as attending:
            found, all_sums = dense_with_sums(q, k, v)
        with choosing:
            pattern = pattern.with_text(q.shape[2] - here.num_image)
            kept, kept_sums = attend_with_sums(q, k, v, pattern)
            share = torch.exp(kept_sums - all_sums).unsqueeze(-1)
            missed = (found - share * kept).to(found.dtype) if self.sparse.residual else None
            executed = 1 + pattern.executed
        here.log.add(here, 1.0, choosing=choosing, attending=attending, executed=executed)
        return found, Measured(here.now.step, share, missed)


def window_and_sinks(num: int, width: int, sinks: int, device: torch.device) -> Tensor:
    """Which of ``num`` blocks see which, ``[num, num]``: ``width`` around one's own, all inside, and sinks."""
    places = torch.arange(num, device=device)
    first = (places - width // 2).clamp(0, num - width).unsqueeze(1)
    return (places >= first) & (places < first + width) | (places < sinks)


def kept_tensors(settings: ReTtentionSettings, geometry: ModelGeometry) -> float:
    """A number of 4 bytes for every head's 2-byte values, and the residual."""
    return geometry.num_layers * (2 / geometry.head_dim + settings.residual) if settings.sparsity else 0.0


METHODS = {
    "re-ttention": Method(
        "re-ttention", "accelerator", "attention", "Re-ttention, arXiv 2505.22918",
        "a window and sinks, scaled by the share of the weight that they had at the last full step", "reconstructed",
        make=ReTtention,
        settings=ReTtentionSettings,
        needs="with residual, memory for a tensor of the tokens' size for every block and branch of guidance",
        kept_tensors=kept_tensors,
    )
}  # fmt: skip
