"""TaylorSeer (arXiv 2503.06923): steps in between are forecast from finite differences of those that were computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Settings
from stages.accelerators.base import Now, StageEvent
from stages.accelerators.pace import FORECAST_IN_STAGES, spacing
from stages.accelerators.trunk import Trunk

PUBLISHED_INTERVAL = 5


class TaylorSeerSettings(Settings):
    """By default interval, order and first steps are the release's for HunyuanVideo. What is forecast is not: the release takes
    every block's attention and feed-forward apart, and ``lite`` is after the switch of that name in diffusers."""

    interval: int | None = Field(None, ge=1)
    """Every so many steps all blocks are computed; 1: at each. None: 5, and 3 where the clip changes its grid on the way."""
    max_order: int = Field(1, ge=0, le=4)
    """Of the differences; 0 reuses what was computed last. Order m needs m + 1 computed steps of the stage."""
    first_enhance: int = Field(1, ge=1)
    """So many steps at the beginning of a stage are computed."""
    compute_last: bool = False
    """Compute the clip's last step too, which the release forecasts. A stage's last step before another is always computed."""
    mode: Literal["lite", "blocks"] = "lite"
    """What is forecast. ``lite``: what all blocks add up to, two tensors of the tokens' size. ``blocks``: every block's
    attention apart, multiplied by the gates of the step at hand, and the sum of all else: two for each block more."""


class Differences:
    """A tensor's finite differences over the steps it was computed at, on their real distances."""

    def __init__(self, max_order: int) -> None:
        self.max_order = max_order
        self.step = -1
        self._rows: tuple[Tensor, ...] = ()

    def update(self, value: Tensor, step: int) -> None:
        """D_0 is the value; D_k+1 = (D_k here - D_k at the computed step before) / distance."""
        rows = [value]
        for before in self._rows[: self.max_order]:
            rows.append((rows[-1] - before) / (step - self.step))
        self._rows, self.step = tuple(rows), step

    def at(self, step: int) -> Tensor:
        """sum_k D_k d^k / k!, a new tensor of float32 or wider. Raises IndexError before the first update."""
        distance = step - self.step
        total = wide(self._rows[0], copy=True)
        for order, row in enumerate(self._rows[1:], start=1):
            total.add_(row, alpha=distance**order / math.factorial(order))
        return total


def wide(x: Tensor, copy: bool = False) -> Tensor:
    """In float32 at least: a sum over all blocks in bfloat16 would round at each of them."""
    return x.to(torch.promote_types(x.dtype, torch.float32), copy=copy)


@dataclass
class History:
    """Of one branch of guidance."""

    whole: Differences
    """Of what all blocks add, without what ``attention`` holds of it."""
    attention: list[Differences] = field(default_factory=list)
    """Of every block's, before its gate, the image's rows: no other are needed where no block is computed."""


class TaylorSeer:
    """Of one stage."""

    def __init__(self, settings: TaylorSeerSettings, geometry: ModelGeometry) -> None:
        self.settings = settings
        self._histories: dict[int, History] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        history = self._histories.get(now.branch)
        if history is not None and not self._must_compute(now, history.whole.step):
            return _forecast(trunk, history, now.step)
        if history is None:
            history = self._histories[now.branch] = History(Differences(self.settings.max_order))
        if self.settings.mode == "lite" or self.settings.interval == 1:
            out = trunk.compute()
            history.whole.update(out - trunk.inputs[0], now.step)
            return out
        return self._compute_blocks(trunk, history, now.step)

    def _must_compute(self, now: Now, computed: int) -> bool:
        is_last = now.step == now.event.last and (now.event.crosses or self.settings.compute_last)
        return now.since < self.settings.first_enhance or is_last or now.step - computed >= interval(self.settings, now.event)

    def _compute_blocks(self, trunk: Trunk, history: History, step: int) -> Tensor:
        if not history.attention:
            history.attention = [Differences(self.settings.max_order) for _ in range(trunk.num_blocks)]
        state = trunk.inputs
        added = -wide(state[0])
        for index, attention in enumerate(history.attention):
            found = trunk.run_attend(index, state)
            state = trunk.run_finish(index, state, found)
            attention.update(found[0], step)
            added = added - wide(trunk.gate(index)) * wide(found[0])
        out = trunk.image(state)
        history.whole.update((out + added).to(out.dtype), step)
        return out


def interval(settings: TaylorSeerSettings, event: StageEvent) -> int:
    return spacing(settings.interval, PUBLISHED_INTERVAL, event, FORECAST_IN_STAGES)


def _forecast(trunk: Trunk, history: History, step: int) -> Tensor:
    h = trunk.inputs[0]
    total = h + history.whole.at(step)
    for index, attention in enumerate(history.attention):
        total = total + wide(trunk.gate(index)) * attention.at(step)
    return total.to(h.dtype)


def _kept_tensors(settings: TaylorSeerSettings, geometry: ModelGeometry) -> float:
    """Differences of what is forecast: one sum, or also every block's attention."""
    return (settings.max_order + 1) * (1 if settings.mode == "lite" else 1 + geometry.num_layers)


METHODS = {
    "taylorseer": Method(
        "taylorseer", "accelerator", "cache", "TaylorSeer, arXiv 2503.06923",
        "every few steps computed, those between forecast from finite differences", "release",
        make=TaylorSeer,
        settings=TaylorSeerSettings,
        needs="mode `blocks` keeps (max_order + 1) x (blocks + 1) tensors of the tokens' size for each branch of guidance",
        whole_forwards=lambda settings: settings.mode == "lite",
        kept_tensors=_kept_tensors,
    )
}  # fmt: skip
