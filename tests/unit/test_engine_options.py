"""What the engine does for conditions, solvers and released quirks, under the real planners where they matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.dvg_config import DvgConfig
from orchestrator.geometry import model as geometry_of
from orchestrator.types import Stage, VideoShape
from stages.denoise import Boundary, run_stages, start
from stages.noise import coordinate_noise, derive_seed
from stages.planners import Planner, make_planner
from stages.resize import nested_axes
from stages.sampling import initial_noise, make_solver
from tests.spies import CONDITION, STAGES, SpyModel, SpyPlanner

SHAPE = VideoShape(25, 96, 96)
FULL = geometry_of("wan-mini").latent_grid(SHAPE)
IMAGE = dataclasses.replace(CONDITION, latent=torch.randn(1, 16, 1, *FULL[1:], generator=torch.Generator().manual_seed(0)))


def planner_of(name: str = "dvg", budget: float | None = 0.5, num_steps: int = 12, solver: Any = None, **knobs: Any) -> Planner:
    return make_planner(name, geometry_of("wan-mini"), SHAPE, num_steps, budget, DvgConfig(**knobs), solver)


def run(model: SpyModel, planner: Planner, condition: Any = CONDITION, seed: int = 5) -> Boundary:
    boundary = start(model, planner, condition, seed)
    return run_stages(model, planner, boundary, 1)[0] if boundary.decision else finish(model, planner, boundary)


def finish(model: SpyModel, planner: Planner, boundary: Boundary) -> Boundary:
    boundary, _ = run_stages(model, planner, boundary, 1)
    assert boundary.decision is not None
    return run_stages(model, planner, boundary, len(boundary.decision.action.stages))[0]


# Image conditions


def test_a_pinned_frame_holds_at_every_step_of_every_stage_and_in_every_clean_estimate() -> None:
    model, planner = SpyModel(), SpyPlanner()
    latent = torch.randn(1, 16, 1, 8, 8)
    boundary = start(model, planner, dataclasses.replace(CONDITION, latent=latent), 5)
    boundary, _ = run_stages(model, planner, boundary, 4)
    axes = dict(zip((stage.grid for stage in STAGES), nested_axes(tuple(stage.grid for stage in STAGES)), strict=True))
    axes[STAGES[0].grid] = nested_axes((STAGES[0].grid, STAGES[-1].grid))[0]
    for x in (*(x for x, _ in model.outputs), *(x0 for x0, *_ in planner.carried), boundary.x):
        _, rows, columns = map(list, axes[tuple(x.shape[2:])])
        assert torch.equal(x[:, :, :1], latent[..., rows, :][..., columns])


def test_a_condition_is_placed_once_a_stage_on_the_cells_of_the_plan() -> None:
    model, planner = SpyModel(), planner_of(image_condition="encode")
    boundary = run(model, planner, IMAGE)
    assert boundary.decision is not None
    grids = tuple(stage.grid for stage in boundary.decision.action.stages)
    before_the_plan = nested_axes((grids[0], FULL))[0]
    assert [axes for axes, _ in model.placed] == [before_the_plan, *nested_axes(grids)[1:]]
    assert {mode for _, mode in model.placed} == {"encode"}
    assert model.placed[-1][0] == tuple(tuple(range(size)) for size in FULL)


def test_the_image_enters_the_noise_once_at_the_very_start() -> None:
    model, planner = SpyModel(), SpyPlanner()
    boundary = start(model, planner, CONDITION, 5)
    assert model.num_starts == 0, "the boundary may travel to another process before the first step"
    for stop in (1, 2, 3, 4):
        boundary, _ = run_stages(model, planner, boundary, stop)
    assert model.num_starts == 1


# Solvers


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.floats(1.0, 12.0), st.sampled_from(["euler", "unipc"]), st.integers(0, 99))
def test_a_planner_of_one_stage_is_the_plain_sampler(num_steps: int, shift: float, solver: Any, seed: int) -> None:
    planner = SpyPlanner((Stage((2, 4, 4), num_steps, shift),), solver=solver)
    boundary = run(SpyModel(), planner, seed=seed)
    stepper, x = make_solver(solver, num_steps, shift), initial_noise((2, 4, 4), 16, seed)
    for i, level in enumerate(stepper.levels):
        x = stepper.step(x, torch.cos(x + level.sigma), i)
    assert torch.equal(boundary.x, x)


@pytest.mark.parametrize("budget", [1.0, None])
def test_dvg_at_a_budget_of_one_and_full_run_alike(budget: float | None) -> None:
    name = "full" if budget is None else "dvg"
    plain = run(SpyModel(), planner_of("full", None))
    assert torch.equal(run(SpyModel(), planner_of(name, budget)).x, plain.x)


def test_no_history_crosses_a_transition() -> None:
    """The first UniPC step of a stage is the first-order one, from that stage's own velocity alone."""
    model, planner = SpyModel(), SpyPlanner(solver="unipc")
    run(model, planner)
    for first, stage in ((9, STAGES[1]), (16, STAGES[2]), (22, STAGES[3])):
        fresh = make_solver("unipc", 30, stage.shift)
        assert torch.equal(model.outputs[first + 1][0], fresh.step(*model.outputs[first], first))


def test_the_network_is_told_the_rounded_timestep_of_its_own_schedule() -> None:
    model = SpyModel()
    run(model, SpyPlanner(solver="unipc"))
    for level in model.levels:
        assert level.timestep == int(1000 * level.sigma)
    assert model.levels[9].timestep > model.levels[8].timestep


