"""Accelerators: what makes the steps on a grid cheaper."""

from __future__ import annotations

import functools
from collections.abc import Callable

from orchestrator.arms import Arm
from orchestrator.geometry import ModelGeometry
from orchestrator.methods import find, read_settings
from stages.accelerators.base import Accelerator

__all__ = ["makers"]


def makers(arm: Arm, geometry: ModelGeometry) -> tuple[Callable[[], Accelerator], ...]:
    """What makes each of an arm's accelerators anew for a stage, called ``make(settings, geometry)``."""
    methods = [(find(use.name, "accelerator"), use.settings) for use in arm.accelerators]
    return tuple(functools.partial(method.make, read_settings(method, given), geometry) for method, given in methods)
