"""How far a rank is with its clip, as it says when asked."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

AHEAD = 4
"""Steps that the host may be before its GPU: enough that the GPU never waits for it."""


@dataclass(frozen=True)
class Doing:
    """How far a rank is with a clip. ``stage`` counts from 1; 0: it is decoded. ``step`` is the last that was begun, if any."""

    item_key: str
    stage: int
    step: int | None = None

    def __str__(self) -> str:
        stage = f"stage {self.stage}" if self.stage else "decoding"
        return stage if self.step is None else f"{stage}, step {self.step}"


class Pace:
    """Keeps a rank from saying that it is at a step which its GPU will not reach for minutes."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._marks: deque[Any] = deque()

    def step(self) -> None:
        """Wait until the GPU has done all but the last few steps."""
        if self.device == "cpu":
            return
        import torch

        mark = torch.cuda.Event()  # type: ignore[no-untyped-call]
        mark.record()
        self._marks.append(mark)
        if len(self._marks) > AHEAD:
            self._marks.popleft().synchronize()
