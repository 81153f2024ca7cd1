"""Computes everything and writes down how signals and outputs change from step to step: what a cache is fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from stages.accelerators.base import Now
from stages.accelerators.fitting import SIGNALS, Signal
from stages.accelerators.trunk import Trunk, relative_change


@dataclass(frozen=True)
class Change:
    """Of one branch, from the step before to ``step``."""

    branch: int
    step: int
    signals: dict[Signal, float]
    output: float
    """Relative change of the residual of all blocks."""
    ratio: float
    """Mean over tokens of the residual's norm as a share of what it was."""


@dataclass
class Probe:
    """Of one clip on one grid: it is to see every stage, of which there is to be one."""

    changes: list[Change] = field(default_factory=list)
    _kept: dict[int, tuple[dict[Signal, Tensor], Tensor]] = field(default_factory=dict)

    def forward(self, trunk: Trunk, now: Now) -> Tensor:
        seen = {name: trunk.signals[name]().clone() for name in SIGNALS}
        out = trunk.compute()
        residual = out - trunk.inputs[0]
        if now.branch in self._kept:
            signals, before = self._kept[now.branch]
            moved = {name: relative_change(trunk, seen[name], signals[name]) for name in SIGNALS}
            change = relative_change(trunk, residual, before)
            self.changes.append(Change(now.branch, now.step, moved, change, magnitude_ratio(trunk, residual, before)))
        self._kept[now.branch] = seen, residual
        return out


def magnitude_ratio(trunk: Trunk, now: Tensor, before: Tensor) -> float:
    """Mean over the tokens of all ranks of ``|now| / |before|``."""
    rows = now.float().norm(dim=-1) / before.float().norm(dim=-1).clamp_min(1e-12)
    total, num = trunk.total(rows.sum(), rows.new_full((), rows.numel()))
    return total / max(num, 1.0)
