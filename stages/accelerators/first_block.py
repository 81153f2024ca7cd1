"""The first blocks decide about the others: FirstBlockCache (diffusers) and DBCache (cache-dit), rules of one form.

The first blocks are computed at every step. While what they add is close to what they added when all blocks were last computed,
what the blocks after them added then is added again.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field
from torch import Tensor

from orchestrator.geometry import ModelGeometry
from orchestrator.methods import Method, Request, Settings
from stages.accelerators.base import Now
from stages.accelerators.pace import Pace
from stages.accelerators.trunk import State, Trunk, relative_change

PUBLISHED_FN = 8


class FirstBlockSettings(Settings):
    """The default is diffusers'."""

    threshold: float = Field(0.05, ge=0, allow_inf_nan=False)
    """The other blocks are computed when what block 1 adds has changed by more than this share; 0: at every step."""

    @property
    def rule(self) -> Rule:
        return Rule(self.threshold, 1, 0, Pace())


class DbCacheSettings(Settings):
    """The defaults are cache-dit's, of version 1.5."""

    threshold: float = Field(0.08, ge=0, allow_inf_nan=False)
    """The blocks between are computed when what the first ones add has changed by more than this share; 0: at every step."""
    fn_blocks: int | None = Field(None, ge=1)
    """First blocks, computed at every step. None: 8, or a seventh of all where that is less."""
    bn_blocks: int = Field(0, ge=0)
    """Last blocks, computed at every step."""
    warmup: int = Field(8, ge=1)
    """Steps at the beginning that are computed; in every stage, but 2 at most, where the clip changes its grid on the way."""
    max_cached: int | None = Field(None, ge=0)
    """Steps of a stage that may be reused, at most; None: any number."""
    max_continuous: int | None = Field(None, ge=0)
    """In a row; None: any number, and 3 where the clip changes its grid on the way."""

    @property
    def rule(self) -> Rule:
        first = PUBLISHED_FN if self.fn_blocks is None else self.fn_blocks
        return Rule(self.threshold, first, self.bn_blocks, Pace(self.warmup, self.max_continuous), self.max_cached)


@dataclass(frozen=True)
class Rule:
    """When what the blocks between the first and the last ones added is added again."""

    threshold: float
    first: int
    last: int
    pace: Pace
    max_cached: int | None = None

    def may_reuse(self, now: Now, num_cached: int, in_a_row: int) -> bool:
        """Before anything is measured."""
        return self.pace.allows(now, in_a_row) and (self.max_cached is None or num_cached < self.max_cached)


@dataclass
class Kept:
    """Of one branch of guidance."""

    shown: Tensor
    """What the first blocks added to the image tokens when all were last computed."""
    deltas: State
    """What those between added then."""
    num_cached: int = 0
    in_a_row: int = 0


class FirstBlock:
    """Of one stage."""

    def __init__(self, settings: FirstBlockSettings | DbCacheSettings, geometry: ModelGeometry) -> None:
        self.rule = settings.rule
        self._kept: dict[int, Kept] = {}

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        if self.rule.threshold == 0 or now.step == now.event.last:
            return trunk.compute()
        stop = trunk.num_blocks - self.rule.last
        start = min(self.rule.first, stop - 1)
        before = trunk.run(trunk.inputs, 0, start)
        shown, kept = trunk.image(before) - trunk.inputs[0], self._kept.get(now.branch)
        if kept is not None and self._is_close(trunk, now, kept, shown):
            after = tuple(was + delta for was, delta in zip(before, kept.deltas, strict=True))
            kept.num_cached, kept.in_a_row = kept.num_cached + 1, kept.in_a_row + 1
        else:
            after = trunk.run(before, start, stop)
            deltas = tuple(x - was for x, was in zip(after, before, strict=True))
            self._kept[now.branch] = Kept(shown, deltas, 0 if kept is None else kept.num_cached)
        return trunk.image(trunk.run(after, stop, trunk.num_blocks))

    def _is_close(self, trunk: Trunk, now: Now, kept: Kept, shown: Tensor) -> bool:
        """The host waits for the device only where the step alone does not decide."""
        if not self.rule.may_reuse(now, kept.num_cached, kept.in_a_row):
            return False
        return relative_change(trunk, shown, kept.shown) <= self.rule.threshold


def _some_between(settings: FirstBlockSettings | DbCacheSettings, request: Request) -> list[str]:
    rule, num = settings.rule, request.geometry.num_layers
    if rule.first + rule.last < num:
        return []
    return [
        f"the first {rule.first} and the last {rule.last} blocks are computed at every step, and {request.geometry.name} has "
        f"{num} in all: fewer of them leave something to reuse"
    ]


def _resolve_dbcache(settings: DbCacheSettings, request: Request) -> DbCacheSettings:
    if settings.fn_blocks is not None:
        return settings
    return settings.model_copy(update={"fn_blocks": max(1, min(PUBLISHED_FN, request.geometry.num_layers // 7))})


METHODS = {
    "first-block": Method(
        "first-block", "accelerator", "cache", "FirstBlockCache of diffusers and ParaAttention",
        "all blocks but the first are left out while that one adds about the same", "release",
        make=FirstBlock,
        settings=FirstBlockSettings,
        mistakes=_some_between,
        whole_forwards=False,
    ),
    "dbcache": Method(
        "dbcache", "accelerator", "cache", "DBCache of cache-dit 1.5",
        "the blocks between the first few and the last few are left out while the first ones add about the same", "release",
        make=FirstBlock,
        settings=DbCacheSettings,
        resolve=_resolve_dbcache,
        mistakes=_some_between,
        whole_forwards=False,
    ),
}  # fmt: skip
