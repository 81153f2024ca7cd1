"""In which order items are refined, and on how many ranks each of their phases."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from orchestrator import sizing
from orchestrator.cost import CostModel
from orchestrator.degrees import Limits, legal_widths, powers
from orchestrator.geometry import model
from orchestrator.schedules import forwards_per_stage
from orchestrator.sizing import Choice, Order, SizingConfig, Voice
from orchestrator.types import Action, Decision, Item, Phase, Stage

SPLIT_DECODE = 0.9
"""Efficiency that a decode is taken to keep with each doubling of its ranks, where nobody measured it."""


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


class Throughput(BaseModel):
    """Every item on the narrowest legal slice: no rank ever waits for another, so most items per hour."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    order: Order = "arrival"
    """As :attr:`orchestrator.sizing.SizingConfig.order`."""
    degrees: tuple[int, ...] = Field((1,), min_length=1)
    """Legal widths of the model's slices."""

    def priority(self, item: Item, decision: Decision) -> float:
        return _priority(self.order, decision)

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        fitting = [width for width in self.degrees if width <= max_width]
        if not fitting:
            raise ValueError(f"no legal degree of {list(self.degrees)} fits a pod of {max_width} ranks")
        width = min(fitting)
        return (Phase(len(decision.action.stages), width, f"{width} rank{'s' if width > 1 else ''}, the narrowest"),)

    def decode_width(self, item: Item, max_width: int) -> int:
        return 1


class ArmSizing(BaseModel):
    """What the widths of one arm's clips rest on, resolved once."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    cost: CostModel
    """Of the pod's backend, with every degree that a slice of the pod can have."""
    limits: Limits
    least_width: int = Field(1, ge=1)
    """Ranks over which the weights are sharded, as one GPU cannot hold them."""
    actions: tuple[Action, ...] = ()
    """What its sketches may come to; empty: nobody knows before they do."""
    together: str = ""
    """Why its clips stay on one rank, whatever more would gain; empty if they need not."""


class Sizing(BaseModel):
    """Widths stage by stage, by the rule of the config, from what the stages are predicted to cost."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: SizingConfig = SizingConfig()
    arms: Mapping[str, ArmSizing]

    def priority(self, item: Item, decision: Decision) -> float:
        return _priority(self.config.order, decision)

    def phases(self, item: Item, decision: Decision, max_width: int) -> tuple[Phase, ...]:
        stages = stage_choices(self.arms[item.arm], decision.action, max_width)
        return self.sized(self.arms[item.arm], stages, decision.action.num_sketched)

    def sized(self, arm: ArmSizing, stages: tuple[tuple[Choice, ...], ...], num_before: int) -> tuple[Phase, ...]:
        clip = self.clip(stages)
        remark = f"; {arm.together}" if arm.together else ""
        voice = Voice("GPU" if arm.limits.on_gpu else "rank", arm.cost.num_branches, remark)
        return sizing.phases(clip, stages, num_before, sizing.with_remark(voice, self.config, clip))

    def clip(self, stages: tuple[tuple[Choice, ...], ...]) -> tuple[Choice, ...]:
        """What is chosen for each stage."""
        if self.config.rule == "fixed":  # as it was asked, faster or not
            return tuple(sizing.one(self.config, options) for options in stages)
        options = [sizing.faster(of_stage) for of_stage in stages]
        return sizing.join_short(sizing.choose(self.config, options), options, self.config.min_phase_s)

    def stages_left(self, arm: str, action: Action, first: int, max_width: int) -> tuple[tuple[Choice, ...], ...]:
        """Of each stage after the first ``first`` the widths that gain on all narrower ones. Raises ValueError without any."""
        stages = stage_choices(self.arms[arm], action, max_width)
        return tuple(sizing.faster(options) for options in stages[first - action.num_sketched :])

    def decode_width(self, item: Item, max_width: int) -> int:
        options = sizing.faster(decode_choices(self.arms[item.arm].cost, max_width))
        return sizing.one(self.config, options).width if options else 1


def stage_choices(arm: ArmSizing, action: Action, max_width: int) -> tuple[tuple[Choice, ...], ...]:
    """Every legal width of each stage after the sketch. Raises ValueError when a stage has none."""
    geometry, first = model(arm.model), action.num_sketched
    forwards = forwards_per_stage([stage.steps for stage in action.stages])
    found = []
    for stage, num in list(zip(action.stages, forwards, strict=True))[first:]:
        tokens, most = geometry.num_tokens(stage.seen), min(max_width, _most_busy(arm, stage))
        legal = legal_widths(geometry, arm.limits, arm.cost.num_branches, [tokens])
        widths = [width for width in legal if arm.least_width <= width <= most]
        if not widths:
            least = f"; its weights take {arm.least_width} ranks" if arm.least_width > 1 else ""
            raise ValueError(f"{arm.model}: {tokens:,} tokens can run on no slice of a pod of {max_width}{least}")
        extra_s = arm.cost.transition_token_s * tokens if first else 0.0
        found.append(sizing.choices(arm.cost, widths, tokens, num * stage.passes, extra_s, stage.work))
    return tuple(found)


def _most_busy(arm: ArmSizing, stage: Stage) -> int:
    """Ranks that a stage keeps busy: where blocks go from rank to rank, each needs layers of its own, and a block."""
    return arm.limits.max_width if stage.in_flight is None else min(model(arm.model).num_layers, stage.in_flight)


def decode_choices(cost: CostModel, max_width: int) -> tuple[Choice, ...]:
    """A decode on each width; none when not even one GPU's seconds are known."""
    if cost.decode_s is None or max_width < 1:
        return ()
    measured = dict(cost.split_decode_s)
    found = []
    for width in powers(max_width):
        share = SPLIT_DECODE ** math.log2(width)
        seconds = cost.decode_s if width == 1 else measured.get(width, cost.decode_s / (width * share))
        share = cost.decode_s / (width * seconds) if seconds else 1.0
        found.append(Choice(width, 0, seconds, seconds, share, width > 1 and width not in measured))
    return tuple(found)


def _priority(order: Order, decision: Decision) -> float:
    return -token_steps(decision.action) if order == "longest" else 0.0


def token_steps(action: Action) -> float:
    """Work of an action in latent cells x solver steps; good for ordering, not for seconds."""
    return float(sum(math.prod(stage.grid) * stage.steps for stage in action.stages))
