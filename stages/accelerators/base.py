"""What an accelerator is: something that decides, forward by forward, how much of a transformer's blocks is computed.

A stage event (another grid, another schedule, another expert) makes everything kept useless. The engine makes accelerators anew
for every stage, so there is nothing to reset between stages; within one, another expert begins anew too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from orchestrator.types import Grid
from stages.accelerators.trunk import Trunk
from stages.sampling import NoiseLevel


@dataclass(frozen=True)
class StageEvent:
    """Where a clip is from now on."""

    grid: Grid
    """Latent cells."""
    steps: range
    """The solver steps whose forwards run there, from 0 for the clip's first; a transition's forward is the last."""
    num_steps: int
    """Of the whole clip."""
    stage: int
    """From 0."""
    crosses: bool
    """Whether the last of the steps is a transition, whose forward gives the clean estimate that everything after rests on."""

    @property
    def last(self) -> int:
        return self.steps[-1]

    @property
    def in_stages(self) -> bool:
        """Whether the clip has other stages: this one is short then, and what it reuses must not be old."""
        return self.crosses or self.stage > 0


@dataclass(frozen=True)
class Now:
    """One forward."""

    step: int
    level: NoiseLevel
    branch: int
    """0: with the prompt; 1: without."""
    event: StageEvent

    @property
    def since(self) -> int:
        """Steps since the stage began; the first has 0."""
        return self.step - self.event.steps[0]

    @property
    def must_compute(self) -> bool:
        """The first step of a stage, which has nothing to go by, its transition, and the clip's last step."""
        return self.since == 0 or self.step == self.event.last


class Accelerator(Protocol):
    """Used for one stage of one clip by one expert; keeps the state of each branch of guidance apart."""

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        """The image tokens ``[1, n, D]`` after all blocks, computed or reckoned from what is kept.

        Ranks that share the tokens must all decide alike: decide by ``trunk.total``, or by the step alone.
        """
        ...


@runtime_checkable
class Guided(Protocol):
    """An accelerator that may spare the whole branch without the prompt."""

    def negative(self, v: Tensor, now: Now, forward: Callable[[], Tensor]) -> Tensor:
        """The velocity without the prompt ``[1, C, T, H, W]``, given ``v`` with it: ``forward()``, or reckoned from ``v``."""
        ...


class Boost:
    """The accelerator of a stage, attached to a model; what the transformers call in place of their blocks."""

    def __init__(self, makers: Sequence[Callable[[], Accelerator]], event: StageEvent) -> None:
        """Raises ValueError for more than one."""
        if len(makers) > 1:
            raise ValueError(f"{len(makers)} caches were asked for: a stage has one at most")
        self.event = event
        self.branch = 0
        self._makers = tuple(makers)
        self._of: dict[Hashable, Accelerator] = {}
        self._told = event
        self._step = event.steps[0]
        self._level: NoiseLevel | None = None
        self._work: list[float] = []
        self._num_forwards = 0

    @property
    def is_on(self) -> bool:
        return bool(self._makers)

    @property
    def share(self) -> float:
        """Of the operations of all forwards of the stage so far: those that were executed. 1 without an accelerator."""
        return sum(self._work) / self._num_forwards if self._num_forwards else 1.0

    def let_go(self) -> None:
        """Of all that is kept: the stage is over, and what comes next needs the memory."""
        self._of = {}

    def at(self, step: int, level: NoiseLevel) -> None:
        """The next forwards are of this solver step."""
        self._step, self._level = step, level

    def __call__(self, trunk: Trunk) -> Tensor:
        """Raises RuntimeError for an answer of the wrong shape: a residual of another grid."""
        out = self._accelerator(trunk.owner).forward(trunk, self._now())
        self._count(sum(trunk.work))
        if out.shape != trunk.inputs[0].shape:
            raise RuntimeError(f"a cache answered {tuple(out.shape)} on a grid that needs {tuple(trunk.inputs[0].shape)}")
        return out

    def negative(self, v: Tensor, forward: Callable[[], Tensor]) -> Tensor:
        """The velocity without the prompt, right after ``v`` with it."""
        guided = next(iter(self._of.values()), None)
        if not isinstance(guided, Guided):
            return forward()
        before, self.branch = self._num_forwards, 1
        plain = guided.negative(v, self._now(), forward)
        if self._num_forwards == before:
            self._count(0.0)
        return plain

    def _now(self) -> Now:
        if self._level is None:
            raise RuntimeError("a forward came before its step was told")
        return Now(self._step, self._level, self.branch, self._told)

    def _count(self, work: float) -> None:
        self._work.append(work)
        self._num_forwards += 1

    def _accelerator(self, owner: Hashable) -> Accelerator:
        """A stage that changes its expert begins anew, at that step; what the other one left is let go."""
        if owner not in self._of:
            self._of = {owner: self._makers[0]()}
            self._told = dataclasses.replace(self.event, steps=range(self._step, self.event.steps.stop))
        return self._of[owner]
