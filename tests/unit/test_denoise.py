"""The transition engine, with a model and a planner that write down what they are asked."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from orchestrator.geometry import model as geometry_of
from orchestrator.types import Action, Decision, Demand, Stage
from stages.demand import Pixels
from stages.denoise import Boundary, StepDone, run_stages, start
from stages.models.base import Condition, TextEmbedding
from stages.sampling import sigmas

STAGES = (Stage((2, 4, 4), 8, 3.0), Stage((3, 6, 6), 7, 5.0), Stage((3, 8, 8), 6, 7.0), Stage((5, 8, 8), 9, 7.0))
CONDITION = Condition(TextEmbedding(torch.randn(1, 3, 4), 509), TextEmbedding(torch.randn(1, 1, 4), 511), 2.0)


class SpyModel:
    """Its velocity is a smooth function of x and sigma; ``calls`` holds (grid, sigma)."""

    def __init__(self, break_at_call: int = -1) -> None:
        self.geometry = geometry_of("wan-mini")
        self.device = torch.device("cpu")
        self.dtype = torch.float32
        self.calls: list[tuple[tuple[int, ...], float]] = []
        self.outputs: list[tuple[Tensor, Tensor]] = []
        self.break_at_call = break_at_call

    def pixels(self, latent: Tensor) -> Tensor:
        raise AssertionError("the latent is measured as it is: nothing asked for pixels")

    def denoise(self, x: Tensor, sigma: float, condition: Condition) -> Tensor:
        self.calls.append((tuple(x.shape[2:]), sigma))
        v = torch.cos(x + sigma) if len(self.calls) != self.break_at_call else x / 0
        self.outputs.append((x, v))
        return v

    def encode_text(self, prompt: str, negative: str, guidance: float) -> Condition:
        return CONDITION

    def decode(self, latent: Tensor) -> Any:
        return None


class SpyPlanner:
    """Plans ``stages``; carries by nearest resize and constant noise, and writes down what it was given."""

    def __init__(self, stages: tuple[Stage, ...] = STAGES) -> None:
        self.action = Action("spy", stages, 0.5)
        self.num_steps = sum(stage.steps for stage in stages)
        self.decided_on: list[Tensor | None] = []
        self.carried: list[tuple[Tensor, int, float, int]] = []

    def first(self) -> Stage:
        return self.action.stages[0]

    def decide(self, x0: Tensor | None, pixels: Pixels | None = None) -> Decision:
        self.decided_on.append(x0)
        return Decision(self.action, "because", Demand(0.25, 0.75), (0.4, 0.6))

    def carry(self, x0: Tensor, action: Action, stage_index: int, sigma: float, seed: int) -> Tensor:
        self.carried.append((x0, stage_index, sigma, seed))
        return (1 - sigma) * F.interpolate(x0, size=action.stages[stage_index + 1].grid) + sigma


def run(model: SpyModel, planner: SpyPlanner, seed: int = 5) -> Boundary:
    return run_stages(model, planner, start(model, planner, CONDITION, seed), len(planner.action.stages))[0]


def test_each_grid_gets_its_forwards_shifted_by_the_transition_step() -> None:
    model = SpyModel()
    run(model, SpyPlanner())
    grids = [grid for grid, _ in model.calls]
    assert [grids.count(stage.grid) for stage in STAGES] == [9, 7, 6, 8]


def test_after_a_transition_the_model_sees_the_new_schedules_level_of_the_next_step() -> None:
    model, planner = SpyModel(), SpyPlanner()
    run(model, planner)
    expected = [float(sigmas(30, 3.0)[i]) for i in range(9)] + [float(sigmas(30, 5.0)[i]) for i in range(9, 16)]
    expected += [float(sigmas(30, 7.0)[i]) for i in range(16, 30)]
    assert [sigma for _, sigma in model.calls] == expected
    assert [sigma for _, _, sigma, _ in planner.carried] == [expected[9], expected[16], expected[22]]
    assert expected[9] > expected[8], "the rewind to more noise of the rising shifts"


def test_the_transition_starts_from_the_clean_estimate_under_the_old_schedule() -> None:
    model, planner = SpyModel(), SpyPlanner()
    run(model, planner)
    for (x0, stage_index, _, seed), (call, shift) in zip(planner.carried, [(8, 3.0), (15, 5.0), (21, 7.0)], strict=True):
        x, v = model.outputs[call]
        assert torch.equal(x0, x - sigmas(30, shift)[call] * v)
        assert seed == 5
        assert x0.shape[2:] == STAGES[stage_index].grid
    assert len(planner.decided_on) == 1
    assert planner.decided_on[0] is not None
    assert torch.equal(planner.decided_on[0], planner.carried[0][0])


def test_one_stage_is_a_plain_euler_run_decided_before_it_starts() -> None:
    model, planner = SpyModel(), SpyPlanner((Stage((3, 4, 4), 12, 3.0),))
    boundary = start(model, planner, CONDITION, seed=2)
    assert boundary.decision is not None
    assert planner.decided_on == [None]
    final, timings_s = run_stages(model, planner, boundary, 1)
    x, levels = boundary.x, sigmas(12, 3.0)
    for i in range(12):
        x = x + (levels[i + 1] - levels[i]) * torch.cos(x + float(levels[i]))
    assert torch.equal(final.x, x)
    assert (final.step, final.stage) == (12, 1)
    assert list(timings_s) == ["stage1_s"]


def test_stopping_at_any_boundary_and_packing_it_changes_nothing() -> None:
    whole = run(SpyModel(), SpyPlanner())
    model, planner = SpyModel(), SpyPlanner()
    boundary = start(model, planner, CONDITION, seed=5)
    keys: list[str] = []
    for stop in (1, 2, 3, 4):
        boundary, timings_s = run_stages(model, planner, Boundary.unpack(boundary.pack()), stop)
        keys += timings_s
    assert torch.equal(boundary.x, whole.x)
    assert keys == ["stage1_s", "stage2_s", "stage3_s", "stage4_s"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guided", [True, False])
def test_a_boundary_survives_packing(dtype: torch.dtype, guided: bool) -> None:
    texts = [TextEmbedding(torch.randn(1, n, 6).to(dtype), 512 - n) for n in (4, 1)]
    condition = Condition(texts[0], texts[1] if guided else None, 3.5)
    decision = SpyPlanner().decide(None)
    before = Boundary(torch.randn(1, 4, 2, 4, 4), 9, 1, decision, condition, seed=11)
    after = Boundary.unpack(before.pack())
    assert torch.equal(after.x, before.x)
    for field in ("step", "stage", "decision", "seed"):
        assert getattr(after, field) == getattr(before, field)
    assert after.condition.guidance == 3.5
    assert (after.condition.negative is None) is not guided
    assert after.condition.positive.num_pads == 508
    assert after.condition.positive.tokens.dtype == dtype
    assert torch.equal(after.condition.positive.tokens, texts[0].tokens)


def test_every_forward_is_told_in_order() -> None:
    told: list[StepDone] = []
    model, planner = SpyModel(), SpyPlanner()
    run_stages(model, planner, start(model, planner, CONDITION, 1), 4, told.append)
    assert [done.step for done in told] == list(range(30))
    assert [(done.grid, done.sigma) for done in told] == model.calls
    assert {done.num_steps for done in told} == {30}
    assert told[0].num_stages == 0
    assert told[-1].num_stages == 4


@pytest.mark.parametrize("call,where", [(3, "stage 1 (grid 2x4x4), step 3 of 30"), (9, "step 9 "), (25, "stage 4 (grid 5x8x8)")])
def test_a_latent_that_is_not_finite_is_reported_with_stage_and_step(call: int, where: str) -> None:
    with pytest.raises(RuntimeError, match="not finite") as caught:
        run(SpyModel(break_at_call=call), SpyPlanner())
    assert where in str(caught.value)


def test_the_boundary_is_immutable() -> None:
    boundary = start(SpyModel(), SpyPlanner(), CONDITION, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        boundary.step = 3  # type: ignore[misc]
