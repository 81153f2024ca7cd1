"""The transition engine, with a model and a planner that write down what they are asked."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import pytest
import torch

from orchestrator.types import Decision, Stage
from stages.demand import DemandNotFinite
from stages.denoise import Boundary, StepDone, run_stages, start
from stages.models.base import Branch, Condition
from stages.sampling import sigmas
from tests.spies import CONDITION, STAGES, SpyModel, SpyPlanner


def run(model: SpyModel, planner: SpyPlanner, seed: int = 5) -> Boundary:
    return run_stages(model, planner, start(model, planner, CONDITION, seed), len(planner.action.stages))[0]


def test_each_grid_gets_its_forwards_shifted_by_the_transition_step() -> None:
    model = SpyModel()
    run(model, SpyPlanner())
    assert [model.grids.count(stage.grid) for stage in STAGES] == [9, 7, 6, 8]


def test_after_a_transition_the_model_sees_the_new_schedules_level_of_the_next_step() -> None:
    model, planner = SpyModel(), SpyPlanner()
    run(model, planner)
    expected = [float(sigmas(30, 3.0)[i]) for i in range(9)] + [float(sigmas(30, 5.0)[i]) for i in range(9, 16)]
    expected += [float(sigmas(30, 7.0)[i]) for i in range(16, 30)]
    assert [level.sigma for level in model.levels] == expected
    assert [level.timestep for level in model.levels] == pytest.approx([1000 * sigma for sigma in expected])
    assert [sigma for _, _, sigma, _ in planner.carried] == [expected[9], expected[16], expected[22]]
    assert expected[9] > expected[8], "the rewind to more noise of the rising shifts"


def test_the_model_is_told_where_each_step_ends() -> None:
    model = SpyModel()
    run(model, SpyPlanner())
    for index, (level, following) in enumerate(pairwise(model.levels)):
        if index not in (8, 15, 21):  # there the next step lies on another schedule
            assert level.timestep_next == following.timestep
    assert model.levels[-1].timestep_next == 0


def test_the_transition_starts_from_the_clean_estimate_under_the_old_schedule() -> None:
    model, planner = SpyModel(), SpyPlanner()
    run(model, planner)
    for (x0, stage_index, _, seed), (call, shift) in zip(planner.carried, [(8, 3.0), (15, 5.0), (21, 7.0)], strict=True):
        x, v = model.outputs[call]
        assert torch.equal(x0, x - float(sigmas(30, shift)[call]) * v)
        assert seed == 5
        assert x0.shape[2:] == STAGES[stage_index].grid
    assert len(planner.decided_on) == 1
    assert planner.decided_on[0] is not None
    assert torch.equal(planner.decided_on[0], planner.carried[0][0])


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_the_clean_estimate_goes_the_configured_share_of_the_way(factor: float) -> None:
    model, planner = SpyModel(), SpyPlanner(extrapolation=factor)
    run(model, planner)
    x, v = model.outputs[8]
    assert torch.allclose(planner.carried[0][0], x - factor * float(sigmas(30, 3.0)[8]) * v, atol=1e-6)


def test_one_stage_is_a_plain_euler_run_decided_before_it_starts() -> None:
    model, planner = SpyModel(), SpyPlanner((Stage((3, 4, 4), 12, 3.0),))
    boundary = start(model, planner, CONDITION, seed=2)
    assert boundary.decision is not None
    assert planner.decided_on == [None]
    final, timings_s = run_stages(model, planner, boundary, 1)
    x, levels = boundary.x, sigmas(12, 3.0)
    for i in range(12):
        x = x + float(levels[i + 1] - levels[i]) * torch.cos(x + float(levels[i]))
    assert torch.equal(final.x, x)
    assert (final.step, final.stage) == (12, 1)
    assert list(timings_s) == ["stage1_s"]


@pytest.mark.parametrize("solver", ["euler", "unipc"])
def test_stopping_at_any_boundary_and_packing_it_changes_nothing(solver: str) -> None:
    whole = run(SpyModel(), SpyPlanner(solver=solver))
    model, planner = SpyModel(), SpyPlanner(solver=solver)
    boundary = start(model, planner, CONDITION, seed=5)
    keys: list[str] = []
    for stop in (1, 2, 3, 4):
        boundary, timings_s = run_stages(model, planner, Boundary.unpack(boundary.pack()), stop)
        keys += timings_s
    assert torch.equal(boundary.x, whole.x)
    assert keys == ["stage1_s", "stage2_s", "stage3_s", "stage4_s"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("image", [True, False])
def test_a_boundary_survives_packing(dtype: torch.dtype, guided: bool, image: bool) -> None:
    texts = [
        Branch({"tokens": torch.randn(1, n, 6).to(dtype), "mask": torch.ones(1, n, dtype=torch.bool)}, 512 - n) for n in (4, 1)
    ]
    pictures = (torch.rand(1, 3, 1, 8, 8), torch.randn(1, 4, 2, 4, 4)) if image else (None, None)
    condition = Condition(texts[0], texts[1] if guided else None, 3.5, 2.5, *pictures)
    decision = SpyPlanner().decide(None)
    before = Boundary(torch.randn(1, 4, 2, 4, 4), 9, 1, decision, condition, seed=11)
    after = Boundary.unpack(before.pack())
    assert torch.equal(after.x, before.x)
    for field in ("step", "stage", "decision", "seed"):
        assert getattr(after, field) == getattr(before, field)
    assert (after.condition.guidance, after.condition.guidance_low) == (3.5, 2.5)
    assert (after.condition.negative is None) is not guided
    assert after.condition.positive.num_pads == 508
    for name, tensor in texts[0].tensors.items():
        assert after.condition.positive.tensors[name].dtype == tensor.dtype
        assert torch.equal(after.condition.positive.tensors[name], tensor)
    for name, picture in zip(("image", "latent"), pictures, strict=True):
        there = getattr(after.condition, name)
        assert there is picture is None or torch.equal(there, picture)


def test_every_forward_is_told_in_order() -> None:
    told: list[StepDone] = []
    model, planner = SpyModel(), SpyPlanner()
    run_stages(model, planner, start(model, planner, CONDITION, 1), 4, told.append)
    assert [done.step for done in told] == list(range(30))
    assert [(done.grid, done.sigma) for done in told] == [
        (grid, level.sigma) for grid, level in zip(model.grids, model.levels, strict=True)
    ]
    assert {done.num_steps for done in told} == {30}
    assert told[0].num_stages == 0
    assert told[-1].num_stages == 4


@pytest.mark.parametrize(
    "call,where",
    [
        (3, "stage 1 (grid 2x4x4), step 3 of 30"),
        (9, "stage 1 (grid 2x4x4), step 9 of 30"),
        (10, "stage 2 (grid 3x6x6), step 10 of 30"),
        (25, "stage 4 (grid 5x8x8), step 25 of 30"),
    ],
)
def test_a_latent_that_is_not_finite_is_reported_with_stage_and_first_bad_step(call: int, where: str) -> None:
    planner = SpyPlanner()
    with pytest.raises(RuntimeError, match="not finite") as caught:
        run(SpyModel(break_at_call=call), planner)
    assert where in str(caught.value)
    assert bool(planner.decided_on) == (call > 9), "nothing is planned on numbers that are none"


def test_a_demand_that_is_not_finite_is_reported_with_stage_and_step() -> None:
    class Unmeasurable(SpyPlanner):
        def decide(self, x0: torch.Tensor | None, pixels: object = None) -> Decision:
            raise DemandNotFinite("the demand is not finite: detail nan, motion 0.1")

    with pytest.raises(RuntimeError, match=r"detail nan.*stage 1 \(grid 2x4x4\), step 9 of 30"):
        run(SpyModel(), Unmeasurable())


def test_a_stage_waits_for_its_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every way that a tensor's values reach the host is counted; the spies use none."""
    reads: list[str] = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy"):
        real = getattr(torch.Tensor, name)
        monkeypatch.setattr(torch.Tensor, name, lambda x, *a, real=real, name=name: (reads.append(name), real(x, *a))[1])
    model, planner = SpyModel(), SpyPlanner(solver="unipc")
    boundary = start(model, planner, CONDITION, 1)
    planner.task.solver(STAGES[0])  # levels are read when a solver is made, from the CPU
    made = len(reads)
    reads.clear()
    run_stages(model, planner, boundary, 1)
    assert reads.count("tolist") == 1
    assert len(reads) == 1 + 2 * made, "beyond it only the levels of two solvers are read"


def test_the_same_seed_gives_the_same_decision_and_latent_and_another_seed_another() -> None:
    first, again, other = (run(SpyModel(), SpyPlanner(), seed) for seed in (5, 5, 6))
    assert torch.equal(first.x, again.x)
    assert first.decision == again.decision
    assert not torch.equal(first.x, other.x)


def test_the_boundary_is_immutable() -> None:
    boundary = start(SpyModel(), SpyPlanner(), CONDITION, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        boundary.step = 3  # type: ignore[misc]
