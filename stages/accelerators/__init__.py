"""Accelerators: what makes the steps on a grid cheaper."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from orchestrator.arms import Arm, MethodUse
from orchestrator.geometry import ModelGeometry
from orchestrator.methods import find, read_settings
from stages.accelerators.base import Accelerator

__all__ = ["made_by", "makers"]


def makers(arm: Arm, geometry: ModelGeometry) -> tuple[Callable[[], Accelerator], ...]:
    """What makes each of an arm's accelerators anew for a stage."""
    return made_by(arm.accelerators, geometry)


def made_by(uses: Iterable[MethodUse], geometry: ModelGeometry) -> tuple[Callable[[], Accelerator], ...]:
    """The methods' ``make(settings, geometry)``, still to be called."""
    methods = [(find(use.name, "accelerator"), use.settings) for use in uses]
    return tuple(functools.partial(method.make, read_settings(method, given), geometry) for method, given in methods)
