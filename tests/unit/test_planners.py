"""The planners: what they start with, decide and carry over."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.actions import DvgConfig, InfeasibleBudget, feasible_budgets
from orchestrator.budgets import Target
from orchestrator.cost import denoise_s, full_s, uncalibrated
from orchestrator.geometry import model
from orchestrator.types import Action, VideoShape
from stages.noise import coordinate_noise, derive_seed
from stages.planners.base import make_planner
from stages.resize import nested_axes, resize, smooth

GEOMETRY = model("wan-mini")
SHAPE = GEOMETRY.default_shape


def planner(name="dvg", budget=0.5, num_steps=30, **knobs):
    return make_planner(name, GEOMETRY, SHAPE, num_steps, budget, DvgConfig(**knobs))


def latent(grid, seed=0):
    return torch.randn(1, 4, *grid, generator=torch.Generator().manual_seed(seed))


def sketch(policy, seed=0):
    return latent(policy.first().grid, seed)


def axes_of(action):
    return nested_axes(tuple(stage.grid for stage in action.stages))


def test_full_is_one_stage_on_the_full_grid():
    policy = planner("full", budget=None)
    (stage,) = policy.decide(None).action.stages
    assert policy.first() == stage
    assert (stage.grid, stage.steps, stage.shift) == ((11, 18, 18), 30, GEOMETRY.full_shift)


def test_full_has_nothing_to_carry():
    policy = planner("full", budget=None)
    with pytest.raises(RuntimeError, match="no successor"):
        policy.carry(latent((11, 18, 18)), policy.decide(None).action, 0, 0.5, 1)


def test_dvg_starts_on_the_sketch_every_action_shares():
    policy = planner()
    assert (policy.first().grid, policy.first().steps) == ((4, 8, 8), 8)
    assert {action.stages[0] for action in policy.actions} == {policy.first()}


def test_dvg_decides_by_content():
    policy = planner()
    t, w = torch.arange(4.0)[:, None, None], torch.arange(8.0)[None, None, :]
    moving = torch.sin(0.5 * w - 1.5 * t).expand(1, 4, 4, 8, 8)
    textured = latent((1, 8, 8)).expand(-1, -1, 4, -1, -1)
    fast, fine = policy.decide(moving), policy.decide(textured)
    assert fast.weights[1] > fine.weights[1]
    assert fast.action.f2 > fine.action.f2
    assert fast.action.s2 < fine.action.s2


def test_a_first_stage_with_every_step_is_the_whole_run():
    policies = planner("full"), planner(budget=1.0), planner()
    assert [policy.first().steps == policy.task.num_steps for policy in policies] == [True, True, False]


def test_dvg_needs_a_sketch_to_decide():
    with pytest.raises(ValueError, match="clean latent"):
        planner().decide(None)


def test_in_pixel_space_the_decoded_frames_decide_and_the_latent_does_not():
    policy = planner(demand_space="pixels", spatial_demand="highpass", temporal_demand="dense_lk")
    detailed = (torch.rand(1, 3, 13, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1)[:, :, :1].expand(
        -1, -1, 13, -1, -1
    )
    fine, blank = (
        policy.decide(sketch(policy), lambda x0, video=video: video) for video in (detailed, torch.zeros(1, 3, 13, 64, 64))
    )
    assert fine.demand.spatial > 0.9 > 0.1 > blank.demand.spatial
    assert fine.action.s2 > blank.action.s2


def test_in_pixel_space_a_planner_without_a_decoder_says_what_it_lacks():
    policy = planner(demand_space="pixels")
    with pytest.raises(ValueError, match="decode"):
        policy.decide(sketch(policy))


def test_dvg_at_a_budget_of_one_is_the_plain_run():
    policy = planner(budget=1.0)
    assert policy.first() == planner("full").first()
    assert policy.decide(None).action == planner("full").decide(None).action


@pytest.mark.parametrize(
    ("name", "budget", "words"),
    [
        ("fastest", 0.5, "full, dvg, temporal-only, spatial-only, fixed"),
        ("dvg", None, "needs a budget"),
        ("temporal-only", None, "needs a budget"),
        ("fixed", 0.5, "takes no budget"),
        ("spatial-only", Target(kind="speedup", value=2.0), "as a share"),
        ("temporal-only", 0.05, "no action has a density"),
        ("dvg", Target(kind="speedup", value=2.0), "needs a cost model"),
    ],
)
def test_bad_planners_are_refused(name, budget, words):
    with pytest.raises(ValueError, match=words):
        planner(name, budget)


UNIFORM = [  # planner, budget, density, grid of every stage but the last
    ("temporal-only", 0.49, 0.489, (9, 30, 53)),
    ("spatial-only", 0.46, 0.463, (31, 15, 27)),
    ("fixed", None, 0.473, (17, 21, 37)),
]


@pytest.mark.parametrize(("name", "budget", "density", "grid"), UNIFORM)
def test_the_papers_ablations_on_hunyuanvideo_15(name, budget, density, grid):
    geometry = model("hunyuanvideo-1.5")
    policy = make_planner(name, geometry, geometry.default_shape, 50, budget, DvgConfig())
    action = policy.decide(None).action
    assert action.density == pytest.approx(density, abs=5.1e-4)
    assert [stage.grid for stage in action.stages] == [grid, grid, grid, (31, 30, 53)]
    assert [stage.shift for stage in action.stages] == [7, 9, 11, 11]
    assert policy.first() == action.stages[0]


def test_the_fixed_ratio_is_a_knob():
    (first, *_, last) = planner("fixed", None, fixed_spatial=0.5, fixed_temporal=1.0).decide(None).action.stages
    assert (first.grid, last.grid) == ((11, 8, 8), (11, 18, 18))


@pytest.mark.parametrize("name", ["temporal-only", "spatial-only"])
def test_no_other_schedule_of_its_kind_is_nearer_to_the_budget(name):
    budgets = [hundredths / 100 for hundredths in range(36, 100, 3)]
    densities = [planner(name, budget).decide(None).action.density for budget in budgets]
    for budget, chosen in zip(budgets, densities, strict=True):
        assert abs(chosen - budget) <= min(abs(density - budget) for density in densities) + 1e-9


@pytest.mark.parametrize("name", ["temporal-only", "spatial-only"])
def test_a_budget_of_one_is_the_plain_run_for_every_planner(name):
    assert planner(name, 1.0).decide(None).action == planner("full", None).decide(None).action


def test_a_speedup_is_planned_by_predicted_cost():
    cost = uncalibrated(GEOMETRY, "cpu")
    policy = make_planner("dvg", GEOMETRY, SHAPE, 30, Target(kind="speedup", value=2.0), DvgConfig(), cost=cost)
    wanted_s = full_s(GEOMETRY, SHAPE, 30, cost) / 2
    spent_s = [denoise_s(GEOMETRY, action, cost) for action in policy.actions]
    assert spent_s == pytest.approx([wanted_s] * len(spent_s), rel=0.041)
    assert {action.stages[0] for action in policy.actions} == {policy.first()}


def test_an_infeasible_budget_is_refused_before_any_work():
    with pytest.raises(InfeasibleBudget):
        planner(budget=0.2)


@pytest.mark.parametrize("stage_index", [0, 1, 2])
def test_carry_lands_on_the_next_grid_at_the_given_level(stage_index):
    policy = planner()
    action = policy.decide(sketch(policy)).action
    x0 = latent(action.stages[stage_index].grid).bfloat16()
    y = policy.carry(x0, action, stage_index, 0.25, seed=3)
    source, target = axes_of(action)[stage_index : stage_index + 2]
    clean = resize(x0.float(), source, target, "temporal_interp_spatial_restore")
    if stage_index == 0:
        clean = smooth(clean, 0.3, "replicate")
    noise = coordinate_noise(target, 4, derive_seed(3), "cpu")
    assert y.shape[2:] == action.stages[stage_index + 1].grid
    assert y.dtype == torch.float32
    assert torch.allclose(y, 0.75 * clean + 0.25 * noise)


@pytest.mark.parametrize("stage_index", [1, 2])
def test_only_the_entry_to_stage_2_is_smoothed(stage_index):
    policy = planner()
    action = policy.decide(sketch(policy)).action
    x0 = latent(action.stages[stage_index].grid)
    source, target = axes_of(action)[stage_index : stage_index + 2]
    t, h, w = ([fine.index(cell) for cell in coarse] for coarse, fine in zip(source, target, strict=True))
    kept = policy.carry(x0, action, stage_index, 0.0, seed=3)[:, :, t][:, :, :, h][..., w]
    assert torch.equal(kept, x0)


def test_shared_cells_get_the_same_noise_at_every_transition():
    policy = planner()
    action = policy.decide(sketch(policy)).action
    axes = axes_of(action)
    noises = [policy.carry(latent(action.stages[k].grid), action, k, 1.0, seed=5) for k in range(3)]
    full = noises[-1]
    for k, noise in enumerate(noises):
        t, h, w = map(list, axes[k + 1])
        assert torch.equal(noise, full[:, :, t][:, :, :, h][..., w])


def test_the_items_seed_moves_the_noise_unless_a_constant_is_asked_for():
    policy, parity = planner(), planner(noise_seed=12345)
    action = policy.decide(sketch(policy)).action
    x0 = latent(action.stages[2].grid)
    first, second = (policy.carry(x0, action, 2, 1.0, seed) for seed in (1, 2))
    assert not torch.equal(first, second)
    first, second = (parity.carry(x0, action, 2, 1.0, seed) for seed in (1, 2))
    assert torch.equal(first, second)
    assert first[0, 0, 0, 0, 0].item() == pytest.approx(-0.721240528, abs=1.2e-7)


def test_random_renoising_is_fresh_at_every_transition_and_repeatable():
    policy = planner(renoise="random")
    stage = policy.first()
    action = Action("same grids", (stage, stage, stage), 1.0)
    x0 = sketch(policy)
    second, third, again = (policy.carry(x0, action, k, 1.0, seed=5) for k in (0, 1, 1))
    assert not torch.equal(second, third)
    assert torch.equal(third, again)


def test_the_knobs_reach_the_transition():
    policy, plain = planner(), planner(resize="trilinear", smoothing=0.0)
    action = policy.decide(sketch(policy)).action
    x0 = sketch(policy)
    source, target = axes_of(action)[:2]
    y = plain.carry(x0, action, 0, 0.0, seed=1)
    assert torch.equal(y, resize(x0, source, target, "trilinear"))
    assert not torch.allclose(y, policy.carry(x0, action, 0, 0.0, seed=1))


@settings(max_examples=25, deadline=None)
@given(
    st.tuples(st.integers(0, 7), st.integers(1, 8), st.integers(1, 8)),
    st.integers(3, 40),
    st.integers(0, 99),
    st.integers(-(2**63), 2**64 - 1),
)
def test_any_shape_is_decided_and_carried_to_the_full_grid(sizes, num_steps, pick, seed):
    shape = VideoShape(4 * sizes[0] + 1, 16 * sizes[1], 16 * sizes[2])
    budgets = feasible_budgets(GEOMETRY, shape, num_steps, DvgConfig())
    policy = make_planner("dvg", GEOMETRY, shape, num_steps, budgets[pick % len(budgets)], DvgConfig())
    action = policy.decide(sketch(policy)).action
    x = latent(policy.first().grid)
    for stage_index, stage in enumerate(action.stages[1:]):
        x = policy.carry(x, action, stage_index, 0.5, seed)
        assert x.shape[2:] == stage.grid
        assert x.isfinite().all()
    assert action.stages[-1].grid == GEOMETRY.latent_grid(shape)
