"""What methods of block-sparse attention share: dense steps and layers first, then a pattern of each layer's choosing."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field
from torch import Tensor

from orchestrator.methods import Settings
from orchestrator.model_geometry import ModelGeometry
from parallel.seam import Attention
from stages.accelerators.attending import Here, Stopwatch
from stages.sparse.kernel import attend, recall
from stages.sparse.pattern import Pattern

RECALL_EVERY = 4
"""Layers of which one measures recall, another one at each step: of all of them it would cost as much as choosing."""
QUERY_BLOCK = 128
KEY_BLOCK = 64
"""Tokens of a block that suit FlexAttention on every GPU."""


class SparseSettings(Settings):
    """Of every method that attends to blocks of tokens."""

    dense_steps: float = Field(0.1, ge=0, le=1)
    """Share of the clip's steps, the first ones, that attend to everything."""
    dense_layers: float = Field(0.03, ge=0, le=1)
    """Share of the layers, the first ones, that always attend to everything; rounded up."""
    measure_recall: bool = True
    """Whether some layers of every step measure, by 64 queries, how much of dense attention's weight their pattern keeps."""


class Sparse(ABC):
    """Of one stage: a new stage has a new one, so that what it keeps belongs to one grid."""

    def __init__(self, settings: SparseSettings, geometry: ModelGeometry) -> None:
        self.sparse = settings
        self.geometry = geometry

    @abstractmethod
    def pattern(self, q: Tensor, k: Tensor, v: Tensor, here: Here) -> Pattern | None:
        """The pattern among image tokens, by what all tokens have, ``[1, heads, tokens, head_dim]`` each; None: everything.

        Every block of queries must keep a block of keys.
        """

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        if self.is_dense(here):
            return self.attend_to_all(q, k, v, here, dense)
        with Stopwatch(q.device) as choosing:
            pattern = self.pattern(q, k, v, here)
        if pattern is None:
            return self.attend_to_all(q, k, v, here, dense)
        return self.attend_within(q, k, v, here, pattern, choosing)

    def is_dense(self, here: Here) -> bool:
        first_steps = here.now.step < self.sparse.dense_steps * here.now.event.num_steps
        return first_steps or here.layer < self.sparse.dense_layers * here.num_layers

    def attend_to_all(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        with Stopwatch(q.device) as attending:
            found = dense(q, k, v)
        here.log.add(here, 1.0, attending=attending)
        return found

    def attend_within(
        self, q: Tensor, k: Tensor, v: Tensor, here: Here, pattern: Pattern, choosing: Stopwatch | None = None
    ) -> Tensor:
        """What the pattern keeps, text and all."""
        pattern, choosing = pattern.with_text(q.shape[2] - here.num_image), choosing or Stopwatch(q.device)
        with choosing:
            density, executed = pattern.density, pattern.executed
        with Stopwatch(q.device) as attending:
            found = self.kernel(q, k, v, pattern)
        measures = self.sparse.measure_recall and (here.layer - here.now.step) % RECALL_EVERY == 0
        kept = recall(q, k, pattern) if measures else None
        here.log.add(here, density, kept, choosing, attending, executed)
        return found

    def kernel(self, q: Tensor, k: Tensor, v: Tensor, pattern: Pattern) -> Tensor:
        """What computes a pattern that text is in."""
        return attend(q, k, v, pattern)


class BlockSparse(Sparse):
    """By a rule that goes by queries and keys of image tokens."""

    @abstractmethod
    def choose(self, q: Tensor, k: Tensor, here: Here) -> Pattern | None:
        """The pattern among image tokens, by their queries and keys ``[1, heads, image tokens, head_dim]``; None: everything.

        Every block of queries must keep a block of keys.
        """

    def pattern(self, q: Tensor, k: Tensor, v: Tensor, here: Here) -> Pattern | None:
        return self.choose(q[:, :, : here.num_image], k[:, :, : here.num_image], here)
