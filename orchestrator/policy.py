"""In which order items are refined, and on how many ranks each."""

from __future__ import annotations

import math
from typing import Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from orchestrator.types import Action, Decision


class Policy(Protocol):
    """Pure: the same decisions give the same answers."""

    def priority(self, decision: Decision) -> float:
        """Items with the smallest number go first; among equals, the first to arrive."""
        ...

    def width(self, decision: Decision, max_width: int) -> int:
        """Ranks for one item, from 1 to ``max_width`` (the largest pod's ranks)."""
        ...


class Throughput(BaseModel):
    """Every item on the narrowest legal slice: no rank ever waits for another, so most items per hour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Literal["arrival", "longest"] = "arrival"
    """"arrival": the order of the spec, so that the arms of a prompt finish together. "longest": most work first, which
    shortens the tail of the last items."""
    degrees: tuple[int, ...] = Field((1,), min_length=1)
    """Legal sequence-parallel degrees of the model (geometry.legal_degrees)."""

    def priority(self, decision: Decision) -> float:
        return -token_steps(decision.action) if self.order == "longest" else 0.0

    def width(self, decision: Decision, max_width: int) -> int:
        """Raises ValueError when no legal degree fits any pod."""
        legal = [degree for degree in self.degrees if degree <= max_width]
        if not legal:
            raise ValueError(f"no legal degree of {list(self.degrees)} fits a pod of {max_width} ranks")
        return min(legal)


def token_steps(action: Action) -> float:
    """Work of an action in latent cells x solver steps; good for ordering, not for seconds."""
    return float(sum(math.prod(stage.grid) * stage.steps for stage in action.stages))
