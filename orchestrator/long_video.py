"""Videos longer than a model was trained for, as blocks of latent frames in a queue: which block takes which step when.

Source: DualParal, "Minute-Long Videos with Dual Parallelisms", arXiv 2505.21070. Pure arithmetic, for the engine and for plans.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from orchestrator.flops import attention_flops, tokens_tflops
from orchestrator.model_geometry import ModelGeometry
from orchestrator.types import Action, Grid

Order = Literal["noisiest", "cleanest"]


@dataclass(frozen=True)
class Pass:
    """One solver step of one block, both from 0."""

    block: int
    step: int


@dataclass(frozen=True)
class Queue:
    """Blocks that enter one after the other, ``gap`` steps apart.

    With an ``overlap`` a block lies so many frames earlier at every step than at the one before, so that borders are elsewhere at
    each, and sees so many frames of the next block beside those that it moves. Those are at its own level: the next block has
    moved them as far. It leaves the video by its beginning, and new ones come in by its end until none is needed there.
    """

    num_frames: int
    """Latent frames of the video."""
    most: int
    """Of a block."""
    num_steps: int
    in_flight: int
    """Blocks on their way at once, at most."""
    order: Order = "noisiest"
    """Of the blocks in flight, which one goes first in each round."""
    overlap: int = 0
    """Latent frames that two blocks see at once, and that a block goes back at every step."""

    @property
    def is_slanted(self) -> bool:
        """Not with a video that one block sees."""
        return 0 < self.overlap < self.num_frames - self.most

    @property
    def gap(self) -> int:
        """How many steps a block is ahead of the next: the fewest that keep to ``in_flight``."""
        return -(-self.num_steps // min(self.in_flight, self.num_steps))

    @property
    def num_blocks(self) -> int:
        if self.is_slanted:
            return -(-(self.num_frames + self.overlap * (self.num_steps - 2)) // self.most)
        return -(-self.num_frames // max(self.most, self.num_frames if self.overlap else 0))

    @property
    def blocks(self) -> tuple[range, ...]:
        """The latent frames of each, where blocks stay in place: their numbers differ by one at most."""
        least, spare = divmod(self.num_frames, self.num_blocks)
        sizes = [least + 1] * spare + [least] * (self.num_blocks - spare)
        return tuple(range(end - size, end) for end, size in zip(accumulate(sizes), sizes, strict=True))

    def moved(self, block: int, step: int) -> range:
        """The latent frames that a pass takes a step further; none where the block is not in the video (any more)."""
        if not self.is_slanted:
            return self.blocks[block]
        start = block * self.most - self.overlap * step
        first, end = max(start, 0), start + self.most
        if end <= 0 or (first and first + self.overlap >= self.num_frames):
            return range(0)
        return range(first, self.num_frames if end + self.overlap >= self.num_frames else end)

    def seen(self, block: int, step: int) -> range:
        """Those, and what it sees of the next block."""
        moved = self.moved(block, step)
        return range(moved.start, min(moved.stop + self.overlap, self.num_frames)) if self.is_slanted else moved

    @property
    def num_seen(self) -> int:
        """Latent frames of a pass, at most."""
        return self.most + self.overlap if self.is_slanted else len(self.blocks[0])

    @property
    def num_passes(self) -> int:
        return sum(1 for _ in self.passes)

    @property
    def passes(self) -> Iterator[Pass]:
        """Round after round, a step for every block in flight."""
        for number in range((self.num_blocks - 1) * self.gap + self.num_steps):
            rounds = ((block, number - block * self.gap) for block in range(self.num_blocks))
            row = [Pass(block, step) for block, step in rounds if 0 <= step < self.num_steps and self.moved(block, step)]
            yield from (reversed(row) if self.order == "noisiest" else row)


def layers_of(rank: int, num_ranks: int, num_layers: int) -> range:
    """A rank's share, adjacent: numbers differ by one at most. Raises ValueError where some would have none."""
    if num_ranks > num_layers:
        raise ValueError(
            f"{num_ranks} ranks would share {num_layers} layers, and each needs one: blocks go from rank to rank by layers; "
            f"take at most {num_layers} ranks"
        )
    return range(rank * num_layers // num_ranks, (rank + 1) * num_layers // num_ranks)


def blockwise(geometry: ModelGeometry, action: Action, queue: Queue, context: int) -> Action:
    """A plain run's schedule, whose forwards see a block each. ``density`` stays of the token-steps, all of which are taken."""
    advance = queue.most if queue.is_slanted else None
    in_flight = min(queue.in_flight, queue.num_blocks)
    stage = replace(action.stages[0], window=queue.num_seen, advance=advance, in_flight=in_flight)
    plain_tflops = stage.passes * queue.num_steps * tokens_tflops(geometry, geometry.num_tokens(stage.seen))
    work = passes_tflops(geometry, stage.grid, queue, context) / plain_tflops
    return replace(action, name="dualparal", stages=(replace(stage, work=work),), needs_sketch=False)


def passes_tflops(geometry: ModelGeometry, grid: Grid, queue: Queue, context: int) -> float:
    """10^12 operations of one branch in all passes, keys of ``context`` frames of the block before among what is attended to."""
    per_frame = geometry.num_tokens((geometry.patch[0], *grid[1:]))
    total = 0.0
    for one in queue.passes:
        own = len(queue.seen(one.block, one.step)) * per_frame
        joined = own + geometry.text_tokens
        kept = min(context, len(queue.moved(one.block - 1, one.step))) * per_frame if context and one.block else 0
        total += tokens_tflops(geometry, own) + attention_flops(geometry, joined) / 1e12 * kept / joined
    return total
