"""MagCache (arXiv 2506.09045): how the residual's magnitude falls hardly depends on the prompt, so it is measured once."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from stages.accelerators import fitting
from stages.accelerators.base import Now
from stages.accelerators.fitting import Ratios
from stages.accelerators.pace import Pace
from stages.accelerators.trunk import Trunk

LONGEST = 6
"""Steps in a row that may be reused, of that preset."""


class MagCacheSettings(Settings):
    """The defaults are those of LightX2V's preset for HunyuanVideo-1.5."""

    threshold: float = Field(0.24, ge=0, allow_inf_nan=False)
    """All blocks are computed when the errors reckoned since they last were add up to this; 0: at every step."""
    max_skips: int | None = Field(None, ge=0)
    """Steps in a row that may be reused. None: 6, and 3 where the clip changes its grid on the way."""
    retention: float = Field(0.2, ge=0, le=1)
    """Share of the steps that is computed at the beginning; 2 steps of every stage where the clip changes its grid on the way."""
    ratios: Ratios | None = None
    """By branch of guidance, a ratio for each step of a clip; of other steps in time what they come to. None: of the fit."""
    fit: str | None = None
    """A file of ``dvg calibrate-cache``; None: the model's fit."""


@dataclass
class Kept:
    """Of one branch of guidance."""

    residual: Tensor
    """What all blocks added when they were last computed."""
    ratio: float = 1.0
    """Of the magnitude that it would have now."""
    error: float = 0.0
    in_a_row: int = 0


class MagCache:
    """Of one stage."""

    def __init__(self, settings: MagCacheSettings, geometry: ModelGeometry) -> None:
        if settings.ratios is None:
            raise ValueError("magcache: ratios are filled in when a spec is resolved")
        self.settings, self.ratios = settings, settings.ratios
        self._kept: dict[int, Kept] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        kept = self._kept.get(now.branch)
        if kept is not None and self._is_close(trunk, now, kept):
            kept.in_a_row += 1
            return trunk.inputs[0] + kept.residual
        out = trunk.compute()
        self._kept[now.branch] = Kept(out - trunk.inputs[0])
        return out

    def _is_close(self, trunk: Trunk, now: Now, kept: Kept) -> bool:
        longest = LONGEST if self.settings.max_skips is None and not now.event.in_stages else self.settings.max_skips
        pace = Pace(max(1, int(self.settings.retention * now.event.num_steps)), longest)
        if self.settings.threshold == 0 or not pace.allows(now, kept.in_a_row):
            return False
        rows = fitting.stretched(self.ratios, now.event.num_steps)
        kept.ratio *= rows[min(now.branch, len(rows) - 1)][now.step]
        kept.error += abs(1 - kept.ratio)
        return trunk.agreed(kept.error) < self.settings.threshold


def resolve(settings: MagCacheSettings, request: Request) -> MagCacheSettings:
    """Raises ValueError where the model has no fit, naming what serves instead."""
    if settings.ratios is not None:
        return settings
    geometry = request.geometry
    fit = fitting.find(request, settings.fit)
    if fit is None:
        raise ValueError(
            f"magcache: {geometry.name} has no fit, and magnitude ratios are published for no schedule of ours: measure one with "
            f"{fitting.command(geometry)}, or take adacache or taylorseer, which need none"
        )
    return settings.model_copy(update={"ratios": fit.ratios, "fit": None})


METHODS = {
    "magcache": Method(
        "magcache", "accelerator", "cache", "MagCache, arXiv 2506.09045",
        "whole forwards are left out while the magnitude that is known to be lost stays under a threshold", "release",
        make=MagCache,
        settings=MagCacheSettings,
        resolve=resolve,
        needs="magnitude ratios of the model on its schedule, by dvg calibrate-cache",
    )
}  # fmt: skip
