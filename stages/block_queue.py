"""A long video by blocks of latent frames in a queue (DualParal, arXiv 2505.21070), the layers in a row over a slice's ranks.

A pass is one solver step of one block. Its state goes from rank to rank, each of which runs its layers on it and keeps their
keys and values for the block that follows; the last makes the step and sends the latent back to the first. All ranks go through
the same passes, so they are busy at once wherever as many blocks are in flight. What a rank holds on its device does not grow
with the video: whole latents lie on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orchestrator.long_video import Queue, layers_of, passes_tflops
from orchestrator.types import Grid, Stage
from parallel.line import Line
from parallel.seam import Attention
from stages.accelerators.attending import Here
from stages.accelerators.base import Boost, Now, StageEvent
from stages.accelerators.trunk import Trunk
from stages.denoise import Boundary, OnStep, StepDone
from stages.models.base import Model, Placed
from stages.planners.task import Task
from stages.sampling import Solver

Keys = tuple[Tensor, Tensor]
"""Rotated keys, and values, ``[1, heads, tokens, head_dim]``."""


@dataclass(frozen=True, eq=False)
class Later:
    """All tokens of a latent whose first frame is not the video's first. Their places are turned on from a table of the latent's
    own length, so that no table is as long as the video."""

    first: int
    """Latent frame of the video."""
    grid: Grid
    """Tokens along (time, height, width)."""
    kept: dict[Hashable, Any] = field(default_factory=dict)
    unit: int = 1

    @property
    def num_tokens(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def first_frame(self) -> Tensor:
        """None of them is of the video's first frame."""
        return torch.zeros(self.num_tokens, 1, dtype=torch.bool)

    def take(self, x: Tensor, cut: Callable[[Tensor], Tensor]) -> Tensor:
        return cut(x)

    def lay(self, tokens: Tensor, laid: Callable[[Tensor, Grid], Tensor]) -> Tensor:
        return laid(tokens, self.grid)

    def rotations(self, table: Callable[[Grid], Tensor]) -> Tensor:
        """A place's angle grows evenly with the frame, by what the second frame's first token shows: one radian at most."""
        own = table(self.grid)
        angle = torch.view_as_complex(table((2, 1, 1)).double().contiguous())[1].angle() * self.first
        turned = torch.view_as_complex(own.double().contiguous()) * torch.polar(torch.ones_like(angle), angle)
        return torch.view_as_real(turned).to(own.dtype)

    def once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


class Share:
    """This rank's layers of every forward, and what they keep of each block: both roles of an accelerator."""

    def __init__(self, line: Line, context: int) -> None:
        self.line, self.context = line, context
        self.block = 0
        self.num_frames = 1
        self.is_followed = False
        self._kept: dict[int, dict[Hashable, Keys]] = {}

    def begin(self, block: int, num_frames: int, is_followed: bool) -> None:
        """The next forwards are of this block, of so many latent frames; its keys are kept where another follows."""
        self.block, self.num_frames, self.is_followed = block, num_frames, is_followed

    def drop(self, block: int) -> None:
        """Nobody will attend to it again, as it is now."""
        self._kept.pop(block, None)

    @property
    def num_bytes(self) -> int:
        return sum(x.nbytes for kept in self._kept.values() for pair in kept.values() for x in pair)

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        """Of any rank but the last what comes out means nothing."""
        state = trunk.inputs if self.line.is_first else self.line.take(trunk.inputs)
        layers = layers_of(self.line.rank, self.line.size, trunk.num_blocks)
        state = trunk.run(state, layers.start, layers.stop)
        if self.line.is_last:
            return trunk.image(state)
        if [(x.shape, x.dtype) for x in state] != [(x.shape, x.dtype) for x in trunk.inputs]:
            raise RuntimeError("a block's state changes its size between layers: it cannot go from rank to rank")
        self.line.hand_on(state)
        return trunk.inputs[0]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, here: Here, dense: Attention) -> Tensor:
        key = here.now.branch, here.layer, here.heads.start
        before = self._kept.get(self.block - 1, {}).get(key)
        if self.is_followed:
            start = here.num_image // self.num_frames * max(self.num_frames - self.context, 0)
            last = slice(start, here.num_image)
            self._kept.setdefault(self.block, {})[key] = (k[:, :, last].clone(), v[:, :, last].clone())
        if before is None:
            return dense(q, k, v)
        return dense(q, torch.cat([k, before[0]], dim=2), torch.cat([v, before[1]], dim=2))


@dataclass
class Flight:
    """A block on its way, as the rank that makes its steps has it."""

    x: Tensor
    solver: Solver

    @property
    def num_bytes(self) -> int:
        tensors: list[Tensor] = [self.x]
        for value in vars(self.solver).values():
            tensors += [x for x in (value if isinstance(value, tuple) else (value,)) if isinstance(x, Tensor) and x.ndim > 1]
        return sum(x.nbytes for x in tensors)


