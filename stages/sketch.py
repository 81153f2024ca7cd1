"""The cheap first phase of a clip: encode text and image, run stage 1 on its small grid, measure and decide."""

from __future__ import annotations

import dataclasses

from orchestrator.types import Decision
from stages.denoise import Boundary, OnStep, clock_s, ignore, run_stages, start
from stages.models.base import Model, Request
from stages.planners.task import Planner


def sketch(
    model: Model, planner: Planner, request: Request, seed: int, on_step: OnStep = ignore
) -> tuple[Decision, dict[str, float], Boundary]:
    """The decision, seconds and the boundary after stage 1. ``sketch_s`` holds ``stage1_s``, not ``text_s`` and ``compile_s``.

    A planner of one stage has nothing to sketch: the boundary is pure noise.
    """
    started_s = clock_s(model.device)
    condition = model.encode(request)
    encoded_s = clock_s(model.device)
    boundary = start(model, planner, condition, seed)
    timings_s: dict[str, float] = {}
    if boundary.decision is None:
        boundary, timings_s = run_stages(model, planner, boundary, 1, on_step)
    sketched_s = clock_s(model.device) - encoded_s - timings_s.get("compile_s", 0.0)
    timings_s = {"text_s": encoded_s - started_s, "sketch_s": sketched_s, **timings_s}
    if boundary.decision is None:
        raise RuntimeError("the sketch ended without a decision: the planner's first stage has no transition")
    # The boundary carries the choice, so that it alone is enough to go on from.
    return boundary.decision, timings_s, dataclasses.replace(boundary, x=boundary.x.cpu())
