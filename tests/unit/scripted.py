"""Trunks whose blocks add what a script says, and a drive through a stage that notes what an accelerator had computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stages.accelerators.base import Now, StageEvent
from stages.accelerators.trunk import State, Trunk
from stages.sampling import NoiseLevel

PATTERN = torch.tensor([[[1.0, -2.0], [0.5, 3.0], [-1.5, 0.25]]], dtype=torch.float64)
"""Image tokens ``[1, 3, 2]``; a script multiplies it."""
TEXT = torch.ones(1, 2, 2, dtype=torch.float64)

Adds = Callable[[int, int], float]
"""What a block adds at a step: (block, step) to a multiple of the pattern."""


def nothing(block: int, step: int) -> float:
    return 0.0


@dataclass
class Script:
    """Blocks that add ``gate * attention + rest``, to the image times the pattern, to the text times ones."""

    attention: Adds
    rest: Adds = nothing
    gate: Adds = lambda block, step: 1.0
    num_blocks: int = 4
    attention_share: float = 0.25
    signal: Callable[[int], float] | None = None
    """Of a step: every signal is the pattern times it."""
    image_of_middle: Callable[[int], Tensor] | None = None
    """Of a step: what attention of every block finds for the image, instead of the pattern times ``attention``."""
    tokens_per_frame: int = 1
    calls: list[str] = field(default_factory=list)
    """Of one forward: ``all``, blocks as ``0``, halves as ``a0`` and ``f0``."""
    _replayed: Tensor = field(default_factory=PATTERN.clone)
    """What a whole forward answers with, and overwrites the next time, as a recording on a GPU does."""

    def trunk(self, step: int, h: float = 0.0) -> Trunk:
        inputs = (PATTERN * h, TEXT * h)

        def attend(index: int, state: State) -> State:
            self.calls.append(f"a{index}")
            if self.image_of_middle is not None:
                return self.image_of_middle(step), TEXT
            return PATTERN * self.attention(index, step), TEXT * self.attention(index, step)

        def finish(index: int, state: State, found: State) -> State:
            self.calls.append(f"f{index}")
            return self._finished(index, step, state, found)

        def block(index: int, state: State) -> State:
            self.calls.append(str(index))
            found = PATTERN * self.attention(index, step), TEXT * self.attention(index, step)
            return self._finished(index, step, state, found)

        def whole() -> Tensor:
            self.calls.append("all")
            return self._replayed.copy_(self.answer(step, h))

        seen, names = self.signal or (lambda step: 1.0), ("input", "time", "modulation")
        signals = {name: lambda: PATTERN * seen(step) for name in names}
        return Trunk(
            inputs, self.num_blocks, whole, block, attend, finish, lambda state: state[0], signals, self.attention_share,
            "script", tokens_per_frame=self.tokens_per_frame, gate=lambda index: torch.tensor(self.gate(index, step)),
        )  # fmt: skip

    def answer(self, step: int, h: float = 0.0) -> Tensor:
        """What all blocks come to."""
        return PATTERN * (h + sum(self._adds(index, step) for index in range(self.num_blocks)))

    def _adds(self, index: int, step: int) -> float:
        return self.gate(index, step) * self.attention(index, step) + self.rest(index, step)

    def _finished(self, index: int, step: int, state: State, found: State) -> State:
        parts = zip(state, found, (PATTERN, TEXT), strict=True)
        return tuple(x + self.gate(index, step) * more + self.rest(index, step) * kind for x, more, kind in parts)


@dataclass(frozen=True)
class Forward:
    """One forward of a drive."""

    step: int
    branch: int
    calls: tuple[str, ...]
    out: Tensor
    work: float

    @property
    def is_whole(self) -> bool:
        return self.work > 0.999


def event(num_steps: int, stages: Sequence[int] = (), stage: int = 0) -> StageEvent:
    """Of a clip in one stage, or in ``stages`` of so many forwards."""
    lengths = stages or (num_steps,)
    first = sum(lengths[:stage])
    return StageEvent((3, 1, 1), range(first, first + lengths[stage]), num_steps, stage, stage < len(lengths) - 1)


def drive(
    accelerator: Any,
    scripts: Script | Sequence[Script],
    where: StageEvent,
    timesteps: Callable[[int], float] | None = None,
    h: Callable[[int], float] = lambda step: 0.0,
) -> list[Forward]:
    """All forwards of a stage, of a branch for each script. ``timesteps`` falls from 1000 to 0 over the clip by itself."""
    time = timesteps or (lambda step: 1000 * (1 - step / where.num_steps))
    forwards = []
    for step in where.steps:
        level = NoiseLevel(time(step) / 1000, time(step), time(step + 1))
        for branch, script in enumerate([scripts] if isinstance(scripts, Script) else scripts):
            script.calls.clear()
            trunk = script.trunk(step, h(step))
            out = accelerator.forward(trunk, Now(step, level, branch, where))
            forwards.append(Forward(step, branch, tuple(script.calls), out.clone(), sum(trunk.work)))
    return forwards


def computed(forwards: Sequence[Forward]) -> list[int]:
    """Steps at which everything was."""
    return [forward.step for forward in forwards if forward.is_whole]