class BlockLeg:
    """The one stage of a long clip; used once. The model is detached from its slice while it runs: every rank attends alone."""

    def __init__(self, model: Model, task: Task, queue: Queue, context: int, boundary: Boundary, on_step: OnStep) -> None:
        if boundary.decision is None:
            raise RuntimeError("a clip by blocks is decided from the start, and this one is not")
        self.model, self.task, self.queue, self.boundary, self.on_step = model, task, queue, boundary, on_step
        self.stage: Stage = boundary.decision.action.stages[0]
        self.context = context
        self.attached = model.attached
        layout = self.attached[0]
        self.line = Line(None if layout is None else layout.whole, queue.in_flight)
        self.share = Share(self.line, context)
        self.levels = task.solver(self.stage).levels
        self.flights: dict[int, Flight] = {}
        self.placed: dict[int, Placed] = {}
        self.done: Tensor = torch.empty(boundary.x.shape)
        self.most_bytes = 0
        """Of keys, values, latents and solvers, that lay on this rank's device at once."""

    def run(self) -> Boundary:
        """Every rank of the slice gets the same.

        Raises ValueError for a slice of more ranks than the model has layers, RuntimeError when what comes out is not finite.
        """
        event = StageEvent(self._grid(0), range(self.queue.num_steps), self.queue.num_steps, 0, False)
        boost = Boost((lambda: self.share,), event, self.model.geometry)
        self.model.attach(None, None)
        self.model.accelerate(boost)
        try:
            self._run(boost)
        finally:
            self.model.accelerate(None)
            self.model.attach(*self.attached)
        if not bool(self.done.isfinite().all()):
            raise RuntimeError("the latent is not finite in the end: the weights, the guidance or the shift are at fault")
        past = dataclasses.replace(self.boundary.past, tflops=self.boundary.past.tflops + self._tflops())
        return dataclasses.replace(self.boundary, x=self.done, step=self.queue.num_steps, stage=1, past=past)

    def _run(self, boost: Boost) -> None:
        for number, one in enumerate(self.queue.passes):
            level = self.levels[one.step]
            boost.at(one.step, level)
            self.share.begin(one.block, len(self._frames(one.block)), one.block + 1 < self.queue.num_blocks)
            x = self._latent(one.block, one.step)
            v = self.model.denoise(x, level, self._placed(one.block))
            if self.line.is_last:
                self._step(v, one.block, one.step)
            self._note_bytes()
            self._tidy(one.block, one.step)
            self.on_step(StepDone(0, 1, number, self.queue.num_passes, self.stage.grid, level.sigma))
        self.line.settle()
        self.line.share(self.done)

    def _latent(self, block: int, step: int) -> Tensor:
        """Before this step, where it is known: the first rank embeds it, the last one moves it. Others need its size only."""
        noise = self._of(self.boundary.x, block)
        if self.line.is_last:
            if step == 0:
                self.flights[block] = Flight(noise.to(self.model.device), self.task.solver(self.stage))
            return self.flights[block].x
        if step and self.line.is_first:
            noise = self.line.take_back(noise)
        return noise.to(self.model.device)

    def _step(self, v: Tensor, block: int, step: int) -> None:
        """On the rank that has the velocity."""
        flight = self.flights[block]
        flight.x = flight.solver.step(flight.x, v, step)
        if step + 1 == self.queue.num_steps:
            self._of(self.done, block).copy_(self.flights.pop(block).x)
        elif not self.line.is_first:
            self.line.send_back(flight.x)

    def _tidy(self, block: int, step: int) -> None:
        """What nobody needs any more. Going by the cleanest first, a block's keys are made anew before they are next used."""
        is_done = step + 1 == self.queue.num_steps
        if is_done:
            self.placed.pop(block)
        if is_done or (self.queue.order == "cleanest" and step + self.queue.gap < self.queue.num_steps):
            self.share.drop(block - 1)

    def _note_bytes(self) -> None:
        self.most_bytes = max(self.most_bytes, self.share.num_bytes + sum(one.num_bytes for one in self.flights.values()))

    def _placed(self, block: int) -> Placed:
        """Made when a block enters, and let go when it is done."""
        if block not in self.placed:
            frames, (t, h, w) = self._frames(block), self._grid(block)
            axes = tuple(frames), tuple(range(h)), tuple(range(w))
            patch = self.model.geometry.patch
            tokens = t // patch[0], h // patch[1], w // patch[2]
            placed = self.model.place(self.boundary.condition, axes, self.task.config.image_condition)
            self.placed[block] = dataclasses.replace(placed, mixed=Later(frames.start, tokens) if frames.start else None)
        return self.placed[block]

    def _frames(self, block: int) -> range:
        return self.queue.blocks[block]

    def _grid(self, block: int) -> Grid:
        return len(self._frames(block)), *self.stage.grid[1:]

    def _of(self, x: Tensor, block: int) -> Tensor:
        frames = self._frames(block)
        return x[:, :, frames.start : frames.stop]

    def _tflops(self) -> float:
        """Over all ranks, both branches of guidance."""
        branches = 1 if self.boundary.condition.negative is None else 2
        return branches * passes_tflops(self.model.geometry, self.stage.grid, self.queue, self.context)
