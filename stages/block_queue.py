"""A long video by blocks of latent frames in a queue (DualParal, arXiv 2505.21070), the layers in a row over a slice's ranks.

A pass is one solver step of one block. Its state goes from rank to rank, each of which runs its layers on it and keeps their
keys and values for the block that follows; the last makes the step and sends the latent back to the first. All ranks go through
the same passes, so they are busy at once wherever as many blocks are in flight. What a rank holds on its device does not grow
with the video: whole latents lie on the host.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orchestrator.long_video import Pass, Queue, layers_of, passes_tflops
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
    """A latent frame on its way, as the rank that makes its steps has it: blocks that overlap hand frames to each other."""

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
        most_back = 4 * (queue.in_flight + 2)  # on the host: the first rank takes them when it needs them
        self.line = Line(None if layout is None else layout.whole, queue.in_flight, most_back)
        self.share = Share(self.line, context)
        self.flights: dict[int, Flight] = {}
        """By the frame."""
        self.frames: dict[int, tuple[int, Tensor]] = {}
        """On the first rank, where that is not the last one too: each frame's next step, and the frame."""
        self.sent_back = (one for one in queue.passes if one.step + 1 < queue.num_steps)
        self.ahead: dict[int, Tensor] = {}
        """By the step: velocities of frames that the block before saw beyond its end."""
        self.fresh = task.solver(self.stage)
        self.levels = self.fresh.levels
        self.placed: dict[int, Placed] = {}
        self.done: Tensor = torch.empty(boundary.x.shape)
        self.most_bytes = 0
        """Of keys, values, latents and solvers, that lay on this rank's device at once."""

    def run(self) -> Boundary:
        """Every rank of the slice gets the same.

        Raises ValueError for a slice of more ranks than the model has layers, RuntimeError when what comes out is not finite.
        """
        event = StageEvent(self._grid(self.queue.seen(0, 0)), range(self.queue.num_steps), self.queue.num_steps, 0, False)
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
            seen = self.queue.seen(one.block, one.step)
            self.share.begin(one.block, len(seen), self.context > 0 and one.block + 1 < self.queue.num_blocks)
            v = self.model.denoise(self._latent(seen, one.step), level, self._placed(one.block, seen))
            if self.line.is_last:
                self._step(v, one)
            self._note_bytes()
            self._tidy(one.block, one.step)
            self.on_step(StepDone(0, 1, number, self.queue.num_passes, self.stage.grid, level.sigma))
        self.line.settle()
        self.line.share(self.done)

    def _latent(self, frames: range, step: int) -> Tensor:
        """Before this step, where it is known: the first rank embeds it, the last one moves it. Others need its size only."""
        if self.line.is_last:
            return torch.cat([self._flight(frame).x for frame in frames], dim=2)
        if self.line.is_first:
            self._catch_up(frames, step)
            found = [self.frames[frame][1] if frame in self.frames else self._of(self.boundary.x, frame) for frame in frames]
            return torch.cat(found, dim=2).to(self.model.device)
        return self._of(self.boundary.x, frames).to(self.model.device)

    def _flight(self, frame: int) -> Flight:
        """Solvers work cell by cell, so that a frame's own does to it what one of many frames would do."""
        if frame not in self.flights:
            self.flights[frame] = Flight(self._of(self.boundary.x, frame).to(self.model.device), copy.copy(self.fresh))
        return self.flights[frame]

    def _catch_up(self, frames: range, step: int) -> None:
        """Takes what the last rank sent back, pass after pass, until all ``frames`` are as they are before ``step``."""
        while step and any(frame not in self.frames or self.frames[frame][0] < step for frame in frames):
            one = next(self.sent_back)
            moved = self.queue.moved(one.block, one.step)
            found = self.line.take_back(self._of(self.boundary.x, moved))
            for frame, x in zip(moved, torch.split(found, 1, dim=2), strict=True):
                self.frames[frame] = one.step + 1, x

    def _step(self, v: Tensor, one: Pass) -> None:
        """On the rank that has the velocity, of all frames that were seen."""
        moved = self.queue.moved(one.block, one.step)
        v = self._joined(v, one.step)
        if v.shape[2] > len(moved):
            self.ahead[one.step] = v[:, :, len(moved) :].clone()
        for frame, own in zip(moved, torch.split(v[:, :, : len(moved)], 1, dim=2), strict=True):
            flight = self._flight(frame)
            flight.x = flight.solver.step(flight.x, own, one.step)
        x = torch.cat([self.flights[frame].x for frame in moved], dim=2)
        if one.step + 1 == self.queue.num_steps:
            self._of(self.done, moved).copy_(x)
        elif not self.line.is_first:
            self.line.send_back(x)

    def _joined(self, v: Tensor, step: int) -> Tensor:
        """From what the block before found of the frames that both saw to what this one did, evenly along them."""
        before = self.ahead.pop(step, None)
        if before is None:
            return v
        num = before.shape[2]
        share = (torch.arange(1, num + 1, device=v.device, dtype=v.dtype) / (num + 1)).view(-1, 1, 1)
        return torch.cat([torch.lerp(before, v[:, :, :num], share), v[:, :, num:]], dim=2)

    def _tidy(self, block: int, step: int) -> None:
        """What nobody needs any more. Going by the cleanest first, a block's keys are made anew before they are next used."""
        is_done = step + 1 == self.queue.num_steps
        if is_done:
            self.placed.pop(block, None)
            for frame in self.queue.moved(block, step):
                self.flights.pop(frame, None)
                self.frames.pop(frame, None)
        if is_done or (self.queue.order == "cleanest" and step + self.queue.gap < self.queue.num_steps):
            self.share.drop(block - 1)

    def _note_bytes(self) -> None:
        own = sum(one.num_bytes for one in self.flights.values()) + sum(x.nbytes for x in self.ahead.values())
        self.most_bytes = max(self.most_bytes, self.share.num_bytes + own)

    def _placed(self, block: int, frames: range) -> Placed:
        """Made when a block enters, and let go when it is done; made anew at every step where it lies elsewhere at each."""
        if block in self.placed:
            return self.placed[block]
        t, h, w = self._grid(frames)
        patch = self.model.geometry.patch
        tokens = t // patch[0], h // patch[1], w // patch[2]
        axes = tuple(frames), tuple(range(h)), tuple(range(w))
        placed = self.model.place(self.boundary.condition, axes, self.task.config.image_condition)
        placed = dataclasses.replace(placed, mixed=Later(frames.start, tokens) if frames.start else None)
        if not self.queue.is_slanted:
            self.placed[block] = placed
        return placed

    def _grid(self, frames: range) -> Grid:
        return len(frames), *self.stage.grid[1:]

    def _of(self, x: Tensor, frames: range | int) -> Tensor:
        start, stop = (frames, frames + 1) if isinstance(frames, int) else (frames.start, frames.stop)
        return x[:, :, start:stop]

    def _tflops(self) -> float:
        """Over all ranks, both branches of guidance."""
        branches = 1 if self.boundary.condition.negative is None else 2
        return branches * passes_tflops(self.model.geometry, self.stage.grid, self.queue, self.context)
