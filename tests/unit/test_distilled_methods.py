"""Distillation is a schedule: a model of one branch that is told where each step ends runs under every planner and cache."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from orchestrator.dvg_config import DvgConfig
from orchestrator.methods import ACCELERATORS, BUDGETED, PLANNERS, Kind, Request, find, read_settings
from orchestrator.types import VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.models import base
from stages.planners import make_planner
from stages.sampling import NoiseLevel
from tests.checkpoints import checkpoint, first_frame

NAME = "hunyuanvideo-1.5-i2v-step-distilled"
"""Guidance and steps distilled: MeanFlow, 12 steps."""
NUM_STEPS = 12
SHAPE = VideoShape(17, 96, 160, 24)


@functools.cache
def model() -> Any:
    return base.load(NAME, str(checkpoint(NAME)))


@pytest.fixture(scope="module")
def condition(tmp_path_factory: pytest.TempPathFactory) -> base.Condition:
    image = first_frame(tmp_path_factory.mktemp("image") / "first.png")
    found: base.Condition = model().encode(base.Request("a cat", SHAPE, 1.0, image=str(image)))
    assert found.negative is None
    return found


@pytest.fixture(scope="module")
def whole(condition: base.Condition) -> dict[str, Boundary]:
    """Without a cache."""
    return {planner: found for planner in ("full", "dvg") if (found := run(condition, planner, None, []))}


def settings_of(kind: Kind, name: str, planner: str) -> Any:
    """Resolved for the model; None where it is refused."""
    method = find(name, kind)
    asked = Request(model().geometry, SHAPE, NUM_STEPS, 1.0, planner, DvgConfig())
    try:
        settings = method.resolve(read_settings(method, {}), asked)
    except ValueError:
        return None
    return None if method.mistakes(settings, asked) else settings


def run(condition: base.Condition, planner: str, accelerator: str | None, told: list[NoiseLevel]) -> Boundary | None:
    settings, makers = settings_of("planner", planner, planner), ()
    if accelerator is not None:
        chosen = settings_of("accelerator", accelerator, planner)
        if chosen is None:
            return None
        makers = (functools.partial(find(accelerator, "accelerator").make, chosen, model().geometry),)
    if settings is None:
        return None
    given = settings.model_dump(mode="json")
    budget = 0.5 if planner in BUDGETED else None
    plan = make_planner(planner, model().geometry, SHAPE, NUM_STEPS, budget, DvgConfig(), settings=given, accelerators=makers)
    transformer = model().parts.transformer
    time, transformer.time = transformer.time, lambda level: (told.append(level), time(level))[1]
    try:
        boundary = start(model(), plan, condition, 3)
        while boundary.decision is None or boundary.stage < len(boundary.decision.action.stages):
            boundary, _ = run_stages(model(), plan, boundary, boundary.stage + 1)
    finally:
        del transformer.time
    return boundary


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_distilled_model_runs_under_every_planner_and_is_told_where_each_step_ends(
    planner: str, condition: base.Condition
) -> None:
    told: list[NoiseLevel] = []
    boundary = run(condition, planner, None, told)
    if boundary is None:
        pytest.skip("refused for this model")
    assert boundary.x.isfinite().all()
    assert boundary.decision is not None
    assert all(0 <= level.timestep_next < level.timestep for level in told)
    assert told[-1].timestep_next == 0
    assert len(told) == boundary.step, "one branch"


@pytest.mark.parametrize("accelerator", ACCELERATORS)
def test_a_distilled_model_runs_with_every_accelerator_whole_and_in_stages(
    accelerator: str, condition: base.Condition, whole: dict[str, Boundary]
) -> None:
    for planner in ("full", "dvg"):
        boundary, plain = run(condition, planner, accelerator, []), whole[planner]
        if boundary is None:
            pytest.skip("refused for this model")
        assert boundary.x.isfinite().all()
        if find(accelerator, "accelerator").lever == "cache":  # blocks of so few tokens are half empty, and count whole
            assert boundary.past.tflops <= plain.past.tflops
        assert (boundary.x - plain.x).abs().max() < plain.x.std()
