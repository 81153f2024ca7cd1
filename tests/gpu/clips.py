"""What tests on a GPU share: clips of the embedded model, and calls that must not wait for the device."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import Request as Asked
from orchestrator.methods import find, read_settings
from orchestrator.types import VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Model, Request, load
from stages.planners import make_planner

NAME = "wan-mini"
GUIDANCE = 2.0
SEED = 3


@dataclass(frozen=True)
class Clip:
    """What is made, by which planner and with which method of acceleration."""

    shape: VideoShape
    num_steps: int
    method: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    planner: str = "full"
    planned: Mapping[str, Any] = field(default_factory=dict)
    """The planner's settings."""

    def run(self, model: Model) -> Boundary:
        """Guided; the end of it."""
        budget = 0.5 if self.planner == "dvg" else None
        given = model.geometry, self.shape, self.num_steps, budget, DvgConfig()
        plan = make_planner(self.planner, *given, settings=self.planned, accelerators=self.makers(model))
        boundary = start(model, plan, model.encode(Request("a red circle moves left", self.shape, GUIDANCE, "blue square")), SEED)
        while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
            boundary, _ = run_stages(model, plan, boundary, boundary.stage + 1)
        return boundary

    def makers(self, model: Model) -> tuple[Callable[[], Any], ...]:
        if self.method is None:
            return ()
        method = find(self.method, "accelerator")
        asked = Asked(model.geometry, self.shape, self.num_steps, GUIDANCE, self.planner, DvgConfig())
        settings: Any = method.resolve(read_settings(method, self.settings), asked)
        return (functools.partial(method.make, settings, model.geometry),)


def eager_and_compiled() -> dict[bool, Model]:
    """The embedded model on this GPU, by whether its blocks are compiled."""
    return {is_compiled: load(NAME, None, "cuda", compile_blocks=is_compiled) for is_compiled in (False, True)}


def distance(found: Tensor, expected: Tensor) -> float:
    """Relative."""
    return float((found.cpu() - expected.cpu()).norm() / expected.cpu().norm())


def unwaiting(call: Callable[..., Any]) -> Callable[..., Any]:
    """``call``, which raises RuntimeError where the host would wait for the GPU within it."""

    @functools.wraps(call)
    def watched(*args: Any, **more: Any) -> Any:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            return call(*args, **more)
        finally:
            torch.cuda.set_sync_debug_mode(before)

    return watched
