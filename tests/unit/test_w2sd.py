"""W2SD: which steps are reflected, where that leads, what it costs, and that nothing kept elsewhere notices."""

from __future__ import annotations

import functools
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.methods import Request, find, read_settings
from orchestrator.types import Stage, VideoShape
from stages.accelerators import made_by
from stages.accelerators.base import Now
from stages.accelerators.trunk import Trunk
from stages.accelerators.w2sd import METHODS, W2sdSettings
from stages.denoise import Boundary, run_stages, start
from stages.models.base import Condition, Placed
from stages.models.base import Request as Asked
from stages.planners import make_planner
from stages.sampling import NoiseLevel, UniPCSolver, sigmas
from tests.spies import CONDITION, STAGES, SpyModel, SpyPlanner
from tests.unit.planner_runs import wan_mini

SHAPE = VideoShape(9, 64, 64)


class Spy(SpyModel):
    """It also writes down under which guidance; a velocity is linear in it, as guided ones are."""

    def __init__(self) -> None:
        super().__init__()
        self.guidance: list[float] = []

    def denoise(self, x: Tensor, level: NoiseLevel, placed: Placed) -> Tensor:
        self.guidance.append(placed.condition.guidance)
        return super().denoise(x, level, placed) * placed.condition.guidance


def run(model: Any, planner: SpyPlanner, condition: Condition = CONDITION, **settings: Any) -> Boundary:
    make = functools.partial(METHODS["w2sd"].make, W2sdSettings(**settings), planner.task.geometry)
    planner.task = planner.task.__class__(**{**vars(planner.task), "accelerators": (make,)})
    return run_stages(model, planner, start(model, planner, condition, 5), len(planner.action.stages))[0]


def test_a_step_is_taken_taken_back_under_less_guidance_and_taken_again() -> None:
    stage = Stage((3, 4, 4), 4, 3.0)
    model, planner = Spy(), SpyPlanner((stage,))
    x = start(model, planner, CONDITION, 5).x
    found = run(model, planner, steps=1, weak_guidance=0.5, strength=0.75).x
    levels = [float(sigma) for sigma in sigmas(4, 3.0)]

    def v(x: Tensor, level: float, guidance: float) -> Tensor:
        return torch.cos(x + level) * guidance

    there = x + (levels[1] - levels[0]) * v(x, levels[0], 2.0)
    back = there + (levels[0] - levels[1]) * v(there, levels[1], 0.5)
    x = x + 0.75 * (back - x)
    for here, onward in pairwise(levels):
        x = x + (onward - here) * v(x, here, 2.0)
    torch.testing.assert_close(found, x)
    assert model.guidance == [2.0, 0.5, 2.0, 2.0, 2.0, 2.0]


def test_what_is_reflected_lies_in_the_first_stage_before_its_transition() -> None:
    model = Spy()
    run(model, SpyPlanner(), steps=100)
    weak = [index for index, guidance in enumerate(model.guidance) if guidance == 1.0]
    first = STAGES[0].steps
    assert weak == [3 * step + 1 for step in range(first)], "every step of the first stage"
    assert model.grids.count(STAGES[0].grid) == 3 * first + 1, "one forward of its transition"
    assert [model.grids.count(stage.grid) for stage in STAGES[1:]] == [7, 6, 8]


def test_a_clip_of_one_stage_is_reflected_up_to_its_last_step_and_no_further() -> None:
    model = Spy()
    run(model, SpyPlanner((Stage((3, 4, 4), 5, 3.0),)), steps=100)
    assert len(model.guidance) == 3 * 4 + 1


@pytest.mark.parametrize("settings", [{"steps": 0}, {"strength": 0.0}])
def test_at_its_neutral_settings_it_makes_no_forward_and_changes_no_bit(settings: dict[str, float]) -> None:
    model, plain = Spy(), Spy()
    planner = SpyPlanner()
    found = run(model, planner, **settings)
    expected = run_stages(plain, SpyPlanner(), start(plain, SpyPlanner(), CONDITION, 5), len(STAGES))[0]
    assert torch.equal(found.x, expected.x)
    assert model.guidance == plain.guidance