def test_the_solver_is_the_checkpoints_own_unless_another_is_asked_for() -> None:
    geometry, shape = geometry_of("wan2.1-1.3b"), VideoShape(9, 64, 64)
    timesteps = {}
    for solver in (None, "unipc", "euler"):
        planner = make_planner("full", geometry, shape, 7, None, DvgConfig(), solver)  # type: ignore[arg-type]
        timesteps[solver] = [level.timestep for level in planner.task.solver(planner.first()).levels]
    assert timesteps[None] == timesteps["unipc"] != timesteps["euler"]


# Released quirks


def test_stale_timesteps_are_stage_ones_to_the_end_and_clean_estimates_take_the_level_nearest_to_them() -> None:
    model, planner = SpyModel(), SpyPlanner(stale_timesteps=True)
    run(model, planner)
    solvers = {stage.shift: make_solver("euler", 30, stage.shift) for stage in STAGES}
    assert [level.timestep for level in model.levels] == [level.timestep for level in solvers[3.0].levels]
    own = [solvers[5.0].levels[9].sigma, solvers[7.0].levels[16].sigma, solvers[7.0].levels[22].sigma]
    assert [sigma for _, _, sigma, _ in planner.carried] == own, "the latent itself is re-noised on the new schedule"
    for (x0, *_), (call, shift) in zip(planner.carried, [(8, 3.0), (15, 5.0), (21, 7.0)], strict=True):
        stale = model.levels[call].timestep
        sigma = min(solvers[shift].levels, key=lambda level: abs(level.timestep - stale)).sigma
        x, v = model.outputs[call]
        assert torch.equal(x0, x - sigma * v)
        assert (sigma == solvers[shift].levels[call].sigma) == (call == 8)


@pytest.mark.parametrize("clean,ends", [("released", 0), ("zero", 3)])
def test_a_clean_estimate_can_ask_a_meanflow_model_for_the_whole_way(clean: str, ends: int) -> None:
    model = SpyModel()
    run(model, SpyPlanner(meanflow_clean=clean))
    assert [model.levels[call].timestep_next for call in (8, 15, 21)].count(0.0) == ends
    assert len(model.levels) == 30, "no forward is added"


# Noise of the first stage


def test_the_first_noise_is_the_stock_draw_or_the_field_of_all_transitions() -> None:
    stock, aligned = (start(SpyModel(), planner_of(initial_noise=kind), CONDITION, 3).x for kind in ("randn", "coordinate"))
    grid = planner_of().first().grid
    assert torch.equal(stock, initial_noise(grid, 16, 3))
    field = coordinate_noise(tuple(tuple(range(size)) for size in FULL), 16, derive_seed(3), "cpu")  # type: ignore[arg-type]
    t, h, w = map(list, nested_axes((grid, FULL))[0])
    assert torch.equal(aligned, field[:, :, t][:, :, :, h][..., w])


def test_under_the_stock_field_every_stage_draws_from_the_noise_that_a_full_run_starts_with() -> None:
    planner = planner_of(noise_field="stock", initial_noise="coordinate")
    whole = start(SpyModel(), planner_of("full", None), CONDITION, 3).x
    t, h, w = map(list, nested_axes((planner.first().grid, FULL))[0])
    assert torch.equal(start(SpyModel(), planner, CONDITION, 3).x, whole[:, :, t][:, :, :, h][..., w])
    action = planner.decide(torch.randn(1, 16, *planner.first().grid)).action
    for index, axes in enumerate(nested_axes(tuple(stage.grid for stage in action.stages))[1:]):
        noise = planner.carry(torch.randn(1, 16, *action.stages[index].grid), action, index, 1.0, 3)
        t, h, w = map(list, axes)
        assert torch.allclose(noise, whole[:, :, t][:, :, :, h][..., w])


# Few steps


@pytest.mark.parametrize("num_steps,num_stages", [(12, 4), (8, 4), (5, 4), (4, 2), (3, 2), (2, 1)])
def test_fewer_steps_run_on_fewer_grids(num_steps: int, num_stages: int) -> None:
    check_stages(planner_of(budget=1.0 if num_steps == 2 else 0.7, num_steps=num_steps, tolerance=0.2), num_steps, num_stages)


def test_transitions_that_collide_are_one_transition() -> None:
    rates = (0.28, 0.32, 0.72)  # int(9 x 0.28) = int(9 x 0.32)
    check_stages(planner_of(budget=0.6, num_steps=9, transition_rates=rates, tolerance=0.2), 9, 3)


def check_stages(planner: Planner, num_steps: int, num_stages: int) -> None:
    model = SpyModel()
    boundary = run(model, planner)
    assert boundary.decision is not None
    assert len(boundary.decision.action.stages) == num_stages
    assert len(model.levels) == num_steps
    assert boundary.x.shape[2:] == FULL


@pytest.mark.parametrize("name", ["dvg", "temporal-only", "spatial-only", "fixed"])
def test_every_planner_ends_on_the_full_grid_and_decides_alike_on_repeated_runs(name: str) -> None:
    budget = None if name == "fixed" else 0.5
    first, again = (run(SpyModel(), planner_of(name, budget)) for _ in range(2))
    assert first.decision == again.decision
    assert torch.equal(first.x, again.x)
    assert first.x.shape[2:] == FULL
    assert first.x.isfinite().all()
