"""In which order items are refined, and on how many ranks each of their phases."""

from __future__ import annotations

import math
from typing import Literal, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from orchestrator.types import Action, Decision, Item, Phase

Rule = Literal["efficient", "throughput", "narrowest", "fastest", "deadline"]
Order = Literal["arrival", "longest"]


class Policy(Protocol):
    """Pure: the same items and decisions give the same answers."""

    def priority(self, item: Item, decision: Decision) -> float:
        """Items with the smallest number go first; among equals, the first to arrive."""
        ...

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        """How the stages that the sketch left are run, on 1 to ``max_width`` ranks (the largest pod's).

        The last phase stops after the last stage; neighbours differ in width. Raises ValueError when no legal width fits.
        """
        ...

    def decode_width(self, item: Item, max_width: int) -> int:
        """Ranks that decode the item's video, where a pod decodes."""
        ...


class SizingConfig(BaseModel):
    """How many ranks a clip is given, stage by stage."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule = "efficient"
    """efficient: the widest slice whose efficiency is at least ``min_efficiency``. throughput: the narrowest, so most items per
    hour. narrowest: one rank unless memory asks for more. fastest: the least seconds. deadline: the fewest GPU-seconds that
    finish a clip's stages within ``deadline_s``."""
    min_efficiency: float = Field(0.85, gt=0, le=1)
    """Seconds on one rank over (ranks x seconds on them)."""
    deadline_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    """For all stages after the sketch, under the rule of that name."""
    min_phase_s: float = Field(0.5, ge=0, allow_inf_nan=False)
    """A stage shorter than this joins its neighbour's width: handing a clip over costs tens of milliseconds."""
    order: Order = "arrival"
    """arrival: the order of the spec, so that the arms of a prompt finish together. longest: most work first, which shortens the
    tail of the last items."""

    @model_validator(mode="after")
    def _deadline_is_whole(self) -> Self:
        if self.rule == "deadline" and self.deadline_s is None:
            raise ValueError("rule deadline needs deadline_s, the seconds that a clip's stages may take")
        if self.rule != "deadline" and self.deadline_s is not None:
            raise ValueError(
                f"deadline_s is {self.deadline_s:g}, which rule {self.rule} does not read; set rule: deadline or drop it"
            )
        return self


class Throughput(BaseModel):
    """Every item on the narrowest legal slice: no rank ever waits for another, so most items per hour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order = "arrival"
    """As :attr:`SizingConfig.order`."""
    degrees: tuple[int, ...] = Field((1,), min_length=1)
    """Legal widths of the model's slices."""

    def priority(self, item: Item, decision: Decision) -> float:
        return order_key(self.order, decision)

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        width = min(_fitting(self.degrees, max_width))
        return (Phase(len(decision.action.stages), width, f"{ranks(width)}, the narrowest"),)

    def decode_width(self, item: Item, max_width: int) -> int:
        return 1


def _fitting(widths: tuple[int, ...], max_width: int) -> list[int]:
    fitting = [width for width in widths if width <= max_width]
    if not fitting:
        raise ValueError(f"no legal degree of {list(widths)} fits a pod of {max_width} ranks")
    return fitting


def ranks(width: int) -> str:
    return "1 rank" if width == 1 else f"{width} ranks"


def order_key(order: Order, decision: Decision) -> float:
    """Priority under an order: see :meth:`Policy.priority`."""
    return -token_steps(decision.action) if order == "longest" else 0.0


def token_steps(action: Action) -> float:
    """Work of an action in latent cells x solver steps; good for ordering, not for seconds."""
    return float(sum(math.prod(stage.grid) * stage.steps for stage in action.stages))