def test_a_solver_with_a_history_begins_anew_where_the_latent_was_moved() -> None:
    """Else UniPC's corrector would put it back on the way that it came by."""
    stage = Stage((3, 4, 4), 6, 3.0)
    model, planner = Spy(), SpyPlanner((stage,), solver="unipc")
    found = run(model, planner, steps=2)
    solver = UniPCSolver(6, 3.0)
    starts = [model.outputs[call] for call in (2, 5, 6, 7, 8, 9)]
    x = starts[0][0]
    for step, (seen, v) in enumerate(starts):
        if step < 2:
            solver, x = UniPCSolver(6, 3.0), seen
        torch.testing.assert_close(x, seen)
        x = solver.step(x, v * 2.0, step)
    torch.testing.assert_close(found.x, x)
    assert solver.num_remembered == 2


def test_a_first_frame_stays_where_it_is() -> None:
    latent = torch.randn(1, 16, 5, 8, 8)
    model = Spy()
    run(model, SpyPlanner(), Condition(CONDITION.positive, CONDITION.negative, 2.0, latent=latent), steps=2)
    for x, _ in model.outputs[:6]:
        assert torch.equal(x[:, :, 0], model.outputs[0][0][:, :, 0])


def told(name: str, guidance: float, **settings: Any) -> str:
    geometry, method = geometry_of(name), find("w2sd", "accelerator")
    request = Request(geometry, geometry.default_shape, geometry.default_steps, guidance, "dvg", DvgConfig())
    return "; ".join(method.mistakes(read_settings(method, settings), request))


@pytest.mark.parametrize(
    ("name", "guidance", "settings", "words"),
    [
        ("hunyuanvideo", 6.0, {}, ["guidance distilled into its weights", "leave w2sd out"]),
        ("hunyuanvideo-1.5-i2v-step-distilled", 1.0, {}, ["distilled to mean velocities", "take a model with guidance"]),
        ("wan-mini", 1.0, {}, ["guidance is 1", "one forward"]),
        ("wan-mini", 2.0, {"weak_guidance": 2.5}, ["weak_guidance is 2.5", "guidance 2", "less"]),
    ],
)
def test_without_guidance_to_weaken_it_is_refused(
    name: str, guidance: float, settings: dict[str, float], words: list[str]
) -> None:
    line = told(name, guidance, **settings)
    assert all(word in line for word in words), line
    assert not told("wan2.2-a14b", 4.0), "and not otherwise"


@functools.cache
def condition() -> Condition:
    found: Condition = wan_mini().encode(Asked("a red circle", SHAPE, 2.0))
    return found


def clip(*makers: Any, steps: int = 6) -> Boundary:
    plan = make_planner("full", wan_mini().geometry, SHAPE, steps, None, DvgConfig(), accelerators=makers)
    return run_stages(wan_mini(), plan, start(wan_mini(), plan, condition(), 3), 1)[0]


def maker(name: str, **settings: Any) -> Any:
    method = find(name, "accelerator")
    return functools.partial(method.make, read_settings(method, settings), wan_mini().geometry)


def test_two_forwards_more_for_each_reflected_step_are_counted() -> None:
    plain, found = clip(steps=4), clip(maker("w2sd", steps=2), steps=4)
    assert found.past.tflops == pytest.approx(plain.past.tflops * (4 + 2 * 2) / 4)
    assert not torch.equal(found.x, plain.x)
    assert math.isclose(float(found.x.std()), float(plain.x.std()), rel_tol=0.3)


def test_a_cache_beside_it_sees_the_clips_own_forwards_only() -> None:
    seen: list[tuple[int, int, float]] = []

    class Watched:
        def __init__(self) -> None:
            self.inner = maker("taylorseer", interval=2)()

        def forward(self, trunk: Trunk, now: Now) -> Tensor:
            out: Tensor = self.inner.forward(trunk, now)
            seen.append((now.step, now.branch, sum(trunk.work)))
            return out

    found = clip(Watched, maker("w2sd", steps=2))
    assert [(step, branch) for step, branch, _ in seen] == [(step, branch) for step in range(6) for branch in range(2)]
    own = sum(work for _, _, work in seen)
    assert own < 12
    assert found.past.tflops == pytest.approx(clip().past.tflops * (own + 2 * 2 * 2) / 12)


def test_it_is_a_method_of_the_registry() -> None:
    from orchestrator.arms import MethodUse

    (make,) = made_by([MethodUse(name="w2sd", settings={"steps": 2})], wan_mini().geometry)
    assert make().settings.steps == 2  # type: ignore[attr-defined]
